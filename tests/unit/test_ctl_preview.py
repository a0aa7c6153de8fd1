"""The live picture of a recording: of the recorder's progress events, for any phase."""

from __future__ import annotations

from zk0d.ctl.preview import picture

EVENT = {
    "phase": "take", "episode": 3, "frames": 90, "seconds": 3.0, "hz": 30.0,
    "joints": {"elbow_flex.pos": -100.0, "gripper.pos": 100.0}, "cameras": {"front": 12.4, "wrist": 250.0},
    "care": {"level": "slow", "reason": "elbow_flex is 63 °C hot", "celsius": 63.0, "volts": 7.2},
}  # fmt: skip


def test_a_take() -> None:
    lines = picture(EVENT, "2 of 10 saved").split("\n")
    assert lines[0] == "2 of 10 saved; taking episode 3: 90 frames, 3.0 s, 30.0 Hz"
    assert lines[1].split() == ["elbow_flex", "-100.0", "|" + "·" * 23]
    assert lines[2].split() == ["gripper", "100.0", "·" * 23 + "|"]
    assert lines[3] == "  cameras: front 12 ms, wrist 250 ms old"
    assert lines[4] == "  servos: up to 63 °C, 7.2 V; slow: elbow_flex is 63 °C hot"


def test_between_takes_and_of_an_older_recorder() -> None:
    assert "put things back, 4 s" in picture({"phase": "reset", "left_s": 4.2}, "1 of 2 saved")
    assert "paused" in picture({"phase": "paused"}, "1 of 2 saved")
    assert picture({"episode": 1, "frames": 5}, "0 of 2 saved") == "0 of 2 saved; taking episode 1: 5 frames"
    assert picture({}, "0 of 1 saved").startswith("0 of 1 saved")
