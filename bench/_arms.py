"""What both recorders are measured on: one virtual bench in a process of its own, and cameras that show stored frames.

Physics and protocol are the station's process, so that CPU and lateness are the recorders' own. Not a benchmark itself.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.cameras import Camera, CameraConfig

STORED = 60
LARGE = 500_000
"""Pixels from which a camera has fewer pictures: they take long to make."""


@CameraConfig.register_subclass("zk0_stored")
@dataclass(kw_only=True)
class StoredCameraConfig(CameraConfig):
    """`seed`: which pictures it shows."""

    seed: int = 0


class StoredCamera(Camera):
    """Gives the frame of the moment, at its own rate, from memory: what a driver's thread leaves for its reader."""

    def __init__(self, config: StoredCameraConfig) -> None:
        super().__init__(config)
        self.config = config
        self._frames = pictures(int(self.height or 0), int(self.width or 0), config.seed)
        self._open = False

    @property
    def is_connected(self) -> bool:
        return self._open

    @staticmethod
    def find_cameras() -> list[dict[str, Any]]:
        return []

    def connect(self, warmup: bool = True) -> None:
        self._open = True

    def read(self) -> np.ndarray:
        return self._frames[int(time.perf_counter() * (self.fps or 30)) % len(self._frames)]

    def async_read(self, timeout_ms: float = 200) -> np.ndarray:
        return self.read()

    def read_latest(self, max_age_ms: int = 500) -> np.ndarray:
        return self.read()

    def disconnect(self) -> None:
        self._open = False


def pictures(height: int, width: int, seed: int) -> list[np.ndarray]:
    """A textured table, a moving block and sensor noise of three levels."""
    rng, count = np.random.default_rng(seed), STORED if height * width < LARGE else STORED // 4
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    scene = np.stack([128 + 80 * np.sin(x / (9 + 4 * c)) * np.cos(y / (13 + 3 * c)) for c in range(3)], -1)
    made = []
    for k in range(count):
        picture = scene.copy()
        picture[height // 3 : height // 2, (at := int(width * 0.7 * k / count)) : at + width // 6] = (220, 40, 40)
        noise = rng.standard_normal(picture.shape, dtype=np.float32) * 3
        made.append(np.clip(picture + noise, 0, 255).astype(np.uint8))
    return made


def _serve(pipe: Any, folder: str) -> None:
    with contextlib.suppress(PermissionError):  # a servo does not wait for a processor that a recorder uses
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    from robot.virtual.spec import StationSpec
    from robot.virtual.station import VirtualStation

    with VirtualStation(StationSpec("", leader="rest", clock="wall")) as station:
        station.write_calibration(Path(folder), "follower", "leader")
        pipe.send((station.follower_port, station.leader_port))
        with contextlib.suppress(EOFError):
            while (message := pipe.recv()) is not None:
                for line in (station.faults.follower, station.faults.leader):
                    line.bad_line(**message)
                pipe.send(True)


class Station:
    """The bench's process, from here. `table` is a `[robot]` table without cameras."""

    def __init__(self, pipe: Any, table: dict[str, Any]) -> None:
        self._pipe = pipe
        self.table = table

    def bad_line(self, corrupt: float = 0.0, drop: float = 0.0) -> None:
        """From now on this share of the packets of both arms is damaged, or lost."""
        self._pipe.send({"corrupt": corrupt, "drop": drop})
        self._pipe.recv()


@contextlib.contextmanager
def station(folder: Path) -> Iterator[Station]:
    """A bench in its own process, calibration files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, str(folder)), daemon=True)
    process.start()
    try:
        follower, leader = ours.recv()
        yield Station(ours, {"follower": follower, "leader": leader, "calibration_dir": str(folder)})
    finally:
        with contextlib.suppress(OSError):
            ours.send(None)
        process.join(10)
        if process.is_alive():
            process.kill()
