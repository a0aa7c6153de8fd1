"""A bench with a virtual leader and follower: two serial ports that LeRobot's real drivers open, cameras, physics.

One thread owns everything (protocol, physics, OpenGL); callers hand it work. Not for what the tasks are (scene.py).
"""

from __future__ import annotations

import atexit
import json
import os
import select
import shutil
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from robot.virtual.bench import Arm, Bench
from robot.virtual.faults import Faults, LineFaults
from robot.virtual.joints import Calibration, factory_calibration, load_calibration, motor_calibration
from robot.virtual.spec import StationSpec
from zk0d.errors import RobotError

if TYPE_CHECKING:
    from lerobot.cameras import CameraConfig
    from lerobot.motors import MotorCalibration

__all__ = ["StationSpec", "VirtualStation"]

CALL_TIMEOUT_S = 60.0


class VirtualStation:
    """Context manager. The ports exist from construction until close(); open them with SO101Follower and SO101Leader.

    `calibration_dir` holds follower.json and leader.json of a real pair of arms, which the virtual ones then have.
    A scripted expert acts in degrees; with a real pair's calibration, read the arms with use_degrees=True.
    """

    def __init__(self, spec: StationSpec, calibration_dir: Path | None = None) -> None:
        self.spec = spec
        self._folder = Path(tempfile.mkdtemp(prefix="zk0-virtual-"))
        self.follower_port = str(self._folder / "follower")
        self.leader_port = str(self._folder / "leader")
        self._calls: deque[tuple[Callable[[], object], Future[object]]] = deque()
        self._closed = False
        self._drawn = False
        try:
            self._follower = Arm(Path(self.follower_port), _calibration("follower", calibration_dir))
            self._leader = Arm(Path(self.leader_port), _calibration("leader", calibration_dir))
        except BaseException:
            self._unplug()
            raise
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        self.faults = Faults(LineFaults(self._follower.line, self._do), LineFaults(self._leader.line, self._do))
        started: Future[Bench] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="virtual-station", daemon=True)
        self._thread.start()
        self._at_exit = partial(_close_left_open, weakref.ref(self))
        self._close_at_exit()
        try:
            self._bench = started.result(CALL_TIMEOUT_S)
        except BaseException:
            self.close()
            raise
        if spec.cameras:
            from robot.virtual.cameras import STATIONS

            STATIONS[self.follower_port] = self

    # -- what callers use

    @property
    def calibration(self) -> dict[str, dict[str, MotorCalibration]]:
        """LeRobot's calibration of both arms, as it is in their EEPROM from the start."""
        return {
            "follower": motor_calibration(self._follower.calibration),
            "leader": motor_calibration(self._leader.calibration),
        }

    @property
    def task_text(self) -> str:
        """The task of the present scene in words, as so101-nexus says it; "" on a free bench."""
        return str(self._do(lambda: self._bench.scene.task_text))

    def write_calibration(self, folder: Path, follower_id: str, leader_id: str) -> None:
        """Write LeRobot calibration files FOLDER/FOLLOWER_ID.json and FOLDER/LEADER_ID.json."""
        if follower_id == leader_id:
            raise RobotError(f"leader and follower are both called {leader_id!r} in {folder}", "give them two ids")
        folder.mkdir(parents=True, exist_ok=True)
        for name, arm in ((follower_id, self._follower), (leader_id, self._leader)):
            (folder / f"{name}.json").write_text(json.dumps(arm.calibration, indent=4))

    def camera_configs(self) -> dict[str, CameraConfig]:
        """For SOFollowerRobotConfig(cameras=…)."""
        from robot.virtual.cameras import VirtualCameraConfig, view_of

        return {
            name: VirtualCameraConfig(
                station=self.follower_port, view=view_of(name), fps=self.spec.fps, height=height, width=width
            )
            for name, (height, width) in self.spec.cameras.items()
        }

    def begin_take(self, seed: int) -> None:
        """A new scene from `seed`; the leader's script starts anew and the follower stands where the leader is.

        A replay shows its first episode in the first take and the next one in each take after it.
        """
        self._do(lambda: self._bench.begin(seed))

    def success(self) -> bool | None:
        """Whether the simulator's success flag came up since begin_take. None on a free bench."""
        return bool(self._do(lambda: self._bench.scene.succeeded)) if self.spec.task else None

    def succeeding(self) -> bool | None:
        """Whether the simulator's success flag is up at this moment. None on a free bench."""
        return bool(self._do(lambda: self._bench.scene.succeeding)) if self.spec.task else None

    def leader_done(self) -> bool:
        """Whether the script or the recording has no more to show. A leader at rest is never done."""
        return bool(self._do(lambda: self._bench.script.done))

    def frame(self, view: str, height: int, width: int) -> NDArray[np.uint8]:
        """(height, width, 3) uint8 RGB of the present state; the same state is drawn once."""
        pixels = self._do(lambda: self._bench.frame(view, height, width))
        if not self._drawn:
            self._drawn = True
            self._close_at_exit()
        return pixels

    def close(self) -> None:
        """End the thread, free the renderer, remove the ports. Closing again is fine."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self._at_exit)
        os.write(self._wake_w, b"x")
        self._thread.join(10)
        for fd in (self._wake_r, self._wake_w):
            os.close(fd)
        self._unplug()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the thread

    def _do[T](self, work: Callable[[], T]) -> T:
        """Run `work` in the station's thread, after what has already been written to the follower's port."""
        if self._closed or not self._thread.is_alive():
            raise RobotError("the virtual station is closed", "make a new VirtualStation")
        future: Future[T] = Future()
        self._calls.append((work, future))  # type: ignore[arg-type]
        os.write(self._wake_w, b"x")
        return future.result(CALL_TIMEOUT_S)

    def _run(self, started: Future[Bench]) -> None:
        try:
            bench = Bench(self.spec, self._follower, self._leader)
        except BaseException as exc:
            started.set_exception(exc)
            return
        started.set_result(bench)
        try:
            while not self._closed:
                self._turn(bench)
        finally:
            bench.close()
            while self._calls:
                self._calls.popleft()[1].set_exception(RobotError("the virtual station was closed"))

    def _turn(self, bench: Bench) -> None:
        """Wait for something and serve it.

        The follower's port is always read before the leader's and before calls. A client that wrote goals and then
        asked for something else has had its write returned, and a read of a pty's master sees everything whose write
        has returned; so the answer is that of the state after the goals. (Linux n_tty_read flushes the pty's buffer
        before it says that there is nothing.)
        """
        follower, leader = self._follower.line, self._leader.line
        wait = bench.follow_clock(time.monotonic()) if self.spec.clock == "wall" else None
        poller = select.poll()
        for fd in (self._wake_r, follower.master, leader.master):
            if fd >= 0:
                poller.register(fd, select.POLLIN)
        waits = [w for w in (wait, follower.owed(), leader.owed()) if w is not None]
        ready = {fd for fd, _ in poller.poll(min(waits) * 1000 if waits else None)}
        calls = len(self._calls) if self._wake_r in ready else 0
        if calls:
            os.read(self._wake_r, 4096)
        if self.spec.clock == "wall":
            bench.follow_clock(time.monotonic())
        while follower.pump():
            pass
        if leader.master in ready:
            leader.pump()
        for _ in range(calls):
            work, future = self._calls.popleft()
            try:
                future.set_result(work())
            except BaseException as exc:
                future.set_exception(exc)

    def _close_at_exit(self) -> None:
        """Close before the interpreter ends, if nobody does. Called again once there is a GL context: mujoco ends EGL
        at exit too, and what is registered last runs first."""
        atexit.unregister(self._at_exit)
        atexit.register(self._at_exit)

    def _unplug(self) -> None:
        for arm in (getattr(self, "_follower", None), getattr(self, "_leader", None)):
            if arm is not None:
                arm.line.unplug()
        shutil.rmtree(self._folder, ignore_errors=True)


def _calibration(side: str, folder: Path | None) -> Calibration:
    return factory_calibration(side) if folder is None else load_calibration(folder / f"{side}.json")


def _close_left_open(ref: weakref.ref[VirtualStation]) -> None:
    station = ref()
    if station is not None:
        station.close()
