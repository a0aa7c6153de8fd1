"""Opens the arms and cameras of the `[robot]` table: real ones by port, or the virtual bench, by LeRobot's own drivers.

Never asks a question on the terminal, and says in one sentence what is wrong with a device. Not for the control loop.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot.config import CameraTable, RobotTable
from robot.ports import (
    ask_again,
    bus_error,
    claim_port,
    device_errors,
    first_line,
    pseudo_terminal,
    wait_for_bytes,
    wait_longer,
)
from robot.video import Frame
from zk0d.devices import resolve
from zk0d.errors import ConfigError, RobotError, Zk0Error

Pose = NDArray[np.float32]
CONNECT_ATTEMPTS = 2


class Bench:
    """An opened follower, its cameras and, if asked for, a leader. Joint order and units are those of the table.

    `observe` and `command` raise RobotError when a device stops answering.
    """

    def __init__(self, follower: Any, leader: Any, station: Any, table: RobotTable) -> None:
        self._follower = follower
        self._leader = leader
        self._station = station
        self.table = table
        self.joints: tuple[str, ...] = tuple(follower.action_features)
        self.cameras: dict[str, tuple[int, int]] = {
            name: (int(size[0]), int(size[1]))
            for name, size in follower.observation_features.items()
            if isinstance(size, tuple)
        }
        self.robot_type = str(follower.robot_type)
        self.ports = (
            {"follower": table.follower, "leader": table.leader}
            if station is None
            else {"follower": table.follower, "leader": station.spec.leader}
        )

    @property
    def virtual(self) -> bool:
        """Whether this is a simulation."""
        return self._station is not None

    @property
    def stepped(self) -> bool:
        """Whether time here advances with each command instead of with the clock, so that nobody need wait."""
        return self._station is not None and self._station.spec.clock == "step"

    @property
    def task_text(self) -> str:
        """The task in the simulator's words; empty where there is none."""
        return str(self._station.task_text) if self._station is not None else ""

    def observe(self) -> tuple[Pose, dict[str, Frame]]:
        """Joint positions of the follower, shape (joints,) float32, and one RGB frame per camera."""
        with device_errors("the follower", self.table.follower):
            seen = self._follower.get_observation()
        return self._pose(seen), {name: seen[name] for name in self.cameras}

    def leader_pose(self) -> Pose:
        """Joint positions of the leader, shape (joints,) float32."""
        with device_errors("the leader", self.table.leader):
            return self._pose(self._leader.get_action())

    def command(self, pose: Pose) -> Pose:
        """Send a goal to the follower; gives what was sent, which `max_relative_target` may have limited."""
        goal = {name: float(value) for name, value in zip(self.joints, pose, strict=True)}
        with device_errors("the follower", self.table.follower):
            return self._pose(self._follower.send_action(goal))

    def begin_take(self, seed: int) -> None:
        """A virtual bench gets a new scene; on real arms the person does that."""
        if self._station is not None:
            self._station.begin_take(seed)

    def success(self) -> bool | None:
        """What the simulator says of the take so far; None where nobody can tell."""
        return self._station.success() if self._station is not None else None

    def leader_done(self) -> bool:
        """Whether a virtual leader's script has ended."""
        return bool(self._station is not None and self._station.leader_done())

    def move_to(self, pose: Pose, seconds: float, hz: float = 50.0) -> None:
        """Move the follower there in a straight line in joint space, in real time."""
        start, _ = self.observe()
        steps = max(1, round(seconds * hz))
        for k in range(1, steps + 1):
            self.command((start + (pose - start) * (k / steps)).astype(np.float32))
            if not self.stepped:
                time.sleep(1.0 / hz)

    def _pose(self, values: dict[str, Any]) -> Pose:
        return np.array([values[name] for name in self.joints], dtype=np.float32)


@contextmanager
def open_bench(
    table: RobotTable, *, fps: int, seed: int = 0, leader: bool = True, limit: float | None = None
) -> Iterator[Bench]:
    """Open what the table names. `limit` is LeRobot's max_relative_target, in the table's units per period.

    Raises RobotError for a device that is missing, busy, uncalibrated or not answering; ConfigError for a wrong value.
    """
    with ExitStack() as stack:
        station: Any = None
        if table.virtual:
            station = stack.enter_context(open_station(table, fps=fps, seed=seed, leader=leader))
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zk0-calibration-")))
            station.write_calibration(folder, "follower", "leader")
            ports, ids = (station.follower_port, station.leader_port), ("follower", "leader")
            cameras = station.camera_configs()
        else:
            ids, folder_or_none = calibration_files(table)
            ports = (resolve(table.follower), resolve(table.leader) if leader else table.leader)
            cameras = {n: _camera(c, fps) for n, c in table.cameras.items()}
            if leader and not table.leader:
                raise ConfigError("[robot]: leader is not set", 'for example leader = "/dev/ttyACM1"')
            for role, port in (("follower", ports[0]), ("leader", ports[1])):
                if role == "follower" or leader:
                    stack.callback(os.close, claim_port(role, port))
        degrees = table.units == "degrees"
        calibration = folder if table.virtual else folder_or_none
        arm = _open_follower(stack, table, ports[0], ids[0], calibration, cameras, degrees, limit)
        guide = _open_leader(stack, table, ports[1], ids[1], calibration, degrees) if leader else None
        yield Bench(arm, guide, station, table)


