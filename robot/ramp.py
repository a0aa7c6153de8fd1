"""Moves an arm to where it is to be, no faster than a person can follow: to the leader at a start, to rest at the end.

Care for the servos and commands go on within. Not for what a loop does once the arm is there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from robot.care import SLOW
from robot.ear import ENDS
from zk0d.errors import RobotError

if TYPE_CHECKING:
    from robot.bench import Bench, Pose
    from robot.ear import Ear

SPEED = 60.0
"""Degrees or range units per second: no goal of a ramp moves faster."""
REST_SPEED = 45.0
"""The same on the way back to rest."""
_GATHER_S = 0.3
"""How long it takes to come up to that."""
_SETTLE_S = 0.15
"""How long the last goal is held: servos are behind theirs."""
_STILL = 0.1
"""A goal that is let move by less than this share of its step has come as far as limits permit."""
_REST_WITHIN_S = 9.0
"""Within the grace that whoever ends us gives (zk0d.daemon.workers, TimeoutStopSec=)."""


def ramp(
    bench: Bench, target: Callable[[], Pose], ear: Ear, speed: float = SPEED, ends: tuple[str, ...] = ENDS,
    within_s: float = math.inf, *, by_person: bool = False,
) -> str:  # fmt: skip
    """Move the followers to `target()`, which is asked each period and may move itself, in the bench's units.

    Gives "" once they are there, or as near as limits let them; else what ended it: a command of `ends`, which is
    taken (`by_person`: see Ear.end), "care" when the arm was let go, "time". Raises RobotError when a device does not
    answer.
    """
    period, began = 1.0 / bench.fps, time.perf_counter()
    goal = bench.positions().copy()
    steps, there = 0, 0.0
    while time.perf_counter() - began < within_s:
        steps += 1
        fastest = min(speed, bench.table.care.slow_speed) if bench.level >= SLOW else speed
        step = fastest * period * min(1.0, steps * period / _GATHER_S)
        away = target() - goal
        before, goal = goal, bench.command((goal + np.clip(away, -step, step)).astype(np.float32))
        sent = time.perf_counter()  # a late period is not made up for: the next step is a whole one later
        for found in bench.tend():
            ear.emit("care", **found)
        if bench.released:
            return "care"
        arrived = np.abs(away).max() <= step or np.abs(goal - before).max() <= _STILL * fastest * period
        there = there + period if arrived else 0.0
        if there >= _SETTLE_S:
            return ""
        if word := ear.end(0.0 if bench.stepped else sent + period - time.perf_counter(), ends, by_person=by_person):
            return word
        bench.positions()
    return "time"


def put_down(bench: Bench, home: Pose, ear: Ear, *, limp: bool = False) -> None:
    """The session is over: slowly back to `home`, where the arms stood, then let down and without torque.

    `limp`: let down where they are, at once, as after a person's second `stop` or a `release` on the way and where the
    way back is barred; the reason is told. A first one, which crosses the session's own end, and a `stop` that no
    person said mean only what that end means already: at a poweroff systemd and zk0d say one each. What goes wrong
    here is told, too, and hides nothing that went wrong before.
    """
    if bench.virtual:
        return  # a simulation has no arm that could drop
    why = "told to release it" if limp else ""
    if not limp and not bench.released:
        try:
            first, until = not ear.stopped, time.perf_counter() + _REST_WITHIN_S
            word = _back(bench, home, ear, until)
            if word == "stop" and first:
                word = _back(bench, home, ear, until)
            why = {"": "", "care": "", "time": f"it did not get back to rest in {_REST_WITHIN_S:.0f} s"}.get(
                word, f"told to {word} on its way to rest"
            )
        except RobotError as error:
            why = f"it cannot go back to rest: {error.message}"
    bench.lower(why)


def _back(bench: Bench, home: Pose, ear: Ear, until: float) -> str:
    within_s = until - time.perf_counter()
    return ramp(bench, lambda: home, ear, REST_SPEED, ("stop", "release"), within_s, by_person=True)
