"""A take that would not fit does not begin, and one that reaches the floor or the quota ends; both say why."""

from __future__ import annotations

from pathlib import Path

from robot.room import Room

CAMERAS = ((480, 640), (480, 640))
GB = 10**9


def test_the_floor() -> None:
    room = Room(GB, 0, CAMERAS, 30, 20.0)
    assert room.refusal(2 * GB) == "" and room.reason == ""
    said = room.refusal(GB + 5_000_000)  # a take of 20 s needs about 15 MB
    assert "1.0 GB are free" in said and "needs about 15 MB" in said and "floor_gb" in said
    running = Room(GB, 0, CAMERAS, 30, 20.0)
    assert not running.full(GB + 1, Path("/nonexistent"))
    assert running.full(GB - 1, Path("/nonexistent")) and "floor" in running.reason


def test_the_quota_counts_what_was_recorded_and_the_running_take(tmp_path: Path) -> None:
    room = Room(1, 40_000_000, CAMERAS, 30, 20.0)
    assert room.refusal(GB) == ""
    room.recorded(25_000_000, 20.0)  # from now on a take is taken to need as much
    assert "leaves 15 MB" in room.refusal(GB)
    running = Room(1, 1000, CAMERAS, 30, 20.0)
    (tmp_path / "front.mp4").write_bytes(b"x" * 900)
    assert not running.full(GB, tmp_path)
    (tmp_path / "wrist.mp4").write_bytes(b"x" * 200)
    assert running.full(GB, tmp_path) and "quota" in running.reason
