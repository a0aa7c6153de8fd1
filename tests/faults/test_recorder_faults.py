"""What goes wrong on the wire, at the camera, on the disk and with the process while a take runs: real drivers, real files.

Each: what was recorded before stays, the person is told, and of the take that suffers what is whole is kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capture import Capture
from daemon_process import wait_until
from recorded_dataset import check_whole
from small_disk import small_disk
from virtual_pair import Told, table
from worker_process import WorkerProcess

from robot import recorder
from robot.arms import open_bench
from robot.config import RobotTable
from robot.ear import Ear
from robot.ramp import ramp
from robot.video import CameraEncoder, packets
from robot.virtual.servo import TORQUE_ENABLE
from zk0d.errors import DatasetError, RobotError

pytest.importorskip("lerobot")
pytest.importorskip("so101_nexus")


def record(root: Path, robot: dict[str, Any], told: Told, **changes: Any) -> Any:
    job = {"dataset": str(root), "task": "t", "episodes": 1, "episode_s": 1.2, "robot": robot, **changes}
    return recorder.main(job, told)  # type: ignore[arg-type]


def test_lost_late_and_damaged_packets(station: Any, tmp_path: Path) -> None:
    line = station.faults.follower
    with open_bench(RobotTable.parse(table(station, tmp_path / "c")), fps=30) as bench:
        port = bench._sides[0].follower.bus.port_handler.ser
        for harm in (line.drop_next, line.corrupt_next, lambda: line.delay_next(0.7), lambda: line.delay_next(0.1)):
            harm()
            state, _ = bench.observe()
            assert np.isfinite(state).all()
            wait_until(lambda: not line.owing, "the late reply is there")
        target = bench.observe()[0] + np.float32([8, 0, 0, 0, 0, 0])
        assert ramp(bench, lambda: target, Ear(Told())) == ""
        asked = line.counters.positions
        bench.observe()
        assert line.counters.positions == asked + 1
        assert port.in_waiting == 0  # a late reply is nobody's: no later one is one behind
        assert bench.observe()[0][0] == pytest.approx(target[0], abs=2.0)


def test_swapped_ports_and_a_replugged_arm(station: Any, tmp_path: Path) -> None:
    robot = table(station, tmp_path / "c")
    other = {**robot, "follower": robot["leader"], "leader": robot["follower"]}
    with pytest.raises(RobotError, match="is the other arm") as refused, open_bench(RobotTable.parse(other), fps=30):
        pass
    assert "swap leader and follower" in refused.value.hint
    root, told = tmp_path / "set", Told()
    before = os.path.realpath(robot["follower"])
    told.act = lambda event, fields: (
        station.faults.follower.unplug() if event == "progress" and fields["frames"] >= 32 else None
    )
    with pytest.raises(RobotError, match="follower"):
        record(root, robot, told, episode_s=60)
    assert told.of("saved")[0]["frames"] >= 30
    hold = os.openpty()  # so that it comes back as another device, as USB does
    try:
        station.faults.follower.plug()
    finally:
        for fd in hold:
            os.close(fd)
    assert os.path.realpath(robot["follower"]) != before
    assert record(root, robot, Told())["episodes"] == 1
    assert check_whole(root).num_episodes == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_camera_lost_in_a_take(station: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cv2.VideoCapture", Capture)
    Capture.gone.clear()
    robot = table(station, tmp_path / "c", cameras={"front": {"source": "0", "height": 64, "width": 64}})
    told = Told(lambda event, fields: Capture.gone.set() if event == "progress" and fields["frames"] >= 32 else None)
    with pytest.raises(RobotError) as failed:
        record(tmp_path / "set", robot, told, episode_s=60)
    assert "camera front stopped" in failed.value.message and failed.value.hint
    dataset = check_whole(tmp_path / "set")
    assert dataset.num_episodes == 1 and len(dataset) == told.of("saved")[0]["frames"] >= 30


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "300m") as folder:
        yield folder


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))


def test_a_disk_that_fills_up_in_a_take(
    station: Any, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cv2.VideoCapture", Capture)
    monkeypatch.setattr(recorder, "DISK_CHECK_EVERY_S", 1e9)  # which may end the take before a write fails
    Capture.gone.clear()
    cameras = {"front": {"source": "0", "height": 64, "width": 64}}
    root, robot = disk / "set", table(station, tmp_path / "c", cameras=cameras)
    assert record(root, robot, before := Told())["episodes"] == 1
    told = Told()
    filler = disk / "filler"

    def full_with_forty(event: str, fields: dict[str, Any]) -> None:
        # Forty that are in the file, not forty taken: the encoder of a busy machine is behind the take.
        if event == "progress" and any(packets(path) >= 40 for path in root.rglob("front.live.mp4")):
            fill(filler)

    told.act = full_with_forty
    with pytest.raises(DatasetError) as full:
        record(root, robot, told, episode_s=60, episodes=2)
    assert "No space left" in full.value.message and "are kept" in full.value.message and "room" in full.value.hint
    assert check_whole(root).num_episodes == 1
    left = [(path.name, path.stat().st_size) for path in root.glob(".zk0/staging/*/*")]
    fill(more := disk / "more")  # what the ended take gave back may be enough to save it
    recovered = recorder.recover(root)["recovered"]
    assert "No space left" in recovered.get("waiting", [""])[0], (recovered, left, full.value.message)
    filler.unlink()
    more.unlink()
    assert recorder.recover(root)["recovered"]["adopted"] == [1]
    dataset = check_whole(root)
    assert dataset.num_episodes == 2 and len(dataset) >= before.of("saved")[0]["frames"] + 30


def test_what_no_encoder_had_written_when_the_disk_was_full_is_not_said_to_be_kept(
    station: Any, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder may be two seconds behind."""
    monkeypatch.setattr("cv2.VideoCapture", Capture)
    Capture.gone.clear()
    root = disk / "set"
    robot = table(station, tmp_path / "c", cameras={"front": {"source": "0", "height": 64, "width": 64}})
    follow, behind = CameraEncoder._next, threading.Event()

    def late(self: CameraEncoder) -> Any:
        if self.frames and not behind.is_set():
            fill(disk / "filler")
            behind.wait(60)
        return follow(self)

    monkeypatch.setattr(CameraEncoder, "_next", late)
    told = Told(lambda event, fields: behind.set() if event == "progress" and fields["frames"] >= 40 else None)
    with pytest.raises(DatasetError) as full:
        record(root, robot, told, episode_s=60)
    assert "No space left" in full.value.message and "kept" not in full.value.message, full.value
    assert not list(root.glob(".zk0/staging/*"))


