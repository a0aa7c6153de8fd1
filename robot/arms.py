"""Opens the arms and cameras of the `[robot]` table: real ones by port, or the virtual bench, by LeRobot's own drivers.

Never asks a question on the terminal, and says in one sentence what is wrong with a device. Not for the control loop.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from robot.bench import Bench, Side
from robot.config import CameraTable, RobotTable
from robot.ear import Ear
from robot.limits import joint_limits
from robot.ports import (
    ask_again,
    bus_error,
    claim_port,
    close,
    device_errors,
    first_line,
    forget_old_replies,
    pseudo_terminal,
    wait_for_bytes,
    wait_longer,
)
from robot.torque import Torque, hold_still, let_down
from robot.vitals import LineCounter, ServoWatch, clear_first
from zk0d.devices import resolve
from zk0d.errors import ConfigError, RobotError, Zk0Error

CONNECT_ATTEMPTS = 2


@contextmanager
def open_bench(
    table: RobotTable,
    *,
    fps: int,
    seed: int = 0,
    leader: bool = True,
    limit: float | None = None,
    guarded: bool = False,
    ear: Ear | None = None,
) -> Iterator[Bench]:
    """Open what the table names, and let the arms down at the end. `limit` is LeRobot's max_relative_target, in the
    table's units per period; `guarded` keeps goals inside the joints' calibrated ranges. An end that `ear`
    hears between the devices raises Ended; it is told when an arm comes under torque, and when that is gone.

    Raises RobotError for a device that is missing, busy, uncalibrated or not answering; ConfigError for a wrong value.
    """
    ear = ear or Ear()
    with ExitStack() as stack:
        sides = []
        for number, (prefix, pair) in enumerate(table.each().items()):
            shared = table.cameras if table.pairs and number == 0 else {}  # opened by the left arm, as LeRobot does
            own = replace(pair, cameras={**pair.cameras, **shared})
            sides.append(_open_side(stack, prefix, own, fps=fps, seed=seed, leader=leader, limit=limit, ear=ear))
        bounds = None
        if guarded:
            each = [
                joint_limits(s.follower.calibration, table.units, table.joint_margin, s.table.limits) for s in sides
            ]
            bounds = (np.concatenate([low for low, _ in each]), np.concatenate([high for _, high in each]))
        ear.check()
        bench = Bench(tuple(sides), table, fps, bounds)
        stack.callback(bench.lower)
        yield bench


def _open_side(
    stack: ExitStack, prefix: str, table: RobotTable, *, fps: int, seed: int, leader: bool, limit: float | None,
    ear: Ear,
) -> Side:  # fmt: skip
    """One pair of arms."""
    station: Any = None
    roles = (f"{prefix.replace('_', ' ')}follower", f"{prefix.replace('_', ' ')}leader")
    if table.virtual:
        station = stack.enter_context(open_station(table, fps=fps, seed=seed, leader=leader))
        calibration: Path | None = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zk0-calibration-")))
        station.write_calibration(calibration, "follower", "leader")
        ports, ids = (station.follower_port, station.leader_port), ("follower", "leader")
        cameras = station.camera_configs()
        # Simulated motors are stiffer than real ones: their load and current tell nothing of wear.
        table = replace(table, care=replace(table.care, warn_load=9, slow_load=9, warn_a=99, slow_a=99))
    else:
        ids, calibration = calibration_files(table)
        ports = (resolve(table.follower), resolve(table.leader) if leader else table.leader)
        cameras = {n: _camera(c, fps) for n, c in table.cameras.items()}
        if leader and not table.leader:
            raise ConfigError(f"[robot]: {roles[1]} is not set", 'for example leader = "/dev/ttyACM1"')
        for role, port in zip(roles, ports, strict=True):
            if role == roles[0] or leader:
                stack.callback(os.close, claim_port(role, port))
    ear.check()
    arm = _open_follower(stack, table, ports[0], ids[0], calibration, cameras, limit, roles[0], ear)
    guide, lines = None, {}
    if leader:
        ear.check()
        guide, lines["leader"] = _open_leader(stack, table, ports[1], ids[1], calibration, roles[1])
    ear.check()
    torque = Torque(arm.bus, roles[0], ports[0], ear, gently=station is None)
    stack.callback(_let_go, torque)
    torque.taken()
    with device_errors(f"the {roles[0]}", table.follower):
        hold_still(arm.bus)
        arm.configure()  # which brings it under torque: last of all
        lines["follower"], watch = LineCounter(arm.bus), ServoWatch(arm.bus, table.care)
        watch.begin()
    return Side(prefix, table, arm, guide, station, watch, torque, lines)


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
    limit: float | None,
    role: str,
    ear: Ear,
) -> Any:
    """LeRobot's follower with its cameras; not under torque yet."""
    from lerobot.robots.so_follower import SO100Follower, SO101Follower, SOFollowerRobotConfig

    config = SOFollowerRobotConfig(
        port=port,
        id=name,
        calibration_dir=calibration,
        cameras=cameras,
        use_degrees=table.units == "degrees",
        max_relative_target=limit,
    )
    robot = (SO100Follower if table.type == "so100" else SO101Follower)(config)
    _connect_bus(robot, role, table)
    stack.callback(_disconnect_port, robot.bus)
    for camera_name, camera in robot.cameras.items():
        ear.check()
        try:
            camera.connect()
        except Zk0Error:
            raise
        except Exception as error:
            hint = "check its source, height and width, and fps"
            raise RobotError(f"camera {camera_name}: {first_line(error)}", hint) from error
        stack.callback(_disconnect, camera)
    return robot


