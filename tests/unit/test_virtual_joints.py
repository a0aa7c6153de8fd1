"""Angles, encoder steps and calibration files of the virtual arms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from robot.virtual.joints import JOINTS, LIMITS_RAD, JointMap, factory_calibration, load_calibration
from zk0d.errors import RobotError


@pytest.mark.parametrize("side", ["follower", "leader"])
def test_steps_survive_the_way_to_angles_and_back(side: str) -> None:
    joints = JointMap(factory_calibration(side))
    for share in np.linspace(0, 1, 50):
        steps = np.rint(joints.low + share * (joints.high - joints.low)).astype(np.int64)
        assert (joints.to_steps(joints.to_rad(steps)) == steps).all()


def test_the_whole_joint_range_is_inside_the_calibrated_range_and_off_the_seam() -> None:
    joints = JointMap(factory_calibration("follower"))
    for column in (0, 1):
        steps = joints.to_steps(LIMITS_RAD[:, column])
        assert (steps >= joints.low - 1).all() and (steps <= joints.high + 1).all()
        assert (steps > 0).all() and (steps < 4095).all()


def test_range_values_of_every_step_come_back_exactly() -> None:
    """What a leader's driver makes of each step (float32, as recorded) leads back to that step."""
    calibration = factory_calibration("leader")
    calibration["elbow_flex"].update(range_min=775, range_max=3067)
    calibration["gripper"].update(range_min=2037, range_max=3286)
    joints = JointMap(calibration)
    for k in range(int((joints.high - joints.low).max()) + 1):
        steps = np.minimum(joints.low + k, joints.high)
        share = (steps - joints.low) / (joints.high - joints.low)
        values = np.where(np.arange(6) < 5, share * 200 - 100, share * 100).astype(np.float32)
        assert (joints.steps_from_range(values.astype(np.float64)) == steps).all()


def test_an_inverted_joint_turns_the_other_way() -> None:
    calibration = factory_calibration("leader")
    calibration["shoulder_pan"]["drive_mode"] = 1
    angles = np.full(6, 0.3)
    plain, turned = JointMap(factory_calibration("leader")).to_steps(angles), JointMap(calibration).to_steps(angles)
    assert abs((plain[0] - 2047.5) + (turned[0] - 2047.5)) <= 1
    assert (plain[1:] == turned[1:]).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.pop("gripper"), "joints"),
        (lambda d: d["gripper"].update(range_min=4000, range_max=300), "gripper"),
        (lambda d: d["elbow_flex"].update(homing_offset=3000), "elbow_flex"),
        (lambda d: d["elbow_flex"].update(id="three"), "elbow_flex"),
    ],
)
def test_a_calibration_that_cannot_be_right_is_refused(tmp_path: Path, change: object, says: str) -> None:
    data = factory_calibration("follower")
    change(data)  # type: ignore[operator]
    path = tmp_path / "follower.json"
    path.write_text(json.dumps(data))
    with pytest.raises(RobotError, match=says):
        load_calibration(path)


def test_a_missing_calibration_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(RobotError, match=r"follower\.json"):
        load_calibration(tmp_path / "follower.json")


def test_a_written_calibration_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "leader.json"
    path.write_text(json.dumps(factory_calibration("leader")))
    assert load_calibration(path) == factory_calibration("leader")
    assert list(load_calibration(path)) == list(JOINTS)
