"""What may be asked of a follower: goals within its joints' ranges, slowly when care says so; a tripped joint stays.

Pure arithmetic on poses. `max_relative_target` is LeRobot's own and works after this. Not for judging servos (care.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0d.errors import ConfigError

Pose = NDArray[np.float32]
_TURN = 4095.0
_MOVED = 0.5
"""A goal that was changed by more than this (degrees or range units) counts as clipped."""


class GoalGuard:
    """The follower's goals. Order and units of joints as the bench's."""

    def __init__(
        self, joints: tuple[str, ...], low: Pose | None = None, high: Pose | None = None, catch_up: float | None = None
    ) -> None:
        """`catch_up`: most that a goal moves in a period while it makes up for what it was held back; None for any."""
        self._joints = joints
        self._low, self._high = low, high
        self._catch_up = catch_up
        self._behind = False
        """A goal was held back and is not where it was asked to be yet: no leap there."""
        self._last: Pose | None = None
        self.clipped = 0
        """Periods in which a goal was changed, since `begin`."""

    def begin(self) -> None:
        """A take begins."""
        self.clipped = 0

    def goal(self, asked: Pose, present: Pose | None, step: float | None, frozen: tuple[str, ...]) -> Pose:
        """The goal to send for `asked`. `step`: most that a joint's goal may move in this period, None for any;
        `frozen`: joints whose goal is where they stand."""
        given = asked.copy()
        if self._low is not None and self._high is not None:
            np.clip(given, self._low, self._high, out=given)
        wanted = given.copy()
        start = self._last if self._last is not None else present
        if step is None and self._behind:
            step = self._catch_up
        if step is not None and start is not None:
            np.clip(given, start - step, start + step, out=given)
        if frozen and present is not None:
            for name in frozen:
                at = self._joints.index(name)
                given[at] = present[at]
        self._behind = bool(np.abs(wanted - given).max() > _MOVED)
        self._last = given
        return given

    def sent(self, asked: Pose, sent: Pose) -> None:
        """What came of it in the end, LeRobot's own limit included."""
        self.clipped += bool(np.abs(sent - asked).max() > _MOVED)


def joint_limits(
    calibration: Mapping[str, Any], units: str, margin: float, own: Mapping[str, tuple[float, float]]
) -> tuple[Pose, Pose]:
    """(low, high) of every joint in `units` from LeRobot's calibration, `margin` inside; `own` narrows some of them.

    Degrees count from the middle of the range (LeRobot's _normalize); the gripper is 0…100 in both units.
    """
    low, high = [], []
    for name, joint in calibration.items():
        if name == "gripper":
            a, b = 0.0, 100.0
        elif units == "degrees":
            half = (joint.range_max - joint.range_min) / 2 * 360 / _TURN
            a, b = -max(half - margin, 0.0), max(half - margin, 0.0)
        else:
            a, b = -100.0 + margin, 100.0 - margin
        x, y = own.get(name, (a, b))
        low.append(max(a, x))
        high.append(min(b, y))
    unknown = sorted(set(own) - set(calibration))
    if unknown:
        raise ConfigError(f"[robot.limits]: there is no joint {unknown[0]}", f"joints are {', '.join(calibration)}")
    return np.array(low, dtype=np.float32), np.array(high, dtype=np.float32)
