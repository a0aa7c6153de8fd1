"""Whether the cameras' frames are new: how old the last one is, and how many rows show one that a row has shown before.

Works on LeRobot's camera objects, whose reader threads replace `latest_frame`. Not for reading frames (bench.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any


class Eyes:
    """`devices`: name → LeRobot camera. A camera without a time of capture (a rendered one) is never stale."""

    def __init__(self, devices: Mapping[str, Any]) -> None:
        self._devices = dict(devices)
        self._last: dict[str, Any] = {}
        self.age: dict[str, float] = {}
        """Seconds since the capture of the last frame."""
        self.stale: dict[str, int] = {}
        self.oldest: dict[str, float] = {}
        self.begin()

    def begin(self) -> None:
        """A take begins."""
        self.stale = dict.fromkeys(self._devices, 0)
        self.oldest = dict.fromkeys(self._devices, 0.0)

    def seen(self, images: Mapping[str, Any]) -> None:
        """A row's frames, as they came from the cameras. LeRobot makes a new array for each captured frame."""
        now = time.perf_counter()
        for name, frame in images.items():
            captured = getattr(self._devices[name], "latest_timestamp", None)
            self.age[name] = 0.0 if captured is None else max(0.0, now - captured)
            self.oldest[name] = max(self.oldest[name], self.age[name])
            self.stale[name] += frame is self._last.get(name)
            self._last[name] = frame