def test_a_take_that_uses_up_the_quota_ends_and_is_kept(
    station: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "DISK_CHECK_EVERY_S", 0.2)
    root, told = tmp_path / "set", Told()
    result = record(root, table(station, tmp_path / "c"), told, episode_s=60, episodes=3, quota_left=2000)
    assert result["episodes"] == 1 and "quota of all datasets is used up" in result["ended"]
    assert told.of("take") == [{"take": 1, "episode": 0}]  # and no other begins
    assert check_whole(root).num_episodes == 1
    assert json.loads((root / "meta/zk0/episodes/000000.json").read_text())["facts"]["ended_by"] == "disk"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_in_a_take_keeps_it_up_to_there(station: Any, tmp_path: Path, number: signal.Signals) -> None:
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    moment = random.Random(seed).uniform(1.2, 2.5)
    root = tmp_path / "set"
    job = {"dataset": str(root), "task": "t", "episodes": 1, "episode_s": 60.0}
    job["robot"] = table(station, tmp_path / "calibration")
    with WorkerProcess("robot.recorder", job, tmp_path / "work") as worker:
        while worker.until("progress")["seconds"] < moment:
            pass
        frames = worker.of("progress")[-1]["frames"]
        worker.process.send_signal(number)
        worker.process.wait(60)
    # A process that is killed cannot let go of its arm: that is zk0d's (tests/integration/test_arm_let_go.py).
    assert any(s.table[TORQUE_ENABLE] for s in station._follower.servos) == (number == signal.SIGKILL)
    found = recorder.recover(root)
    dataset = check_whole(root)
    assert dataset.num_episodes == 1 and len(dataset) >= frames
    if number == signal.SIGKILL:
        assert found["recovered"]["adopted"] == [0] and found["recovered"]["cut"][0].startswith("episode 0: ")
