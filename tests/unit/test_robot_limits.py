"""Goals stay within the joints' ranges, move slowly when care says so, and a tripped joint is asked for nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot.limits import GoalGuard, joint_limits
from zk0d.errors import ConfigError

JOINTS = ("elbow_flex.pos", "gripper.pos")
CALIBRATION = {"elbow_flex": SimpleNamespace(range_min=1000, range_max=3000),
               "gripper": SimpleNamespace(range_min=2000, range_max=3500)}  # fmt: skip


def pose(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_ranges_from_the_calibration() -> None:
    low, high = joint_limits(CALIBRATION, "degrees", 2.0, {})
    assert low == pytest.approx([-85.9, 0], abs=0.1) and high == pytest.approx([85.9, 100], abs=0.1)
    low, high = joint_limits(CALIBRATION, "range", 2.0, {"elbow_flex": (-30, 500)})
    assert list(low) == [-30, 0] and list(high) == [98, 100]
    with pytest.raises(ConfigError, match="no joint knee"):
        joint_limits(CALIBRATION, "range", 2.0, {"knee": (0, 1)})


def test_what_is_changed_is_counted() -> None:
    guard = GoalGuard(JOINTS, *joint_limits(CALIBRATION, "degrees", 2.0, {}))
    asked = pose(120, 50)
    sent = guard.goal(asked, None, None, ())
    guard.sent(asked, sent)
    assert sent == pytest.approx([85.9, 50], abs=0.1) and guard.clipped == 1
    guard.begin()
    guard.sent(pose(1, 1), guard.goal(pose(1, 1), None, None, ()))
    assert guard.clipped == 0


def test_a_tripped_joint_stays_where_it_is() -> None:
    guard = GoalGuard(JOINTS)
    sent = guard.goal(pose(50, 50), pose(10, 20), None, ("elbow_flex.pos",))
    assert list(sent) == [10, 50]
    assert list(guard.goal(pose(50, 50), pose(10, 20), 1.5, ())) == [11.5, 50]  # and starts again from there


@given(st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=30), st.floats(0.5, 10))
def test_slow_is_never_faster_than_its_step(wishes: list[float], step: float) -> None:
    guard = GoalGuard(JOINTS)
    last = guard.goal(pose(0, 0), pose(0, 0), None, ())
    for wish in wishes:
        now = guard.goal(pose(wish, -wish), pose(0, 0), step, ())
        assert np.abs(now - last).max() <= step * 1.001 + 1e-4
        last = now


def test_what_was_held_back_is_made_up_for_without_a_leap() -> None:
    guard = GoalGuard(JOINTS, catch_up=2.0)
    assert list(guard.goal(pose(90, 50), pose(0, 50), 1.5, ())) == [1.5, 50]  # slow
    seen = [float(guard.goal(pose(9, 50), pose(0, 50), None, ())[0]) for _ in range(5)]
    assert seen == [3.5, 5.5, 7.5, 9, 9]
    assert guard.goal(pose(60, 50), pose(9, 50), None, ())[0] == 60  # there: it follows again, at any speed
    guard.goal(pose(60, 50), pose(20, 50), None, ("elbow_flex.pos",))  # tripped where it stands
    assert guard.goal(pose(60, 50), pose(20, 50), None, ())[0] == 22


def test_a_rollout_opens_its_arm_with_limits_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's own call, up to where an arm would be opened."""
    pytest.importorskip("lerobot")
    from robot import arms, rollout

    asked: dict[str, Any] = {}

    class Asked(Exception):
        """So far and no further."""

    def open_bench(table: Any, **how: Any) -> None:
        asked.update(how)
        raise Asked

    monkeypatch.setattr(arms, "open_bench", open_bench)
    monkeypatch.setattr(rollout, "load", lambda job: None)
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/config.json").write_text("{}")
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "1")  # main sets them; put back afterwards
    channel: Any = None
    robot: dict[str, Any] = {"follower": "virtual:Touch"}
    job = {"policy": str(tmp_path / "policy"), "out": str(tmp_path / "out")}
    for own, limit in (({}, 20.0), ({"max_relative_target": 7.0}, 7.0)):
        with pytest.raises(Asked):
            rollout.main({**job, "robot": {**robot, **own}}, channel)
        assert (asked["limit"], asked["guarded"]) == (limit, True)
