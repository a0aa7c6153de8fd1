"""The simulated bench: a so101-nexus MuJoCo task with its success flag, stepped one control period at a time.

Angles in radians, in the order of joints.JOINTS. Not for servos (servo.py) or for what the leader does (expert.py).
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot.virtual.joints import LIMITS_RAD, STEPS_PER_RAD
from robot.virtual.render import Painter
from robot.virtual.spec import StationSpec
from zk0d.errors import RobotError

STALL_NM = 2.94
WALL_PERIOD_S = 0.01
_ENV_VERSION = {"PickAndPlace": 2}
Vector = NDArray[np.float64]


def _writable_model(nexus: Any) -> None:
    """so101-nexus writes a scene's XML beside its own meshes; in an installed runtime that folder is not ours.

    Then it gets a folder of links to the same files, until the process ends. Call before its tasks are imported.
    """
    own: Path = nexus.get_so101_mujoco_model_dir()
    if os.access(own, os.W_OK):
        return
    folder = Path(tempfile.mkdtemp(prefix="zk0-scene-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for entry in own.iterdir():
        (folder / entry.name).symlink_to(entry)
    path = folder / nexus.get_so101_mujoco_model_path().name
    nexus.get_so101_mujoco_model_dir, nexus.get_so101_mujoco_model_path = lambda: folder, lambda: path


def _make_env(task: str, period_s: float) -> Any:
    """The so101-nexus environment of a task, physics as its own CPU preset but with our control period."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        import gymnasium
        import mujoco  # noqa: F401
        import so101_nexus

        _writable_model(so101_nexus)
        import so101_nexus.mujoco
        from so101_nexus.config import PhysicsConfig
        from so101_nexus.observations import JointPositions
        from so101_nexus.rendering import RenderingQuality
    except Exception as exc:
        raise RobotError(
            f"the virtual bench cannot load its simulator: {exc}",
            "install the extra zk0d[virtual]; for EGL: apt install libegl1 libgl1-mesa-dri",
        ) from exc
    name = f"MuJoCo{task}-v{_ENV_VERSION.get(task, 1)}"
    config_class = gymnasium.envs.registration.load_env_creator(gymnasium.spec(name).entry_point).default_config_cls
    config = config_class(
        observations=[JointPositions()],
        terminate_on_success=False,
        physics=PhysicsConfig(
            timestep_s=period_s / np.ceil(period_s / 0.005).item(),
            control_period_s=period_s,
            integrator="implicitfast",
            noslip_iterations=3,
        ),
    )
    config.render.quality = RenderingQuality(msaa_samples=0, shadows=False, shadow_map_size=1)
    return gymnasium.make(name, config=config, disable_env_checker=True).unwrapped


class Scene:
    """A task in MuJoCo. Single-threaded: the station's thread makes it and is the only one to touch it."""

    def __init__(self, spec: StationSpec) -> None:
        self.spec = spec
        self.period_s = 1 / spec.fps if spec.clock == "step" else WALL_PERIOD_S
        self.env = _make_env(spec.task or "PickLift", self.period_s)
        self.judged = bool(spec.task)
        self.succeeded = False
        self.succeeding = False
        self.version = 0
        self._painter: Painter | None = None
        self._cameras: dict[str, Any] = {}
        self.reset(spec.seed)

    def reset(self, seed: int, start: Vector | None = None) -> None:
        """A new scene; the arm stands at rest, or at `start` (6,) rad, and holds."""
        options = None if start is None else {"init_qpos": np.clip(start, LIMITS_RAD[:, 0], LIMITS_RAD[:, 1])}
        self.env.reset(seed=seed, options=options)
        self.target: Vector = self.env.data.ctrl[self.env._actuator_ids].copy()
        self.succeeded = self.succeeding = False
        self.version += 1

    def step(self, target: Vector, driven: NDArray[np.bool_]) -> None:
        """One control period toward `target` (6,) rad; joints that are not `driven` are let go and sag."""
        self.target = np.where(driven, target, self.angles)
        info = self.env.step(self.target.astype(np.float32))[4]
        self.succeeding = bool(info["success"])
        self.succeeded |= self.succeeding
        self.version += 1

    @property
    def task_text(self) -> str:
        """The task in words, as so101-nexus says it ("" on a free bench)."""
        return str(self.env.task_description) if self.judged else ""

    @property
    def angles(self) -> Vector:
        """(6,) rad."""
        return np.asarray(self.env.data.qpos[self.env._qpos_addrs])

    @property
    def speeds(self) -> Vector:
        """(6,) encoder steps per second."""
        return np.asarray(self.env.data.qvel[self.env._qvel_addrs] * STEPS_PER_RAD)

    @property
    def loads(self) -> Vector:
        """(6,) in 0.1 % of stall torque."""
        return np.asarray(self.env.data.actuator_force[self.env._actuator_ids] * (1000 / STALL_NM))

    def draw(self, view: str, height: int, width: int) -> NDArray[np.uint8]:
        """A frame of the present state. `view` is front, top or wrist."""
        if self._painter is None or height > self._painter.height or width > self._painter.width:
            if self._painter is not None:
                self._painter.close()
            sizes = [*self.spec.cameras.values(), (height, width)]
            self._painter = Painter(self.env.model, max(s[0] for s in sizes), max(s[1] for s in sizes))
        if view not in self._cameras:
            self._cameras[view] = self._camera(view, width / height)
        return self._painter.draw(self.env.data, self._cameras[view], height, width)

    def _camera(self, view: str, aspect: float) -> Any:
        import mujoco

        camera = mujoco.MjvCamera()
        if view == "wrist":
            camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            camera.fixedcamid = self.env._wrist_cam_id
            return camera
        camera.type = mujoco.mjtCamera.mjCAMERA_FREE
        camera.lookat[:] = (0.22, 0.0, 0.02) if view == "top" else (0.2, 0.0, 0.05)
        camera.distance = 0.95 if view == "top" else 0.68
        camera.azimuth, camera.elevation = (0.0, -89.0) if view == "top" else (180.0, -38.0)
        camera.distance *= max(1.0, 1 / aspect)
        return camera

    def close(self) -> None:
        """Free the renderer and the environment."""
        if self._painter is not None:
            self._painter.close()
            self._painter = None
        self.env.close()
