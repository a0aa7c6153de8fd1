"""The arms and cameras that are open, one pair or two: observe, command, and tend to their health, once a period each.

Names of two pairs are those of LeRobot's bi_so_follower (left_…, right_…). Not for opening devices (arms.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot.care import LEVELS, RELEASE, SLOW
from robot.config import RobotTable
from robot.eyes import Eyes
from robot.limits import GoalGuard
from robot.ports import device_errors
from robot.ramp import SPEED
from robot.torque import Torque, let_down
from robot.video import Frame
from robot.vitals import LineCounter, ServoWatch

Pose = NDArray[np.float32]
_STORIES = 50
"""Findings that a take's report keeps."""


@dataclass(frozen=True)
class Side:
    """One pair of arms: LeRobot's devices, the simulated bench around them if it is one, what watches them."""

    prefix: str
    table: RobotTable
    follower: Any
    leader: Any
    station: Any
    watch: ServoWatch
    torque: Torque
    lines: dict[str, LineCounter]


class Bench:
    """Opened followers, their cameras and, if asked for, leaders. Joint order and units are those of the table.

    `observe` and `command` raise RobotError when a device stops answering.
    """

    def __init__(self, sides: tuple[Side, ...], table: RobotTable, fps: int, limits: tuple[Pose, Pose] | None) -> None:
        self._sides = sides
        self.table = table
        self.fps = fps
        self.joints = tuple(s.prefix + name for s in sides for name in s.follower.action_features)
        self._of = {s.prefix: [s.prefix + name for name in s.follower.action_features] for s in sides}
        self._shared = set(table.cameras)
        self.cameras: dict[str, tuple[int, int]] = {}
        devices: dict[str, Any] = {}
        for side in sides:
            for name, size in side.follower.observation_features.items():
                if isinstance(size, tuple):
                    self.cameras[self._camera(side, name)] = (int(size[0]), int(size[1]))
                    devices[self._camera(side, name)] = side.follower.cameras[name]
        self.robot_type = "bi_so_follower" if table.pairs else str(sides[0].follower.robot_type)
        self.eyes = Eyes(devices)
        low, high = limits or (None, None)
        self._guard = GoalGuard(self.joints, low, high, catch_up=SPEED / fps)
        self._present: Pose | None = None
        self._periods = 0
        self._before: dict[str, int] = {}
        self._stories: list[dict[str, Any]] = []

    def _camera(self, side: Side, name: str) -> str:
        return name if name in self._shared else side.prefix + name

    @property
    def ports(self) -> dict[str, str]:
        """Role → port, or what stands for it on a virtual bench."""
        found = {}
        for s in self._sides:
            found[f"{s.prefix}follower"] = s.table.follower
            found[f"{s.prefix}leader"] = s.table.leader if s.station is None else str(s.station.spec.leader)
        return found

    @property
    def virtual(self) -> bool:
        """Whether this is a simulation."""
        return self._sides[0].station is not None

    @property
    def stepped(self) -> bool:
        """Whether time here advances with each command instead of with the clock, so that nobody need wait."""
        return self.virtual and all(s.station.spec.clock == "step" for s in self._sides)

    @property
    def task_text(self) -> str:
        """The task in the simulator's words; empty where there is none."""
        return str(self._sides[0].station.task_text) if self.virtual else ""

    def observe(self) -> tuple[Pose, dict[str, Frame]]:
        """Joint positions of the followers, shape (joints,) float32, and one RGB frame per camera."""
        pose: dict[str, float] = {}
        images: dict[str, Frame] = {}
        for side in self._sides:
            name = f"the {side.prefix.replace('_', ' ')}follower"
            with device_errors(name, side.table.follower, side.follower.cameras):
                seen = side.follower.get_observation()
            for camera in side.follower.cameras:
                if camera in seen:
                    images[self._camera(side, camera)] = seen[camera]
            pose |= {side.prefix + name: seen[name] for name in side.follower.action_features}
        self.eyes.seen(images)
        self._present = np.array([pose[name] for name in self.joints], dtype=np.float32)
        return self._present, images

    def positions(self) -> Pose:
        """Joint positions of the followers alone, shape (joints,) float32: a camera that is gone is no matter here."""
        pose: dict[str, float] = {}
        for side in self._sides:
            with device_errors(f"the {side.prefix.replace('_', ' ')}follower", side.table.follower):
                seen = side.follower.bus.sync_read("Present_Position")
            pose |= {f"{side.prefix}{name}.pos": value for name, value in seen.items()}
        self._present = np.array([pose[name] for name in self.joints], dtype=np.float32)
        return self._present

    def leader_pose(self) -> Pose:
        """Joint positions of the leaders, shape (joints,) float32."""
        values: list[float] = []
        for side in self._sides:
            with device_errors(f"the {side.prefix.replace('_', ' ')}leader", side.table.leader):
                given = side.leader.get_action()
            values += [given[name] for name in side.follower.action_features]
        return np.array(values, dtype=np.float32)

    def command(self, pose: Pose) -> Pose:
        """Send a goal to the followers; gives what was sent, which limits and care may have changed.

        A released arm is sent nothing.
        """
        if self.released:
            return self._present if self._present is not None else pose
        step = self.table.care.slow_speed / self.fps if self.level >= SLOW else None
        goal = self._guard.goal(pose, self._present, step, self._tripped())
        by_name = dict(zip(self.joints, goal.tolist(), strict=True))
        sent: list[float] = []
        for side in self._sides:
            names = self._of[side.prefix]
            wanted = {name.removeprefix(side.prefix): by_name[name] for name in names}
            with device_errors(f"the {side.prefix.replace('_', ' ')}follower", side.table.follower):
                given = side.follower.send_action(wanted)
            sent += [given[name.removeprefix(side.prefix)] for name in names]
        result = np.array(sent, dtype=np.float32)
        self._guard.sent(pose, result)
        return result

    # -- care --------------------------------------------------------------------------------------------------------

    @property
    def level(self) -> int:
        """The worst of the arms: OK, WARN, SLOW or RELEASE (care.py)."""
        return max(s.watch.care.level for s in self._sides)

    @property
    def released(self) -> bool:
        """Whether the arms were let go."""
        return any(s.watch.released for s in self._sides)

    def health(self) -> dict[str, Any]:
        """For progress and status: level, its reason, the hottest joint in °C, the lowest voltage."""
        cares = [s.watch.care for s in self._sides]
        return {
            "level": LEVELS[self.level],
            "reason": "; ".join(c.reason for c in cares if c.level == self.level and c.reason),
            "celsius": max(c.hottest for c in cares),
            "volts": min(c.lowest_v for c in cares),
        }

    def tend(self) -> list[dict[str, Any]]:
        """Once a period, after `command`: judge the servos; gives what has changed. Lets the arms go if it must."""
        self._periods += 1
        now = self._periods / self.fps if self.stepped else time.monotonic()
        found: list[dict[str, Any]] = []
        for side in self._sides:
            with device_errors(f"the {side.prefix.replace('_', ' ')}follower", side.table.follower):
                news = side.watch.step(now)
            arm = side.prefix.replace("_", " ")
            found += [{**f.to_json(), "joint": side.prefix + f.joint, "text": arm + f.text} for f in news]
        if self.level == RELEASE and not self.released:
            for side in self._sides:
                side.watch.released = True
            let_down([side.torque for side in self._sides])
        self._stories = (self._stories + found)[:_STORIES]
        return found

    def lower(self, why: str = "") -> None:
        """The session is over: let the arms down gently, together. `why` that is not at rest, if it is not.

        An arm that does not answer cannot be told, which is told to the supervisor (torque.py).
        """
        if not self.virtual:
            let_down([side.torque for side in self._sides if not side.torque.tried], why)

    def _tripped(self) -> tuple[str, ...]:
        return tuple(f"{s.prefix}{joint}.pos" for s in self._sides for joint in s.watch.care.tripped)

    # -- takes -------------------------------------------------------------------------------------------------------

    def begin_take(self, seed: int) -> None:
        """A virtual bench gets a new scene; on real arms the person does that. What a take's report counts starts."""
        for side in self._sides:
            if side.station is not None:
                side.station.begin_take(seed)
        self._guard.begin()
        self.eyes.begin()
        self._before = self._errors()
        self._stories = []

    def _errors(self) -> dict[str, int]:
        return {s.prefix + role: line.errors for s in self._sides for role, line in s.lines.items()}

    def tally(self) -> dict[str, Any]:
        """What happened in the take so far: for its quality report (quality.py)."""
        return {
            "clipped": self._guard.clipped,
            "bus_errors": {name: n - self._before.get(name, 0) for name, n in self._errors().items()},
            "stale": dict(self.eyes.stale),
            "oldest_ms": {name: round(age * 1e3, 1) for name, age in self.eyes.oldest.items()},
            "care": list(self._stories),
        }

    def preview(self) -> dict[str, Any]:
        """For the live picture of a take: where the joints are, how old each camera's frame is, how the arms are."""
        joints = [] if self._present is None else self._present.tolist()
        return {
            "joints": {n: round(v, 1) for n, v in zip(self.joints, joints, strict=False)},
            "cameras": {n: round(a * 1e3, 1) for n, a in self.eyes.age.items()},
            "care": self.health(),
        }

    def success(self) -> bool | None:
        """What the simulator says of the take so far; None where nobody can tell. Two sides: both must succeed."""
        if not self.virtual:
            return None
        said = [s.station.success() for s in self._sides]
        return None if None in said else all(said)

    def leader_done(self) -> bool:
        """Whether a virtual leader's script has ended; of two sides, both."""
        return self.virtual and all(s.station.leader_done() for s in self._sides)
