"""Calibrates one arm step by step and writes LeRobot's own calibration file. Not for asking (tending.py).

The old file is kept beside the new one; an arm whose calibration is ended early gets its old values back.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robot.ports import device_errors
from zk0d import durable
from zk0d.errors import RobotError

if TYPE_CHECKING:
    from robot.steps import Steps

FULL_TURN = "wrist_roll"
"""The joint without a stop: LeRobot gives it the whole encoder."""
TURN = 4096
LEAST_RANGE = 200
"""Encoder steps (18°) that a joint must have been moved to count as moved."""
_SHOW_S = 0.2
_RETRY = 3


class Ranges:
    """How far each joint was moved, in encoder steps, and whether its reading jumped from 4095 to 0 on the way."""

    def __init__(self, positions: dict[str, int]) -> None:
        self.low = dict(positions)
        self.high = dict(positions)
        self.last = dict(positions)
        self.crossed: set[str] = set()

    def add(self, positions: dict[str, int]) -> None:
        """One reading of all joints. A jump of more than half a turn between two readings is the seam."""
        for joint, value in positions.items():
            if abs(value - self.last[joint]) > TURN // 2:
                self.crossed.add(joint)
            self.last[joint] = value
            self.low[joint] = min(self.low[joint], value)
            self.high[joint] = max(self.high[joint], value)

    def seam(self) -> list[str]:
        """Joints whose range goes over the seam, which no pair of limits can express."""
        return sorted(self.crossed - {FULL_TURN})

    def unmoved(self) -> list[str]:
        """Joints that were not moved far enough to know their range."""
        return [j for j in self.low if j != FULL_TURN and self.high[j] - self.low[j] < LEAST_RANGE]


def calibrate(device: Any, steps: Steps) -> dict[str, Any]:
    """Calibrate a LeRobot SO-100/SO-101 device whose bus is open; → file, where the old one is, ranges. RobotError.

    On any end but success the servos get their former offsets and limits back.
    """
    bus, port = device.bus, device.config.port
    with device_errors("the arm", port):
        before = bus.read_calibration()
        bus.disable_torque(num_retry=_RETRY)
    try:
        found = _measure(bus, port, steps)
        with device_errors("the arm", port):
            bus.write_calibration(found)
            if not bus.is_calibrated:
                raise RobotError(f"the arm on {port} did not keep its calibration", "check its power; calibrate again")
        old = keep_old(Path(device.calibration_fpath))
        device.calibration = found
        _save(Path(device.calibration_fpath), found)
    except BaseException:
        try:
            bus.write_calibration(before)
        except Exception as error:  # the arm may be unplugged; what went wrong first is what the person hears
            print(f"the former calibration could not be put back: {error}")
        raise
    ranges = {joint: [c.range_min, c.range_max] for joint, c in found.items()}
    return {"file": str(device.calibration_fpath), "old": str(old or ""), "ranges": ranges}


def keep_old(path: Path) -> Path | None:
    """Copy a calibration file to old/NAME.TIME.json beside it; None when there is none."""
    if not path.exists():
        return None
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder, number = path.parent / "old", 0
    folder.mkdir(exist_ok=True)
    while (kept := folder / f"{path.stem}.{stamp}{f'-{number}' if number else ''}.json").exists():
        number += 1
    shutil.copy2(path, kept)
    durable.fsync_dir(folder)
    return kept


def _save(path: Path, calibration: dict[str, Any]) -> None:
    durable.write_json(path, {joint: vars(c) for joint, c in calibration.items()})


def _measure(bus: Any, port: str, steps: Steps) -> dict[str, Any]:
    from lerobot.motors import MotorCalibration

    reason = ""
    while True:
        text = "put every joint in the middle of its range, by hand; the arm is limp"
        steps.ask("middle", f"{reason}; {text}" if reason else text)
        with device_errors("the arm", port):
            offsets = bus.set_half_turn_homings()
        ranges = _sweep(bus, port, steps)
        seam = ranges.seam()
        if not seam:
            break
        reason = f"{', '.join(seam)} went over the encoder's seam (from 4095 to 0): it was not in its middle"
        steps.say("again", step="ranges", text=reason, joints=seam)
    return {
        joint: MotorCalibration(
            id=motor.id,
            drive_mode=0,
            homing_offset=int(offsets[joint]),
            range_min=0 if joint == FULL_TURN else ranges.low[joint],
            range_max=TURN - 1 if joint == FULL_TURN else ranges.high[joint],
        )
        for joint, motor in bus.motors.items()
    }


def _sweep(bus: Any, port: str, steps: Steps) -> Ranges:
    """Watch the joints while the person moves them, until they say so and every joint was moved, or one crossed."""

    def read() -> dict[str, int]:
        with device_errors("the arm", port):
            positions = bus.sync_read("Present_Position", normalize=False, num_retry=_RETRY)
        return {joint: int(value) for joint, value in positions.items()}

    ranges = Ranges(read())
    steps.say("step", step="ranges", text=f"move every joint but {FULL_TURN} to both of its ends, then answer next")
    said = 0.0
    while True:
        ranges.add(read())
        if ranges.seam():
            return ranges
        if time.monotonic() - said > _SHOW_S:
            said = time.monotonic()
            steps.say("progress", low=ranges.low, at=ranges.last, high=ranges.high, unmoved=ranges.unmoved())
        if steps.answered(0.01):
            ranges.add(read())
            if not ranges.unmoved() or ranges.seam():
                return ranges
            steps.say("again", step="ranges", text=f"not moved far enough yet: {', '.join(ranges.unmoved())}")
