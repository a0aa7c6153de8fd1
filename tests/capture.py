"""A USB camera below OpenCV, the lowest place where there can be one without hardware. Not for pictures that matter."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np


class Capture:
    """In place of cv2.VideoCapture: gives the size it is told to, at `hz`, until it is unplugged (`gone`)."""

    gone = threading.Event()
    hz = 30.0

    def __init__(self, source: Any, backend: int = 0) -> None:
        self._values: dict[int, float] = {}
        self._count = 0
        self._open = True

    def isOpened(self) -> bool:
        return self._open

    def set(self, key: int, value: float) -> bool:
        self._values[key] = value
        return True

    def get(self, key: int) -> float:
        return self._values.get(key, 0.0)

    def read(self) -> tuple[bool, Any]:
        time.sleep(1 / self.hz)
        self._count += 1
        picture = np.tile(np.arange(64, dtype=np.uint8)[:, None, None], (1, 64, 3)) + np.uint8(self._count % 256)
        return (False, None) if self.gone.is_set() else (True, picture)

    def release(self) -> None:
        self._open = False
