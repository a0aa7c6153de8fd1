"""The virtual SO-101 bench: servos on a pseudo-terminal, physics, cameras, and a leader that solves the task.

Everything above the wire is LeRobot's own code. Not for real arms, and never imported unless a bench is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robot.virtual.cameras import VirtualCamera, VirtualCameraConfig
    from robot.virtual.spec import StationSpec
    from robot.virtual.station import VirtualStation

__all__ = ["StationSpec", "VirtualCamera", "VirtualCameraConfig", "VirtualStation"]

_HOME = {
    "StationSpec": "robot.virtual.spec",
    "VirtualStation": "robot.virtual.station",
    # LeRobot's camera factory looks for the device class in the package of its config class.
    "VirtualCamera": "robot.virtual.cameras",
    "VirtualCameraConfig": "robot.virtual.cameras",
}


def __getattr__(name: str) -> Any:
    """Import on first use: parsing a station's address must not import torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
