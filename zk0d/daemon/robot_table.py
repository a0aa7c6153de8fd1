"""The `[robot]` table of zk0d.toml: its defaults and the check of its keys, one pair of arms or two.

The worker reads it once more and checks what only it can know (robot/config.py). Not for opening anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zk0d.errors import ConfigError

SIDES = ("left", "right")
_TEXT = ("follower", "leader", "id", "follower_id", "leader_id", "calibration_dir")
_CHOICES = {"type": ("so101", "so100"), "units": ("degrees", "range")}
_NUMBERS = ("max_relative_target", "joint_margin")
_TABLES = ("cameras", "care", "limits", *SIDES)
_CARE = ("warn_c", "slow_c", "release_c", "warn_load", "slow_load", "warn_a", "slow_a", "release_v", "slow_speed",
         "grip_load", "grip_after_s", "grip_torque", "hold_torque")  # fmt: skip
DEFAULT_ROBOT: dict[str, Any] = {
    "type": "so101",
    "follower": "",
    "leader": "",
    "id": "zk0",
    "calibration_dir": "",
    "units": "degrees",
    "cameras": {"front": {"source": "/dev/video0", "height": 96, "width": 96}},
}


def is_virtual(robot: dict[str, Any]) -> bool:
    """True when the `[robot]` table names a virtual bench, whose leader is virtual too."""
    followers = [t.get("follower", "") for t in pairs(robot)]
    return all(str(f).startswith("virtual:") for f in followers)


def pairs(robot: dict[str, Any]) -> list[dict[str, Any]]:
    """The table of each pair of arms: `left` and `right`, or the table itself."""
    return [robot[side] for side in SIDES if robot.get(side)] or [robot]


def check_robot(content: Any, where: str) -> dict[str, Any]:
    """Check a (partial) `[robot]` table; the recorder checks the rest. Raises ConfigError naming the key."""
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: robot = {content!r} is not a table", "write [robot] above its keys")
    for key, value in content.items():
        if key in _CHOICES:
            ok, accepts = value in _CHOICES[key], " or ".join(map(repr, _CHOICES[key]))
        elif key in _TEXT:
            ok, accepts = isinstance(value, str), "text"
        elif key in _NUMBERS:
            ok, accepts = _positive(value), "a number above 0"
        elif key in _TABLES:
            check, accepts = _CHECKS[key]
            ok = isinstance(value, dict) and check(value)
        else:
            known = ", ".join([*_CHOICES, *_TEXT, *_NUMBERS, *_TABLES])
            raise ConfigError(f"{where}: unknown key robot.{key}", f"[robot] knows {known}")
        if not ok:
            raise ConfigError(f"{where}: robot.{key} = {value!r} cannot be used", f"accepted: {accepts}")
    return dict(content)


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _cameras_ok(value: dict[str, Any]) -> bool:
    for camera in value.values():
        if not isinstance(camera, dict) or not isinstance(camera.get("source", ""), str):
            return False
        sizes = (camera.get("height", 480), camera.get("width", 640))
        if any(isinstance(n, bool) or not isinstance(n, int) or not 16 <= n <= 4096 or n % 2 for n in sizes):
            return False
    return True


def _care_ok(value: dict[str, Any]) -> bool:
    return all(key in _CARE and _positive(number) for key, number in value.items())


def _limits_ok(value: dict[str, Any]) -> bool:
    return all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(n, int | float) and not isinstance(n, bool) for n in pair)
        and pair[0] < pair[1]
        for pair in value.values()
    )


def _side_ok(value: dict[str, Any]) -> bool:
    texts = ("follower", "leader", "follower_id", "leader_id")
    others = {k: v for k, v in value.items() if k not in texts}
    return (
        all(isinstance(value.get(k, ""), str) for k in texts)
        and set(others) <= {"cameras"}
        and isinstance(others.get("cameras", {}), dict)
        and _cameras_ok(others.get("cameras", {}))
    )


_SIDE = "a table [robot.SIDE] with follower, leader and cameras [robot.SIDE.cameras.NAME]"
_CHECKS: dict[str, tuple[Callable[[dict[str, Any]], bool], str]] = {
    "cameras": (_cameras_ok, "tables [robot.cameras.NAME] with source, height and width in pixels (even, 16 to 4096)"),
    "care": (_care_ok, f"a table [robot.care] of numbers above 0: {', '.join(_CARE)}"),
    "limits": (_limits_ok, "a table [robot.limits] of JOINT = [LOW, HIGH]"),
    "left": (_side_ok, _SIDE),
    "right": (_side_ok, _SIDE),
}
