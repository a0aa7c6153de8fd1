"""Between the simulator's joint angles and what servos count: calibration files, encoder steps, radians.

One encoder step is 360/4095 degrees, as LeRobot counts it. Not for the control table (servo.py).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from zk0d.errors import RobotError

if TYPE_CHECKING:
    from lerobot.motors import MotorCalibration

JOINTS: Final = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
LIMITS_RAD: Final = np.array(
    [
        [-1.91986, 1.91986],
        [-1.74533, 1.74533],
        [-1.69, 1.69],
        [-1.65806, 1.65806],
        [-2.74384, 2.74384],
        [-0.17453, 1.74533],
    ]
)
"""Joint ranges of the SO-101 model in so101-nexus (rad)."""
STEPS_PER_RAD: Final = 4095 / (2 * math.pi)

_OFFSETS: Final = {
    "follower": (-350, 812, -1204, 417, 96, 1533),
    "leader": (1471, -96, -1866, 1992, -860, 849),
}

Calibration = dict[str, dict[str, int]]
"""joint → {id, drive_mode, homing_offset, range_min, range_max}, the content of a LeRobot calibration file."""


def factory_calibration(side: str) -> Calibration:
    """What a virtual arm is delivered with: full joint ranges, and offsets as different as real ones."""
    out: Calibration = {}
    for index, joint in enumerate(JOINTS):
        half = math.floor((LIMITS_RAD[index, 1] - LIMITS_RAD[index, 0]) / 2 * STEPS_PER_RAD)
        # LeRobot calibrates the wrist roll, which turns freely, as a whole turn.
        low, high = (0, 4095) if joint == "wrist_roll" else (2047 - half, 2048 + half)
        out[joint] = {
            "id": index + 1,
            "drive_mode": 0,
            "homing_offset": _OFFSETS[side][index],
            "range_min": low,
            "range_max": high,
        }
    return out


def load_calibration(path: Path) -> Calibration:
    """Read a LeRobot calibration file of an SO-100/SO-101. Raises RobotError that names the file and what is wrong."""
    try:
        data: Any = json.loads(path.read_text())
    except (OSError, ValueError) as exc:
        hint = "give a folder with follower.json and leader.json"
        raise RobotError(f"calibration {path} cannot be read: {exc}", hint) from exc
    fields = ("id", "drive_mode", "homing_offset", "range_min", "range_max")
    if not isinstance(data, dict) or set(data) != set(JOINTS):
        raise RobotError(f"calibration {path} does not have the joints of an SO-101", f"expected {', '.join(JOINTS)}")
    for joint, values in data.items():
        if not isinstance(values, dict) or not all(isinstance(values.get(f), int) for f in fields):
            raise RobotError(f"calibration {path}: {joint} needs whole numbers for {', '.join(fields)}")
        if not 0 <= values["range_min"] < values["range_max"] <= 4095 or abs(values["homing_offset"]) > 2047:
            raise RobotError(f"calibration {path}: {joint} is empty or outside 0..4095", "calibrate this arm again")
    return {joint: {f: int(data[joint][f]) for f in fields} for joint in JOINTS}


def motor_calibration(calibration: Calibration) -> dict[str, MotorCalibration]:
    """The same as LeRobot's objects."""
    from lerobot.motors import MotorCalibration

    return {joint: MotorCalibration(**values) for joint, values in calibration.items()}


class JointMap:
    """Converts between joint angles (rad, simulator) and calibrated encoder steps (the wire's Present_Position)."""

    def __init__(self, calibration: Calibration) -> None:
        columns = {f: np.array([calibration[j][f] for j in JOINTS]) for f in calibration[JOINTS[0]]}
        self.low = columns["range_min"].astype(np.int64)
        self.high = columns["range_max"].astype(np.int64)
        self.offset = columns["homing_offset"].astype(np.int64)
        sign = np.where(columns["drive_mode"] != 0, -1.0, 1.0)
        self._scale = sign * STEPS_PER_RAD
        self._zero = (self.low + self.high) / 2
        # A gripper has no angle in common between arms: LeRobot matches 0..100 % of its range.
        closed, opened = LIMITS_RAD[5]
        self._scale[5] = sign[5] * (self.high[5] - self.low[5]) / (opened - closed)
        start = self.low[5] if sign[5] > 0 else self.high[5]
        self._zero[5] = start - self._scale[5] * closed

    def to_steps(self, angles: NDArray[np.float64]) -> NDArray[np.int64]:
        """(6,) rad → (6,) encoder steps, calibrated frame, rounded."""
        return np.rint(angles * self._scale + self._zero).astype(np.int64)

    def to_rad(self, steps: NDArray[np.int64]) -> NDArray[np.float64]:
        """(6,) calibrated encoder steps → (6,) rad."""
        return np.asarray((steps - self._zero) / self._scale)

    def steps_from_range(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """(…, 6) LeRobot values (-100…100, gripper 0…100) → encoder steps. Exact for values that came from steps."""
        share = np.asarray(values, dtype=np.float64).copy()
        share[..., :5] = (share[..., :5] + 100) / 200
        share[..., 5] = share[..., 5] / 100
        share = np.where(self._scale < 0, 1 - share, share)
        return np.rint(share * (self.high - self.low) + self.low).astype(np.int64)