def open_station(table: RobotTable, *, fps: int, seed: int, leader: bool) -> Any:
    from robot.virtual.spec import StationSpec
    from robot.virtual.station import VirtualStation

    spec = StationSpec.parse(
        table.follower,
        leader=(table.leader or None) if leader else "rest",
        fps=fps,
        arm=table.type,
        cameras={c.name: (c.height, c.width) for c in table.cameras.values()} or None,
    )
    folder = Path(table.calibration_dir) if table.calibration_dir else None
    return VirtualStation(spec.with_seed(spec.seed + seed), calibration_dir=folder)


def calibration_files(table: RobotTable) -> tuple[tuple[str, str], Path | None]:
    """Which calibration files: LeRobot's own folders by `id`, or follower.json and leader.json of `calibration_dir`."""
    if not table.calibration_dir:
        return (table.follower_id or table.id, table.leader_id or table.id), None
    return (table.follower_id or "follower", table.leader_id or "leader"), Path(table.calibration_dir)


def _camera(camera: CameraTable, fps: int) -> Any:
    from lerobot.cameras.configs import ColorMode, Cv2Rotation
    from lerobot.cameras.opencv import OpenCVCameraConfig

    place = resolve(camera.source, "camera")
    source: int | Path = int(place) if place.isdigit() else Path(place)
    if isinstance(source, Path) and not source.exists():
        raise RobotError(
            f"camera {camera.name}: there is no {source}",
            "plug it in, or correct its source; v4l2-ctl --list-devices lists cameras",
        )
    return OpenCVCameraConfig(
        index_or_path=source,
        fps=fps,
        height=camera.height,
        width=camera.width,
        color_mode=ColorMode.RGB,
        rotation=Cv2Rotation(-90 if camera.rotation == 270 else camera.rotation),
        fourcc=camera.fourcc or None,
    )


def _open_follower(
    stack: ExitStack,
    table: RobotTable,
    port: str,
    name: str,
    calibration: Path | None,
    cameras: dict[str, Any],
    degrees: bool,
    limit: float | None,
) -> Any:
    from lerobot.robots.so_follower import SO100Follower, SO101Follower, SOFollowerRobotConfig

    config = SOFollowerRobotConfig(
        port=port,
        id=name,
        calibration_dir=calibration,
        cameras=cameras,
        use_degrees=degrees,
        max_relative_target=limit,
    )
    robot = (SO100Follower if table.type == "so100" else SO101Follower)(config)
    _connect_bus(robot, "follower", table)
    stack.callback(_disconnect, robot.bus)
    for camera_name, camera in robot.cameras.items():
        try:
            camera.connect()
        except Zk0Error:
            raise
        except Exception as error:
            hint = "check its source, height and width, and fps"
            raise RobotError(f"camera {camera_name}: {first_line(error)}", hint) from error
        stack.callback(_disconnect, camera)
    with device_errors("the follower", table.follower):
        robot.configure()
    return robot


def _open_leader(
    stack: ExitStack, table: RobotTable, port: str, name: str, calibration: Path | None, degrees: bool
) -> Any:
    from lerobot.teleoperators.so_leader import SO100Leader, SO101Leader, SOLeaderTeleopConfig

    config = SOLeaderTeleopConfig(port=port, id=name, calibration_dir=calibration, use_degrees=degrees)
    leader = (SO100Leader if table.type == "so100" else SO101Leader)(config)
    _connect_bus(leader, "leader", table)
    stack.callback(_disconnect, leader.bus)
    with device_errors("the leader", table.leader):
        leader.configure()
    return leader


def _connect_bus(device: Any, role: str, table: RobotTable) -> None:
    """LeRobot's connect() without its calibrate(), which asks on the terminal. Torque stays off until that is right."""
    port = device.config.port
    ask_again(device.bus)
    wait_for_bytes(device.bus.port_handler)
    if pseudo_terminal(port):
        wait_longer(device.bus.port_handler)
    for attempt in range(CONNECT_ATTEMPTS):
        try:
            device.bus.connect()
            break
        except Exception as error:
            device.bus.port_handler.closePort()
            # LeRobot asks each servo once; one lost packet is no missing servo. A port that is not there stays so.
            if attempt + 1 == CONNECT_ATTEMPTS or isinstance(error, ConnectionError):
                raise bus_error(error, role, port) from error
    try:
        with device_errors(f"the {role}", port):
            calibrated = bool(device.is_calibrated)
        if not calibrated:
            kind = "--robot" if role == "follower" else "--teleop"
            what = "has no calibration file" if not device.calibration else "is not calibrated as its file says"
            raise RobotError(
                f"{role} on {port} {what} ({device.calibration_fpath})",
                f"zk0ctl robot calibrate {role}"
                f" (or lerobot-calibrate {kind}.type={table.type}_{role} {kind}.port={port} {kind}.id={device.id})",
            )
    except BaseException:
        device.bus.disconnect(False)
        raise


def _disconnect(device: Any) -> None:
    try:
        device.disconnect()
    except Exception as error:
        print(f"while closing {device}: {first_line(error)}")  # an unplugged arm cannot be told to let go
