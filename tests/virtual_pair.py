"""A virtual pair that is opened by its ports, as arms are: its `[robot]` table, and a hand on its leader.

The pair is the fixture `station`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def table(station: Any, folder: Path, **changes: Any) -> dict[str, Any]:
    """Both ports of `station`, calibrated by the files that this writes into `folder`; `changes` add keys."""
    station.write_calibration(folder, "follower", "leader")
    ports = {"follower": station.follower_port, "leader": station.leader_port}
    return {**ports, "calibration_dir": str(folder), **changes}


class Hand:
    """Holds the leader's joints at encoder readings of our choice."""

    def __init__(self, station: Any) -> None:
        self._servos = station._leader.servos
        self.raw = [2048] * 6
        station._do(lambda: setattr(station._leader.line.bus, "sense", self._sense))

    def _sense(self) -> None:
        for servo, raw in zip(self._servos, self.raw, strict=True):
            servo.sense(raw % 4096, 0, 0)

    def put(self, *raw: int) -> None:
        self.raw = list(raw)
