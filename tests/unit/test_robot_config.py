"""The [robot] table: what is accepted, and that a refusal names the key, the value and what would do."""

from __future__ import annotations

from typing import Any

import pytest

from robot.config import RobotTable
from robot.recorder_job import RecorderJob
from robot.rollout_job import RolloutJob
from robot.tending import Tending
from zk0d.errors import ConfigError, DatasetError, UsageError

REAL: dict[str, Any] = {
    "follower": "/dev/ttyACM0",
    "leader": "/dev/ttyACM1",
    "cameras": {"front": {"source": "/dev/video0", "height": 480, "width": 640}},
}


def test_a_complete_table_is_read() -> None:
    table = RobotTable.parse({"type": "so100", "units": "range", **REAL})
    assert (table.type, table.units, table.virtual) == ("so100", "range", False)
    assert (table.cameras["front"].height, table.cameras["front"].width) == (480, 640)


def test_a_virtual_bench_needs_no_camera_source() -> None:
    table = RobotTable.parse({"follower": "virtual:Touch", "cameras": {"wrist": {"height": 64, "width": 64}}})
    assert table.virtual and table.leader == ""


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"type": "so102"}, ["type", "so102", "so101"]),
        ({"units": "radians"}, ["units", "radians", "degrees"]),
        ({"follower": ""}, ["follower", "/dev/ttyACM0"]),
        ({"leader": "/dev/ttyACM0"}, ["leader", "/dev/ttyACM0"]),
        ({"leader": "expert"}, ["leader", "expert", "virtual"]),
        ({"folower": "x"}, ["folower", "follower"]),
        ({"max_relative_target": 0}, ["max_relative_target", "above zero"]),
        ({"calibration_dir": "/nowhere"}, ["calibration_dir", "/nowhere"]),
        ({"cameras": {"front": {"height": 480, "width": 640}}}, ["front", "source"]),
        ({"cameras": {"front": {"source": "0", "height": 481}}}, ["cameras.front", "height", "481", "even"]),
        ({"cameras": {"Front!": {"source": "0"}}}, ["Front!", "lower-case"]),
        ({"cameras": {"front": {"source": "0", "rotation": 45}}}, ["rotation", "45", "270"]),
        ({"cameras": {"front": {"source": "0", "zoom": 2}}}, ["zoom", "source"]),
    ],
)
def test_a_refusal_names_key_value_and_what_is_accepted(change: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        RobotTable.parse({**REAL, **change})
    for word in named:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dataset": "here"}, ["dataset", "here", "absolute"]),
        ({"task": "  "}, ["task"]),
        ({"episodes": 0}, ["episodes", "0", "1 to"]),
        ({"fps": 30.5}, ["fps", "30.5"]),
        ({"episode_s": -1}, ["episode_s", "-1"]),
        ({"keep": "best"}, ["keep", "best", "success"]),
        ({"pace": "slow"}, ["pace", "slow", "real"]),
    ],
)
def test_a_recorder_job_is_refused_in_the_same_way(change: dict[str, Any], named: list[str]) -> None:
    good = {"dataset": "/tmp/set", "task": "lift", "robot": REAL, "later_key": 1}
    assert RecorderJob.parse(good).episodes == 1
    with pytest.raises(ConfigError) as refused:
        RecorderJob.parse({**good, **change})
    for word in named:
        assert word in str(refused.value)


def test_a_rollout_job_needs_a_policy_folder() -> None:
    with pytest.raises(DatasetError, match="no published policy"):
        RolloutJob.parse({"policy": "/nowhere", "out": "/tmp/out", "robot": REAL})


@pytest.mark.parametrize(
    ("key", "value"),
    [("fps", -30), ("fps", 1), ("fps", 1000), ("seconds", -1), ("seconds", float("nan")), ("reads", -5)],
)
def test_a_teleoperation_moves_in_no_steps_that_are_leaps(key: str, value: float) -> None:
    job = {"action": "teleop", "robot": REAL, "fps": 30, "seconds": 0, "reads": 200}
    assert Tending.parse(job).fps == 30 and Tending.parse({**job, "fps": None}).fps == 30
    with pytest.raises(UsageError, match=f"{key} = "):
        Tending.parse({**job, key: value})


def test_an_arm_is_let_go_whatever_else_is_wrong_in_its_table() -> None:
    """Its cameras, its leader, or a folder that is gone: none of that may keep it under torque."""
    wrong = {
        "cameras": {"front": {"height": 64}},
        "calibration_dir": "/nowhere",
        "leader": "/dev/ttyACM0",
        "care": {"x": 1},
    }
    with pytest.raises(ConfigError):
        Tending.parse({"action": "teleop", "robot": {**REAL, **wrong}})
    assert Tending.parse({"action": "release", "robot": {**REAL, **wrong}}).robot.follower == "/dev/ttyACM0"
    sides = {side: {"follower": f"/dev/{side}", "cameras": {"X": 1}} for side in ("left", "right")}
    table = Tending.parse({"action": "release", "robot": {"type": "so100", **wrong, **sides}}).robot
    assert [(pair.follower, pair.type) for pair in table.each().values()] == [
        ("/dev/left", "so100"),
        ("/dev/right", "so100"),
    ]


def test_two_pairs_are_called_as_lerobot_calls_them() -> None:
    left = {"follower": "/dev/a", "leader": "/dev/b", "cameras": {"wrist": {"source": "0"}}}
    right = {"follower": "/dev/c", "leader": "/dev/d"}
    table = RobotTable.parse({"id": "mine", "type": "so100", "left": left, "right": right, "care": {"slow_c": 60}})
    pairs = table.each()
    assert list(pairs) == ["left_", "right_"] and not table.virtual
    assert (pairs["left_"].follower_id, pairs["right_"].leader_id) == ("mine_left", "mine_right")
    assert pairs["right_"].type == "so100" and pairs["right_"].care.slow_c == 60
    assert list(table.all_cameras) == ["left_wrist"]
    virtual = {"follower": "virtual:Touch"}
    assert RobotTable.parse({"left": virtual, "right": virtual}).virtual


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"right": None}, "only one of left and right"),
        ({"right": {"follower": "/dev/a", "leader": "/dev/d"}}, "same port"),
        ({"right": {"follower": "virtual:Touch"}}, "one side is virtual"),
        ({"right": {"follower": "/dev/c", "port": "x"}}, "port"),
        ({"cameras": {"left_wrist": {"source": "1"}}}, "left_wrist"),
        ({"limits": {"left_gripper": [5, 1]}}, "limits.left_gripper"),
    ],
)
def test_two_pairs_that_do_not_go_together(change: dict[str, Any], said: str) -> None:
    left = {"follower": "/dev/a", "leader": "/dev/b", "cameras": {"wrist": {"source": "0"}}}
    whole = {"left": left, "right": {"follower": "/dev/c", "leader": "/dev/d"}, **change}
    with pytest.raises(ConfigError, match=said):
        RobotTable.parse(whole)
