"""LeRobot cameras that look at a virtual station; LeRobot's own factory builds them from their config.

A read gives the frame of the simulation's present state. Not for drawing (render.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
from lerobot.cameras import Camera, CameraConfig
from lerobot.utils.errors import DeviceNotConnectedError
from numpy.typing import NDArray

from zk0d.errors import RobotError

if TYPE_CHECKING:
    from robot.virtual.station import VirtualStation

STATIONS: WeakValueDictionary[str, VirtualStation] = WeakValueDictionary()
"""Live stations of this process by their follower's port: a camera config must be plain data."""


@CameraConfig.register_subclass("zk0_virtual")
@dataclass(kw_only=True)
class VirtualCameraConfig(CameraConfig):  # type: ignore[misc]
    """A camera of the station whose follower is at `station`."""

    station: str
    view: str = "front"

    def __post_init__(self) -> None:
        if self.view not in ("front", "top", "wrist"):
            raise ValueError(f"view must be front, top or wrist, not {self.view!r}")


class VirtualCamera(Camera):  # type: ignore[misc]
    """Reads rendered frames, (height, width, 3) uint8 RGB."""

    def __init__(self, config: VirtualCameraConfig) -> None:
        super().__init__(config)
        self.config = config
        self._station: VirtualStation | None = None

    @property
    def is_connected(self) -> bool:
        """Whether connect() found the station."""
        return self._station is not None

    @staticmethod
    def find_cameras() -> list[dict[str, Any]]:
        """The cameras of the stations in this process."""
        return [
            {"type": "zk0_virtual", "id": f"{port}#{name}", "station": port}
            for port, station in STATIONS.items()
            for name in station.spec.cameras
        ]

    def connect(self, warmup: bool = True) -> None:
        """Find the station; raises RobotError when it is not in this process or closed."""
        station = STATIONS.get(self.config.station)
        if station is None:
            raise RobotError(f"no virtual station at {self.config.station} in this process", "start it first")
        self._station = station
        if warmup:
            self.read()

    def read(self) -> NDArray[np.uint8]:
        """The frame of the present state."""
        if self._station is None:
            raise DeviceNotConnectedError(f"{self} is not connected")
        return self._station.frame(self.config.view, int(self.height or 0), int(self.width or 0))

    def async_read(self, timeout_ms: float = 200) -> NDArray[np.uint8]:
        """As read(): a rendered frame is never late."""
        return self.read()

    def read_latest(self, max_age_ms: int = 500) -> NDArray[np.uint8]:
        """As read(): a rendered frame is never old."""
        return self.read()

    def disconnect(self) -> None:
        """Let go of the station."""
        self._station = None


_VIEWS = {
    "wrist": ("wrist", "hand", "gripper"),
    "top": ("top", "overhead", "above"),
    "front": ("front", "side", "scene", "base"),
}


def view_of(name: str) -> str:
    """Which view a camera of this name shows. Raises RobotError for names that say nothing."""
    for view, words in _VIEWS.items():
        if any(word in name.lower() for word in words):
            return view
    raise RobotError(f"virtual camera {name!r}: which view is it?", "have front, top or wrist in its name")
