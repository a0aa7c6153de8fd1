"""Scripted experts: what a person's hand on the leader would do to solve a task, as joint angles per control period.

They see the simulator's ground truth and move nothing but the leader; the follower follows over the bus, as a real one.
Not for replaying recordings (replay.py).
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
from numpy.typing import NDArray

from robot.virtual.ik import ARM, PAN_AXIS, ArmSolver, Reach, tool_rotation
from robot.virtual.scene import Scene
from zk0d.errors import RobotError

Vector = NDArray[np.float64]
Script = Generator[Vector | None, None, None]
"""Joint angles (6,) rad per control period; None while thinking, so that no step takes long."""

GRASP_TOOL = np.array([0.0085, 0.0, -0.0925])
"""Between the jaws, gripper frame (m): a 25 mm cube has 4 mm to the fixed jaw, the tips 2 mm to the table."""
UP = np.array([0.0, 0.0, 1.0])
OPEN, CLOSED = 0.95, -0.12
SPEED = 1.1
"""Mean joint speed of a glide (rad/s); its peak is 1.9 times that."""
TRIES = 3


class Expert:
    """One take's script. Iterate it: (6,) rad for each control period; `done` once it has nothing more to show."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self.scene = scene
        self.rng = np.random.default_rng([seed, 101])
        self.solver = ArmSolver(scene.env)
        self.at: Vector = scene.target.copy()
        self.pace = float(self.rng.uniform(0.85, 1.2))
        self.done = False
        scripts = {
            "Touch": self._touch,
            "PickLift": self._pick_lift,
            "PickAndPlace": self._pick_and_place,
            "Move": self._move,
            "LookAt": self._look_at,
        }
        if scene.spec.task not in scripts:
            raise RobotError(f"no scripted expert for {scene.spec.task!r}", f"there is one for {', '.join(scripts)}")
        self._script = scripts[scene.spec.task]()
        # Thinking takes longer than the bus may stay silent. The first thoughts are over before the take begins.
        self._ahead: Vector | None = None
        while self._ahead is None:
            self._ahead = next(self._script)

    def next(self) -> Vector:
        """The leader's angles for the next control period; the last ones again when the script has ended."""
        try:
            step = next(self._script) if self._ahead is None else self._ahead
            self._ahead = None
        except StopIteration:
            self.done = True
            return self.at
        if step is not None:  # thinking: hold still
            self.at = step
        return self.at

    # -- movements

    def _seconds(self, goal: Vector, least: float) -> float:
        span = np.abs(goal - self.at)
        span[5] *= 0.6  # a finger closes faster than an arm swings
        return max(float(span.max()) / (SPEED * self.pace), least)

    def _glide(self, goal: Vector, least: float = 0.4) -> Script:
        """Minimum-jerk movement in joint space (Flash & Hogan 1985, the shape of a human reach)."""
        start = self.at.copy()
        count = max(2, round(self._seconds(goal, least) * self.scene.spec.fps))
        for i in range(1, count + 1):
            t = i / count
            yield start + (goal - start) * (10 * t**3 - 15 * t**4 + 6 * t**5)

    def _thread(self, knots: list[Vector], least: float) -> Script:
        """One minimum-jerk movement through several knots (the first follows from here), evenly in knot number."""
        path = np.stack([self.at, *knots])
        span = float(np.abs(np.diff(path[:, :ARM], axis=0)).max(axis=1).sum())
        count = max(2, round(max(span / (SPEED * self.pace), least) * self.scene.spec.fps))
        for i in range(1, count + 1):
            t = i / count
            where = (10 * t**3 - 15 * t**4 + 6 * t**5) * (len(path) - 1)
            k = min(int(where), len(path) - 2)
            yield path[k] + (path[k + 1] - path[k]) * (where - k)

    def _hold(self, seconds: float) -> Script:
        for _ in range(max(1, round(seconds * self.scene.spec.fps))):
            yield self.at

    def _until_success(self, seconds: float, linger: float = 0.3) -> Script:
        """Wait for the simulator's flag, then stay a moment."""
        for _ in range(round(seconds * self.scene.spec.fps)):
            if self.scene.succeeding:
                break
            yield self.at
        yield from self._hold(linger)

    # -- reaching

    def _line(
        self, first: Vector, tool: Vector, goals: list[Vector], rotation: Vector, gripper: float
    ) -> Generator[None, None, list[Vector]]:
        """Joint angles along a straight path of the tool point."""
        knots = []
        angles = first
        for number, goal in enumerate(goals):
            angles = self.solver.solve(angles, tool, goal, rotation, steps=40).angles
            knots.append(np.append(angles, gripper))
            if number % 2:
                yield None
        return knots

    def _plan(self, position: Vector, yaw: float) -> Generator[None, None, tuple[Reach, Vector]]:
        """The steepest approach that reaches, with the jaws across the cube's faces. Gives (reach, rotation)."""
        out = position - PAN_AXIS
        azimuth = float(np.arctan2(out[1], out[0]))
        best: tuple[float, Reach, Vector] | None = None
        for tilt in np.radians([0, 8, 16, 24, 32, 40, 50, 60, 70, 80]):
            for roll, penalty in _rolls(yaw - azimuth, float(tilt)):
                rotation = tool_rotation(azimuth, float(tilt), roll)
                reach = self._seeded(GRASP_TOOL, position, rotation, azimuth, roll)
                yield None
                # The hover above must be reachable too: a plan that only reaches the cube cannot be approached.
                above = position + rotation[:, 2] * 0.05
                hover = self.solver.solve(reach.angles, GRASP_TOOL, above, rotation, steps=40)
                cost = 100 * (reach.position_error + hover.position_error) + reach.tilt_error + penalty
                if best is None or cost < best[0]:
                    best = (cost, reach, rotation)
            if best is not None and best[1].good and best[0] < 0.5:
                break
        assert best is not None
        return best[1:]

    def _seeded(self, tool: Vector, goal: Vector, rotation: Vector, azimuth: float, roll: float) -> Reach:
        found: Reach | None = None
        for lift, elbow, wrist in ((-0.6, 0.6, 1.3), (0.2, 0.2, 1.0), (self.at[1], self.at[2], self.at[3])):
            reach = self.solver.solve(np.array([-azimuth, lift, elbow, wrist, roll]), tool, goal, rotation)
            if found is None or reach.position_error + 0.02 * reach.tilt_error < (
                found.position_error + 0.02 * found.tilt_error
            ):
                found = reach
            if found.good:
                break
        assert found is not None
        return found

    # -- tasks

    def _pick(self, position: Vector, yaw: float, lift: float) -> Script:
        """Approach, grasp and lift a cube; ends with the gripper closed above where it was."""
        jitter = np.append(self.rng.uniform(-0.001, 0.001, 2), 0.0)
        reach, rotation = yield from self._plan(position + jitter, yaw)
        back = rotation[:, 2]
        goal = position + jitter
        height = float(self.rng.uniform(0.055, 0.075))
        hover = self.solver.solve(reach.angles, GRASP_TOOL, goal + back * height, rotation).angles
        away = self.solver.solve(hover, GRASP_TOOL, goal + back * height + 0.03 * UP, rotation).angles
        yield from self._glide(np.append(away, OPEN))
        yield from self._glide(np.append(hover, OPEN), least=0.25)
        path = [goal + back * height * s for s in (0.75, 0.5, 0.25, 0.0)]
        knots = yield from self._line(hover, GRASP_TOOL, path, rotation, OPEN)
        yield from self._thread(knots, least=0.7)
        yield from self._hold(0.1)
        yield from self._squeeze()
        rise = [goal + lift * s * UP for s in (0.25, 0.5, 0.75, 1.0)]
        knots = yield from self._line(self.at[:ARM], GRASP_TOOL, rise, rotation, CLOSED)
        yield from self._thread(knots, least=0.9)

    def _squeeze(self) -> Script:
        closed = self.at.copy()
        closed[5] = CLOSED
        yield from self._glide(closed, least=0.6)
        yield from self._hold(0.15)

    def _pick_lift(self) -> Script:
        env = self.scene.env
        for _ in range(TRIES):
            pose = env._get_target_pose()
            yield from self._pick(pose[:3], _yaw(pose[3:]), lift=0.09)
            yield from self._until_success(0.4)
            if self.scene.succeeding:
                return
            yield from self._recover()

    def _recover(self) -> Script:
        """Missed it: open and back off upward, like a person would before trying again."""
        raised = self.at.copy()
        raised[1] -= 0.3
        raised[5] = OPEN
        yield from self._glide(raised)

    def _pick_and_place(self) -> Script:
        env = self.scene.env
        for _ in range(TRIES):
            pose = env._get_object_pose()
            yield from self._pick(pose[:3], _yaw(pose[3:]), lift=0.07)
            if not env._is_grasping():
                yield from self._recover()
                continue
            yield from self._place(env._get_target_pos(), float(pose[2]))
            yield from self._until_success(0.5)
            if self.scene.succeeding:
                return

    def _place(self, target: Vector, height: float) -> Script:
        carried = np.array([target[0], target[1], height + 0.004])
        reach, rotation = yield from self._plan(carried, float(np.arctan2(*(carried - PAN_AXIS)[1::-1])) + np.pi / 2)
        above = self.solver.solve(reach.angles, GRASP_TOOL, carried + 0.06 * UP, rotation).angles
        yield from self._glide(np.append(above, CLOSED), least=0.8)
        down = [carried + 0.06 * s * UP for s in (0.66, 0.33, 0.0)]
        knots = yield from self._line(above, GRASP_TOOL, down, rotation, CLOSED)
        yield from self._thread(knots, least=0.7)
        opened = self.at.copy()
        opened[5] = 0.6
        yield from self._glide(opened, least=0.5)
        away = [carried + rotation[:, 2] * s for s in (0.02, 0.04, 0.06)]
        knots = yield from self._line(self.at[:ARM], GRASP_TOOL, away, rotation, 0.6)
        yield from self._thread(knots, least=0.6)

    def _touch(self) -> Script:
        env = self.scene.env
        position = env._get_target_pose()[:3] + np.append(self.rng.uniform(-0.003, 0.003, 2), 0.012)
        out = position - PAN_AXIS
        azimuth = float(np.arctan2(out[1], out[0]))
        tool = env.model.site_pos[env._tcp_site_id].copy()
        gripper = float(self.at[5])
        for tilt in np.radians([10, 25, 40, 55, 70, 85]):
            rotation = tool_rotation(azimuth, float(tilt), 0.0)
            reach = self._seeded(tool, position, rotation, azimuth, 0.0)
            yield None
            if reach.good:
                break
        hover = self.solver.solve(reach.angles, tool, position + 0.07 * UP, rotation).angles
        yield from self._glide(np.append(hover, gripper), least=1.0)
        path = [position + 0.07 * s * UP for s in (0.66, 0.33, 0.0)]
        knots = yield from self._line(hover, tool, path, rotation, gripper)
        yield from self._thread(knots, least=0.9)
        yield from self._until_success(1.0, linger=0.5)

    def _move(self) -> Script:
        env = self.scene.env
        tool = env.model.site_pos[env._tcp_site_id].copy()
        start = self.solver.point(self.at[:ARM], tool)
        rotation = env.data.xmat[env._gripper_body_id].reshape(3, 3).copy()
        way = np.asarray(env._dir_vec) * env.config.target_distance * self.rng.uniform(1.0, 1.15)
        yield from self._hold(float(self.rng.uniform(0.1, 0.4)))
        path = [start + way * s for s in (0.25, 0.5, 0.75, 1.0)]
        knots = yield from self._line(self.at[:ARM], tool, path, rotation, float(self.at[5]))
        yield from self._thread(knots, least=2.0)
        yield from self._until_success(1.0, linger=0.6)

    def _look_at(self) -> Script:
        target = self.scene.env._gaze_target_pos()
        out = target - PAN_AXIS
        best: tuple[float, Vector] | None = None
        for lift, elbow, wrist in ((-0.9, 0.9, 0.9), (-1.2, 1.0, 1.5), (-0.5, 0.0, 1.5), (-1.5, 0.5, 1.6)):
            start = np.array([-np.arctan2(out[1], out[0]), lift, elbow, wrist, 0.0])
            angles, miss = self.solver.gaze(start, target)
            yield None
            low = max(0.0, 0.05 - float(self.solver.point(angles, GRASP_TOOL)[2]))  # the tips must clear the table
            cost = miss + 20 * low + 0.02 * float(np.abs(angles - self.at[:ARM]).max())
            if best is None or cost < best[0]:
                best = (cost, angles)
        assert best is not None
        yield from self._hold(float(self.rng.uniform(0.1, 0.4)))
        yield from self._glide(np.append(best[1], self.at[5]), least=1.6)
        yield from self._until_success(1.0, linger=0.6)


def _yaw(quaternion: Vector) -> float:
    w, x, y, z = quaternion
    return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))


def _rolls(turn: float, tilt: float) -> list[tuple[float, float]]:
    """Roll angles to try, best first, each with a penalty: across the cube's faces where that keeps the jaws level."""
    out = []
    for quarter in range(4):
        roll = (turn + quarter * np.pi / 2 + np.pi) % (2 * np.pi) - np.pi
        level = abs(np.cos(roll) * np.sin(tilt))
        if abs(roll) < 2.5 and level < 0.3:
            out.append((float(roll), 0.05 * abs(roll) + level))
    if not out:  # a cube turned badly for a flat approach: squeeze sideways, it turns between the jaws
        out = [(np.pi / 2, 0.3), (-np.pi / 2, 0.3)]
    return sorted(out, key=lambda item: item[1])[:2]
