"""One arm with only its bus open, calibrated or not, for setting up and checking. Nothing moves.

Not for recording or moving (arms.py).
"""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from robot.arms import calibration_files, open_station
from robot.config import RobotTable
from robot.ports import bus_error, claim_port, close, forget_old_replies, pseudo_terminal, wait_for_bytes, wait_longer
from zk0d.devices import resolve
from zk0d.errors import ConfigError


def bare_arm(stack: ExitStack, table: RobotTable, role: str, *, handshake: bool = True) -> Any:
    """LeRobot's device of `role` with only its bus open, calibrated or not; nothing moves. Closed by `stack`.

    Without `handshake` the servos need not be there yet. Raises RobotError.
    """
    if table.virtual:
        station = stack.enter_context(open_station(table, fps=30, seed=0, leader=True))
        folder: Path | None = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zk0-calibration-")))
        station.write_calibration(folder, "follower", "leader")
        port, name = (station.follower_port if role == "follower" else station.leader_port), role
    else:
        ids, folder = calibration_files(table)
        port, name = (table.follower, ids[0]) if role == "follower" else (table.leader, ids[1])
        if not port:
            raise ConfigError(f"[robot]: {role} is not set", f'for example {role} = "/dev/ttyACM1"')
        port = resolve(port)
        stack.callback(os.close, claim_port(role, port))
    device = _device(table, role, port, name, folder)
    wait_for_bytes(device.bus.port_handler)
    forget_old_replies(device.bus.port_handler)
    if pseudo_terminal(port):
        wait_longer(device.bus.port_handler)
    try:
        device.bus.connect(handshake)
    except Exception as error:
        close(device.bus.port_handler)
        raise bus_error(error, role, port) from error
    stack.callback(device.bus.disconnect, False)
    return device


def _device(table: RobotTable, role: str, port: str, name: str, calibration: Path | None) -> Any:
    if role == "follower":
        from lerobot.robots.so_follower import SO100Follower, SO101Follower, SOFollowerRobotConfig

        robot = SOFollowerRobotConfig(port=port, id=name, calibration_dir=calibration)
        return (SO100Follower if table.type == "so100" else SO101Follower)(robot)
    from lerobot.teleoperators.so_leader import SO100Leader, SO101Leader, SOLeaderTeleopConfig

    guide = SOLeaderTeleopConfig(port=port, id=name, calibration_dir=calibration)
    return (SO100Leader if table.type == "so100" else SO101Leader)(guide)
