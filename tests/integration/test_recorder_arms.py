"""Arms opened by port, as real ones are: the same servos behind a pseudo-terminal, and what can be wrong with them.

The bench lives in the test's process, in wall-clock time; the recorder knows nothing of it but two ports.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from recorded_dataset import check_whole
from virtual_pair import Told, table
from worker_process import WorkerProcess

from robot import recorder
from robot.arms import open_bench
from robot.bench import Bench
from robot.config import RobotTable
from zk0d.errors import RobotError

pytest.importorskip("lerobot")
pytest.importorskip("so101_nexus")


def refusal(robot: dict[str, Any]) -> str:
    with pytest.raises(RobotError) as refused, open_bench(RobotTable.parse(robot), fps=30):
        pass
    return str(refused.value)


def test_a_persons_take_is_saved_when_the_daemon_dies(station: Any, tmp_path: Path) -> None:
    root = tmp_path / "set"
    job = {"dataset": str(root), "task": "t", "episodes": 5, "robot": table(station, tmp_path / "calibration")}
    with WorkerProcess("robot.recorder", job, tmp_path / "work") as worker:
        worker.until("take")
        while worker.until("progress")["frames"] < 35:  # of which fewer come where the machine halts
            pass
        worker.hang_up()
        assert worker.process.wait(60) == 0, worker.tail()
    dataset = check_whole(root)
    assert dataset.num_episodes == 1 and len(dataset) >= 30


def test_a_defect_of_the_recorder_costs_no_take(station: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, whole = Told(), Bench.preview

    def preview(bench: Bench) -> dict[str, Any]:
        if any(fields["frames"] > 30 for fields in told.of("progress")):
            raise ValueError("a defect in the preview")
        return whole(bench)

    monkeypatch.setattr(Bench, "preview", preview)
    root = tmp_path / "set"
    job = {"dataset": str(root), "task": "t", "episodes": 1, "robot": table(station, tmp_path / "calibration")}
    with pytest.raises(ValueError, match="a defect in the preview"):
        recorder.main(job, told)  # type: ignore[arg-type]
    (why,) = (fields["reason"] for fields in told.of("discarded"))
    assert "saved when recording starts again" in why
    assert recorder.recover(root)["recovered"]["adopted"]
    assert len(check_whole(root)) >= 30


def test_a_port_that_is_missing_or_busy(station: Any, tmp_path: Path) -> None:
    robot = table(station, tmp_path / "calibration")
    assert "there is no /dev/nowhere" in refusal({**robot, "leader": "/dev/nowhere"})
    fd = os.open(station.follower_port, os.O_RDWR | os.O_NOCTTY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        text = refusal(robot)
    finally:
        os.close(fd)
    assert "follower" in text and "in use" in text


def test_an_arm_that_is_not_calibrated_is_refused_at_once(station: Any, tmp_path: Path) -> None:
    robot = table(station, tmp_path / "calibration")
    import lerobot.robots.so_follower  # noqa: F401  # which takes its time

    since = time.monotonic()
    (tmp_path / "empty").mkdir()
    text = refusal({**robot, "calibration_dir": str(tmp_path / "empty")})
    assert "no calibration file" in text and "lerobot-calibrate" in text
    path = tmp_path / "calibration/leader.json"
    path.write_text(path.read_text().replace('"range_min": ', '"range_min": 1'))
    text = refusal(robot)
    assert "leader" in text and "not calibrated as its file says" in text
    assert time.monotonic() - since < 60  # it asked nobody


def test_a_servo_or_a_camera_that_is_missing_is_named(station: Any, tmp_path: Path) -> None:
    robot = table(station, tmp_path / "calibration")
    cameras = {"front": {"source": "/dev/video99", "height": 64, "width": 64}}
    text = refusal({**robot, "cameras": cameras})
    assert "camera front" in text and "/dev/video99" in text
    station.faults.follower.drop_next(1000)
    text = refusal(robot)
    assert "servo 1, 2, 3, 4, 5, 6 does not answer" in text and "power" in text


def test_a_busy_servo_line_gives_both_units(station: Any, tmp_path: Path) -> None:
    robot = table(station, tmp_path / "calibration")
    with open_bench(RobotTable.parse({**robot, "units": "range"}), fps=30) as bench:
        station.faults.follower.corrupt_next(1)  # one bad packet is read again
        in_range, _ = bench.observe()
    with open_bench(RobotTable.parse({**robot, "type": "so100"}), fps=30) as bench:
        in_degrees, _ = bench.observe()
    assert abs(in_range).max() <= 100 and abs(in_range[:5] - in_degrees[:5]).max() > 1
    assert in_range[5] == pytest.approx(in_degrees[5], abs=0.5)


def test_a_lost_packet_while_connecting_is_no_missing_servo(station: Any, tmp_path: Path) -> None:
    robot = table(station, tmp_path / "calibration")
    station.faults.follower.drop_next(1)
    station.faults.leader.corrupt_next(1)
    with open_bench(RobotTable.parse(robot), fps=30) as bench:
        assert bench.observe()[0].shape == bench.leader_pose().shape == (6,)


def test_one_packet_in_a_hundred_damaged_aborts_no_take(station: Any, tmp_path: Path) -> None:
    root = tmp_path / "set"
    job = {"dataset": str(root), "task": "t", "episodes": 2, "episode_s": 2.0}
    job["robot"] = table(station, tmp_path / "calibration")
    for line in (station.faults.follower, station.faults.leader):
        line.bad_line(corrupt=0.01)
    with WorkerProcess("robot.recorder", job, tmp_path / "work") as worker:
        worker.until("done")
    assert check_whole(root).num_episodes == 2
    assert station.faults.follower.counters.corrupted > 0


def test_an_arm_too_hot_ends_the_take_which_is_kept_with_the_reason(station: Any, tmp_path: Path) -> None:
    root = tmp_path / "set"
    job = {"dataset": str(root), "task": "t", "episodes": 3, "episode_s": 20.0}
    job["robot"] = table(station, tmp_path / "calibration")
    with WorkerProcess("robot.recorder", job, tmp_path / "work") as worker:
        assert worker.until("progress")["care"]["celsius"] == 31
        station.faults.follower.temperature("elbow_flex", 56)
        while (found := worker.until("care"))["kind"] != "temperature":
            pass
        assert found["level"] == "warn"
        station.faults.follower.temperature("elbow_flex", 70)
        while worker.until("care")["level"] != "release":
            pass
        saved, result = worker.until("saved"), worker.until("done")["result"]
        assert worker.process.wait(60) == 0, worker.tail()
    assert "elbow_flex is 70 °C hot" in result["ended"] and result["episodes"] == 1
    assert not any(s.table[40] for s in station._follower.servos)  # no torque
    record = json.loads((root / "meta/zk0/episodes/000000.json").read_text())
    assert record["facts"]["ended_by"] == "care" and saved["frames"] == record["length"]
    assert any("70 °C" in story["text"] for story in record["facts"]["observed"]["care"])
