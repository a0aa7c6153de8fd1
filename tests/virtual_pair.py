"""A virtual pair that is opened by its ports, as arms are: its `[robot]` table, a hand on its leader, a channel to nobody.

The pair is the fixture `station`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def table(station: Any, folder: Path, **changes: Any) -> dict[str, Any]:
    """Both ports of `station`, calibrated by the files that this writes into `folder`; `changes` add keys."""
    station.write_calibration(folder, "follower", "leader")
    ports = {"follower": station.follower_port, "leader": station.leader_port}
    return {**ports, "calibration_dir": str(folder), **changes}


def be_patient(bus: Any) -> Callable[[], None]:
    """LeRobot's driver waits 50 ms for an answer. The pair lives in the test's process, and perhaps shares its processor:
    where no answer is lost, one that is late is waited for → what puts the driver's own time back."""
    handler = bus.port_handler
    own = handler.setPacketTimeout

    def wait_long(length: int) -> None:
        handler.setPacketTimeoutMillis(60_000.0)

    handler.setPacketTimeout = wait_long
    return lambda: setattr(handler, "setPacketTimeout", own)


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


class Told:
    """A channel whose supervisor acts on what it hears, in the recorder's own thread."""

    def __init__(self, act: Callable[[str, dict[str, Any]], None] = lambda event, fields: None) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.act = act

    def emit(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))
        self.act(event, fields)

    def poll(self, timeout_s: float = 0.0) -> None:
        time.sleep(max(0.0, timeout_s))

    def of(self, name: str) -> list[dict[str, Any]]:
        return [fields for event, fields in self.events if event == name]