def _open_leader(
    stack: ExitStack, table: RobotTable, port: str, name: str, calibration: Path | None, role: str
) -> tuple[Any, LineCounter]:
    from lerobot.teleoperators.so_leader import SO100Leader, SO101Leader, SOLeaderTeleopConfig

    degrees = table.units == "degrees"
    config = SOLeaderTeleopConfig(port=port, id=name, calibration_dir=calibration, use_degrees=degrees)
    leader = (SO100Leader if table.type == "so100" else SO101Leader)(config)
    _connect_bus(leader, role, table)
    stack.callback(_disconnect, leader.bus)
    with device_errors(f"the {role}", table.leader):
        leader.configure()
    return leader, LineCounter(leader.bus)


def swapped(device: Any, role: str, table: RobotTable) -> bool:
    """Whether the servos of this arm hold exactly what the calibration file of the other one says."""
    ids, _ = calibration_files(table)
    follows = role.endswith("follower")
    name = f"{ids[1] if follows else ids[0]}.json"
    folder = device.calibration_dir
    if not table.calibration_dir:  # LeRobot's own folders: one for each kind of arm
        folder = folder.parent.parent / ("teleoperators/so_leader" if follows else "robots/so_follower")
    try:
        wanted = {joint: dict(values) for joint, values in json.loads((folder / name).read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return False
    own = {joint: vars(values) for joint, values in device.bus.read_calibration().items()}
    same = ("homing_offset", "range_min", "range_max")
    return set(own) == set(wanted) and all(own[j][k] == wanted[j].get(k) for j in own for k in same)


def _connect_bus(device: Any, role: str, table: RobotTable) -> None:
    """LeRobot's connect() without its calibrate(), which asks on the terminal. Torque stays off until that is right."""
    port = device.config.port
    ask_again(device.bus)
    clear_first(device.bus)
    wait_for_bytes(device.bus.port_handler)
    forget_old_replies(device.bus.port_handler)
    if pseudo_terminal(port):
        wait_longer(device.bus.port_handler)
    for attempt in range(CONNECT_ATTEMPTS):
        try:
            device.bus.connect()
            break
        except Exception as error:
            close(device.bus.port_handler)
            # LeRobot asks each servo once; one lost packet is no missing servo. A port that is not there stays so.
            if attempt + 1 == CONNECT_ATTEMPTS or isinstance(error, ConnectionError):
                raise bus_error(error, role, port) from error
    try:
        with device_errors(f"the {role}", port):
            calibrated = bool(device.is_calibrated)
        if not calibrated:
            if swapped(device, role, table):
                raise RobotError(
                    f"{role} on {port} is the other arm: its servos hold the calibration of the"
                    f" {'leader' if role.endswith('follower') else 'follower'}",
                    "swap leader and follower in [robot], or name them by serial number: zk0ctl robot find",
                )
            kind = "--robot" if role.endswith("follower") else "--teleop"
            name = role.replace(" ", "-")
            what = "has no calibration file" if not device.calibration else "is not calibrated as its file says"
            raise RobotError(
                f"{role} on {port} {what} ({device.calibration_fpath})",
                f"zk0ctl robot calibrate {name}"
                f" (or lerobot-calibrate {kind}.type={table.type}_{role.split()[-1]}"
                f" {kind}.port={port} {kind}.id={device.id})",
            )
    except BaseException:
        device.bus.disconnect(False)
        raise


def _let_go(torque: Torque) -> None:
    """The arm has been let down, or is now. LeRobot's disconnect stops at the first servo with an error bit."""
    if torque.gently and not torque.tried:
        let_down([torque])
    try:
        for _ in range(3):  # nobody answers a sync write
            torque.bus.sync_write("Torque_Enable", dict.fromkeys(torque.bus.motors, 0))
        torque.bus.disable_torque()  # and their EEPROM open, as LeRobot leaves it
    except Exception as error:
        print(f"while closing {torque.bus}: {first_line(error)}")


def _disconnect_port(bus: Any) -> None:
    try:
        if bus.is_connected:
            bus.disconnect(False)
    except Exception as error:
        print(f"while closing {bus}: {first_line(error)}")


def _disconnect(device: Any) -> None:
    try:
        device.disconnect()
    except Exception as error:
        print(f"while closing {device}: {first_line(error)}")  # an unplugged arm cannot be told to let go
