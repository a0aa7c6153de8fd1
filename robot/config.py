"""The `[robot]` table of the operator's configuration and of jobs: read, defaulted and validated.

Imports nothing heavy, so that a wrong key is told before LeRobot is loaded. Not for opening devices (arms.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zk0d.errors import ConfigError

TYPES = ("so101", "so100")
UNITS = ("degrees", "range")
_CAMERA_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_ROTATIONS = (0, 90, 180, 270)


@dataclass(frozen=True)
class CameraTable:
    """One camera: where it is (`source`, ignored on a virtual bench) and the size of its frames in pixels."""

    name: str
    height: int
    width: int
    source: str = ""
    rotation: int = 0
    fourcc: str = ""


@dataclass(frozen=True)
class RobotTable:
    """The `[robot]` table. `units` is "degrees" or "range" (-100…100); the gripper is 0…100 in both.

    `max_relative_target` limits, in `units` and per control period, what a policy may ask of a joint (rollout only).
    """

    type: str = "so101"
    follower: str = ""
    leader: str = ""
    id: str = "zk0"
    follower_id: str = ""
    leader_id: str = ""
    calibration_dir: str = ""
    units: str = "degrees"
    max_relative_target: float = 20.0
    cameras: dict[str, CameraTable] = field(default_factory=dict)

    @property
    def virtual(self) -> bool:
        """Whether the arms are a simulated bench."""
        return self.follower.startswith("virtual:")

    @staticmethod
    def parse(table: Mapping[str, Any], where: str = "[robot]") -> RobotTable:
        """Read the table. Raises ConfigError naming the key, the value and what is accepted."""
        values = dict(table)
        cameras = values.pop("cameras", {})
        fields: dict[str, Any] = {}
        for key, value in values.items():
            default = getattr(RobotTable, key, None)
            if key.startswith("_") or not isinstance(default, str | float):
                raise _bad(where, key, value, f"a known key ({', '.join(_keys())})")
            if isinstance(default, float):
                if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                    raise _bad(where, key, value, "a number above zero")
                fields[key] = float(value)
            else:
                if not isinstance(value, str):
                    raise _bad(where, key, value, "text in quotes")
                fields[key] = value
        if not isinstance(cameras, Mapping):
            raise _bad(where, "cameras", cameras, f"tables {where[:-1]}.cameras.NAME]")
        parsed = RobotTable(**fields, cameras={n: _camera(n, c, where) for n, c in cameras.items()})
        parsed._check(where)
        return parsed

    def _check(self, where: str) -> None:
        if self.type not in TYPES:
            raise _bad(where, "type", self.type, " or ".join(f'"{t}"' for t in TYPES))
        if self.units not in UNITS:
            raise _bad(where, "units", self.units, " or ".join(f'"{u}"' for u in UNITS))
        if not self.follower:
            raise ConfigError(f"{where}: follower is not set", 'for example "/dev/ttyACM0", or "virtual:PickLift"')
        if not self.virtual and self.leader.startswith(("expert", "rest", "replay:")):
            raise _bad(where, "leader", self.leader, "a serial port, or a follower that is virtual:… as well")
        if self.calibration_dir and not Path(self.calibration_dir).is_dir():
            raise _bad(where, "calibration_dir", self.calibration_dir, "an existing folder, or empty for LeRobot's own")
        if not self.virtual:
            if self.leader == self.follower:
                raise _bad(where, "leader", self.leader, "another port than the follower's")
            for camera in self.cameras.values():
                if not camera.source:
                    raise ConfigError(
                        f"{where}: camera {camera.name} has no source", 'for example source = "/dev/video0"'
                    )


def _keys() -> list[str]:
    return [k for k in RobotTable.__dataclass_fields__ if k != "cameras"] + ["cameras"]


def _bad(where: str, key: str, value: object, accepted: str) -> ConfigError:
    return ConfigError(f"{where}: {key} = {value!r} cannot be used", f"use {accepted}")


def _camera(name: str, table: Any, where: str) -> CameraTable:
    place = f"{where[:-1]}.cameras.{name}]"
    if not _CAMERA_NAME.fullmatch(name):
        raise _bad(where, "camera name", name, "lower-case letters, digits and _, beginning with a letter")
    if not isinstance(table, Mapping):
        raise _bad(where, f"cameras.{name}", table, "a table with source, height and width")
    known = CameraTable.__dataclass_fields__
    for key, value in table.items():
        if key not in known or key == "name":
            raise _bad(place, key, value, f"a known key ({', '.join(k for k in known if k != 'name')})")
    source = table.get("source", "")
    if isinstance(source, int) and not isinstance(source, bool):
        source = str(source)
    if not isinstance(source, str):
        raise _bad(place, "source", source, '"/dev/video0" or a camera number')
    size: dict[str, int] = {}
    for key, default in (("height", 480), ("width", 640)):
        value = table.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 16 <= value <= 4096 or value % 2:
            raise _bad(place, key, value, "an even number of pixels from 16 to 4096")
        size[key] = value
    rotation = table.get("rotation", 0)
    if rotation not in _ROTATIONS:
        raise _bad(place, "rotation", rotation, "0, 90, 180 or 270")
    fourcc = table.get("fourcc", "")
    if not isinstance(fourcc, str) or len(fourcc) not in (0, 4):
        raise _bad(place, "fourcc", fourcc, 'four letters such as "MJPG", or empty')
    return CameraTable(name, size["height"], size["width"], source, rotation, fourcc)
