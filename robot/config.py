"""The `[robot]` table of the operator's configuration and of jobs: read, defaulted and validated.

Imports nothing heavy, so that a wrong key is told before LeRobot is loaded. Not for opening devices (arms.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from robot.care import CareTable
from zk0d.errors import ConfigError

TYPES = ("so101", "so100")
UNITS = ("degrees", "range")
SIDES = ("left", "right")
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

    `max_relative_target` limits, in `units` and per control period, what a policy may ask of a joint (rollout only);
    `joint_margin` and `limits` keep it inside the joints' calibrated ranges. Two pairs of arms are in `pairs`, by side.
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
    joint_margin: float = 2.0
    cameras: dict[str, CameraTable] = field(default_factory=dict)
    care: CareTable = field(default_factory=CareTable)
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    pairs: dict[str, RobotTable] = field(default_factory=dict)
    """"left" and "right" → a table of that pair; empty for one pair, which is this table itself."""

    @property
    def virtual(self) -> bool:
        """Whether the arms are a simulated bench."""
        return all(p.follower.startswith("virtual:") for p in self.each().values())

    def each(self) -> dict[str, RobotTable]:
        """Each pair by the prefix of its joints' names: "" for one pair, "left_" and "right_" for two."""
        return {f"{side}_": pair for side, pair in self.pairs.items()} or {"": self}

    @property
    def all_cameras(self) -> dict[str, CameraTable]:
        """Every camera by the name it has in a dataset: those of a pair carry its side."""
        own = {f"{side}_{n}": c for side, pair in self.pairs.items() for n, c in pair.cameras.items()}
        return {**self.cameras, **own}

    @staticmethod
    def parse(table: Mapping[str, Any], where: str = "[robot]") -> RobotTable:
        """Read the table. Raises ConfigError naming the key, the value and what is accepted."""
        values = dict(table)
        cameras = values.pop("cameras", {})
        care = CareTable.parse(values.pop("care", {}), where)
        limits = _limits(values.pop("limits", {}), where)
        sides = {side: values.pop(side) for side in SIDES if values.get(side) is not None}
        for side in SIDES:
            values.pop(side, None)
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
        named = {n: _camera(n, c, where) for n, c in cameras.items()}
        parsed = RobotTable(**fields, cameras=named, care=care, limits=limits)
        if sides:
            return parsed._with_pairs(sides, where)
        parsed._check(where)
        return parsed

    def _with_pairs(self, sides: Mapping[str, Any], where: str) -> RobotTable:
        """Two pairs, their ids as LeRobot's bi_so_follower makes them: ID_left and ID_right."""
        if set(sides) != set(SIDES):
            raise ConfigError(f"{where}: only one of left and right is set", f"{where[:-1]}.left] and .right]")
        pairs = {}
        for side, table in sides.items():
            place = f"{where[:-1]}.{side}]"
            if not isinstance(table, Mapping):
                raise _bad(where, side, table, f"a table {place} with follower and leader")
            wrong = sorted(set(table) - {"follower", "leader", "follower_id", "leader_id", "cameras"})
            if wrong:
                raise _bad(place, wrong[0], table[wrong[0]], "follower, leader, follower_id, leader_id or cameras")
            own = RobotTable.parse({**_plain(self), **table}, place)
            pairs[side] = replace(
                own,
                care=self.care,
                limits=_of_side(self.limits, side),
                follower_id=own.follower_id or self._pair_id("follower", side),
                leader_id=own.leader_id or self._pair_id("leader", side),
            )
        ports = [p for t in pairs.values() for p in (t.follower, t.leader) if p and not t.virtual]
        if len(set(ports)) != len(ports):
            raise ConfigError(f"{where}: two arms have the same port", "each arm has its own")
        if len({t.virtual for t in pairs.values()}) > 1:
            raise ConfigError(f"{where}: one side is virtual and the other is not", "make both virtual, or none")
        # Follower and leader here are what messages show; the pairs are what is opened.
        followers, leaders = [t.follower for t in pairs.values()], [t.leader for t in pairs.values()]
        whole = replace(self, follower=" + ".join(followers), leader=" + ".join(filter(None, leaders)), pairs=pairs)
        clash = sorted(set(self.cameras) & {f"{s}_{n}" for s, pair in pairs.items() for n in pair.cameras})
        if clash:
            raise _bad(where, "cameras", clash[0], "another name: a side's camera is called that already")
        whole._check_cameras(where)
        return whole

    def _pair_id(self, role: str, side: str) -> str:
        return f"{role}_{side}" if self.calibration_dir else f"{self.id}_{side}"

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
            self._check_cameras(where)

    def _check_cameras(self, where: str) -> None:
        for camera in self.cameras.values() if not self.virtual else ():
            if not camera.source:
                raise ConfigError(f"{where}: camera {camera.name} has no source", 'for example source = "/dev/video0"')


def _keys() -> list[str]:
    tables = ("cameras", "care", "limits", "left", "right")
    return [k for k in RobotTable.__dataclass_fields__ if k not in (*tables, "pairs")] + list(tables)


def _plain(table: RobotTable) -> dict[str, Any]:
    """What both pairs have in common."""
    return {k: getattr(table, k) for k in ("type", "id", "calibration_dir", "units", "max_relative_target",
                                           "joint_margin")}  # fmt: skip


def _of_side(limits: Mapping[str, tuple[float, float]], side: str) -> dict[str, tuple[float, float]]:
    return {n.removeprefix(f"{side}_"): v for n, v in limits.items() if n.startswith(f"{side}_")}


def _limits(table: Any, where: str) -> dict[str, tuple[float, float]]:
    """`[robot.limits]`: joint → [low, high] in the table's units."""
    if not isinstance(table, Mapping):
        raise _bad(where, "limits", table, f"a table {where[:-1]}.limits] of JOINT = [LOW, HIGH]")
    found = {}
    for name, pair in table.items():
        numbers = isinstance(pair, list | tuple) and len(pair) == 2 and not any(isinstance(v, bool) for v in pair)
        if not numbers or not all(isinstance(v, int | float) for v in pair) or pair[0] >= pair[1]:
            raise _bad(where, f"limits.{name}", pair, "two numbers that rise, such as [-60, 60]")
        found[str(name)] = (float(pair[0]), float(pair[1]))
    return found


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
