"""Inverse kinematics of the five-joint arm for the scripted experts: a tool point, an approach tilt, a jaw direction.

Damped least squares from so101_nexus.kinematics on a scratch copy of the state. Not for trajectories (expert.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot.virtual.joints import LIMITS_RAD

Vector = NDArray[np.float64]
ARM = 5
PAN_AXIS = np.array([0.0388, 0.0, 0.0])
MARGIN_RAD = 0.01


@dataclass(frozen=True)
class Reach:
    """A solution: joint angles (5,) rad, and how far it misses (m, rad)."""

    angles: Vector
    position_error: float
    tilt_error: float

    @property
    def good(self) -> bool:
        """Close enough to grasp a 25 mm cube."""
        return self.position_error < 0.002 and self.tilt_error < 0.15


def tool_rotation(azimuth: float, tilt: float, roll: float) -> Vector:
    """Rotation of the gripper body: it points down tilted outward by `tilt` in the vertical plane at `azimuth`.

    Columns are the jaw axis (x), the hinge axis (y) and the direction away from the tips (z); at roll 0 the jaws open
    radially, at ±π/2 sideways.
    """
    radial = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
    up = np.array([0.0, 0.0, 1.0])
    back = np.cos(tilt) * up - np.sin(tilt) * radial
    outward = np.cos(tilt) * radial + np.sin(tilt) * up
    jaw = np.cos(roll) * outward + np.sin(roll) * np.cross(back, outward)
    return np.stack([jaw, np.cross(back, jaw), back], axis=1)


class ArmSolver:
    """Solves for joint angles without disturbing the simulation."""

    def __init__(self, env: Any) -> None:
        import mujoco
        from so101_nexus import kinematics

        self._mujoco = mujoco
        self._kinematics = kinematics
        self._env = env
        self._data = mujoco.MjData(env.model)
        self._low = LIMITS_RAD[:ARM, 0] + MARGIN_RAD
        self._high = LIMITS_RAD[:ARM, 1] - MARGIN_RAD

    def _pose(self, angles: Vector, tool: Vector) -> tuple[Vector, Vector]:
        env, data, m = self._env, self._data, self._mujoco
        data.qpos[:] = env.data.qpos
        data.qpos[env._arm_qpos_addrs] = angles
        m.mj_kinematics(env.model, data)
        m.mj_comPos(env.model, data)
        body = env._gripper_body_id
        return data.xpos[body] + data.xmat[body].reshape(3, 3) @ tool, data.xmat[body].copy()

    def point(self, angles: Vector, tool: Vector) -> Vector:
        """Where the tool point (gripper frame, m) is, in the world, at these joint angles."""
        return self._pose(angles, tool)[0]

    def solve(self, start: Vector, tool: Vector, goal: Vector, rotation: Vector, steps: int = 80) -> Reach:
        """Bring the tool point to `goal` (world, m) with the gripper turned like `rotation`, starting at (5,) rad."""
        m, env = self._mujoco, self._env
        angles = np.clip(start[:ARM], self._low, self._high)
        want, have = np.zeros(4), np.zeros(4)
        m.mju_mat2Quat(want, np.ascontiguousarray(rotation).ravel())
        jac = np.zeros((6, env.model.nv))
        weight = 0.05  # orientation first, then the point exactly
        for step in range(steps):
            point, matrix = self._pose(angles, tool)
            m.mju_mat2Quat(have, matrix)
            m.mj_jac(env.model, self._data, jac[:3], jac[3:], point, env._gripper_body_id)
            if step == steps * 2 // 3:
                weight = 0.01
            delta = self._kinematics.ee_ik_delta_q(
                jac[:, env._arm_qvel_addrs], point, have, goal, want, orientation_weight=weight, damping=0.02
            )
            moved = np.clip(angles + np.clip(delta, -0.2, 0.2), self._low, self._high)
            settled = np.abs(moved - angles).max() < 2e-4
            angles = moved
            if settled and weight == 0.01:
                break
            if settled:
                weight = 0.01
        point, matrix = self._pose(angles, tool)
        m.mju_mat2Quat(have, matrix)
        turn = self._kinematics.orientation_error(have, want)
        return Reach(angles, float(np.linalg.norm(point - goal)), float(np.linalg.norm(turn)))

    def gaze(self, start: Vector, target: Vector, steps: int = 60) -> tuple[Vector, float]:
        """Turn the arm so that the wrist camera looks at `target` (world, m). Gives (5,) rad and the miss in rad."""
        env, data = self._env, self._data
        joints = np.array([0, 1, 2, 3])
        angles = np.clip(start[:ARM], self._low, self._high)

        def miss(q: Vector) -> Vector:
            self._pose(q, np.zeros(3))
            self._mujoco.mj_camlight(env.model, data)
            camera = env._wrist_cam_id
            ray = data.cam_xmat[camera].reshape(3, 3).T @ (target - data.cam_xpos[camera])
            return np.asarray(ray / np.linalg.norm(ray) - np.array([0.0, 0.0, -1.0]))

        for _ in range(steps):
            here = miss(angles)
            if np.linalg.norm(here) < 0.02:
                break
            jac = np.empty((3, len(joints)))
            for column, joint in enumerate(joints):
                moved = angles.copy()
                moved[joint] += 1e-4
                jac[:, column] = (miss(moved) - here) / 1e-4
            delta = -np.linalg.solve(jac.T @ jac + 0.01 * np.eye(len(joints)), jac.T @ here)
            angles[joints] += np.clip(delta, -0.1, 0.1)
            angles = np.clip(angles, self._low, self._high)
        return angles, float(np.linalg.norm(miss(angles)))
