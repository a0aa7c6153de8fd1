"""The recorder worker on the virtual bench: real drivers, real process, real files, read back by LeRobot's loader."""

from __future__ import annotations

import importlib.util
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from daemon_process import STOP_S
from recorded_dataset import check_whole
from worker_process import WorkerProcess

pytest.importorskip("lerobot")
pytest.importorskip("so101_nexus")
CAMERAS = {"front": {"height": 64, "width": 64}, "wrist": {"height": 64, "width": 64}}
RECORDER = "robot.recorder"


def job(root: Path, **changes: Any) -> dict[str, Any]:
    robot = {"follower": "virtual:Touch", "cameras": CAMERAS, **changes.pop("robot", {})}
    base = {"dataset": str(root), "task": "touch the cube", "episodes": 2, "keep": "success", "robot": robot, "seed": 4}
    return base | changes


def test_two_episodes_two_cameras(tmp_path: Path) -> None:
    root = tmp_path / "set"
    with WorkerProcess(RECORDER, job(root), tmp_path / "work") as worker:
        assert worker.until("ready")["cameras"] == ["front", "wrist"]
        result = worker.until("done")["result"]
        assert worker.process.wait(60) == 0, worker.tail()
    assert result["episodes"] == 2 and result["takes"] == 2 + result["discarded"]
    assert [e["success"] for e in worker.of("saved")] == [True, True]
    assert len(worker.of("discarded")) == result["discarded"]
    dataset = check_whole(root)
    assert dataset.num_episodes == 2 and len(dataset) == result["frames"]
    assert dataset[0]["task"] == "touch the cube" and dataset.meta.robot_type == "so_follower"
    state = np.stack(dataset.hf_dataset["observation.state"])
    action = np.stack(dataset.hf_dataset["action"])
    assert np.ptp(action, axis=0).max() > 5  # the leader moved, in degrees
    ends = [e - 1 for e in dataset.meta.episodes["dataset_to_index"]]
    assert np.abs(state[ends] - action[ends]).max() < 15  # and the follower followed
    assert not list((root / ".zk0/staging").iterdir())


def test_commands_end_a_take_at_once(tmp_path: Path) -> None:
    root = tmp_path / "set"
    settings = job(
        root, keep="all", auto=False, episodes=9, robot={"follower": "virtual:Touch?clock=wall", "leader": "rest"}
    )
    with WorkerProcess(RECORDER, settings, tmp_path / "work") as worker:
        waits = []
        for command, answer in (("next", "saved"), ("discard", "discarded"), ("next", "saved")):
            worker.until("progress")
            worker.send(command)
            since = time.monotonic()
            worker.until("take" if command == "next" else answer)
            waits.append(time.monotonic() - since)
        worker.until("progress")
        worker.send("finish")
        worker.send("next")
        result = worker.until("done")["result"]
        assert worker.process.wait(60) == 0, worker.tail()
    assert (result["episodes"], result["takes"], result["discarded"]) == (3, 4, 1)
    assert max(waits) < 15.0, waits  # at once, where the machine does not halt; a take that nothing ends has 60 s
    quality = worker.of("saved")[-1]["quality"]
    assert 1 < quality["hz"] < 31, quality  # as the clock goes: fewer where the machine halts, never more
    assert check_whole(root).num_episodes == 3


def test_keep_success_counts_what_was_not(tmp_path: Path) -> None:
    settings = job(tmp_path / "set", episode_s=0.5, max_takes=3, robot={"leader": "rest"})
    with WorkerProcess(RECORDER, settings, tmp_path / "work") as worker:
        result = worker.until("done")["result"]
        assert worker.process.wait(60) == 0, worker.tail()
    assert (result["episodes"], result["takes"], result["discarded"]) == (0, 3, 3)
    assert {e["reason"] for e in worker.of("discarded")} == {"no success"}


def test_kill_nine_in_a_take_loses_only_that_take(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    root = tmp_path / "set"
    with WorkerProcess(RECORDER, job(root, episodes=50), tmp_path / "first") as worker:
        worker.until("saved", timeout_s=120)
        moment = time.monotonic() + random.Random(seed).uniform(0, 1.5)
        while (left := moment - time.monotonic()) > 0:
            try:
                worker.read(left)
            except AssertionError:
                break
        worker.kill()
        while worker.read(5) is not None:
            pass
    saved, begun = len(worker.of("saved")), len(worker.of("take"))
    survivors = check_whole(root)
    assert survivors.num_episodes >= 1
    before = [
        np.asarray(row) for row in survivors.hf_dataset["action"][: survivors.meta.episodes["dataset_to_index"][0]]
    ]
    del survivors
    with WorkerProcess(RECORDER, job(root, episodes=1, seed=9), tmp_path / "second") as worker:
        ready = worker.until("ready")
        worker.until("done")
        assert worker.process.wait(60) == 0, worker.tail()
        adopted = len(ready["recovered"].get("adopted", []))
    after = check_whole(root)
    # What was reported is there; takes that had ended, and were not yet reported, may be there as well: as many as a
    # busy machine had not come to.
    assert saved + 1 <= after.num_episodes <= begun + 1 and adopted <= begun - saved
    assert "quarantined" not in ready["recovered"]
    for old, new in zip(before, after.hf_dataset["action"][: len(before)], strict=True):
        assert (old == np.asarray(new)).all()


def test_when_the_supervisor_dies_a_virtual_bench_ends_after_its_take(tmp_path: Path) -> None:
    root = tmp_path / "set"
    with WorkerProcess(RECORDER, job(root, episodes=50), tmp_path / "work") as worker:
        worker.until("saved", timeout_s=120)
        worker.hang_up()
        assert worker.process.wait(60) == 0, worker.tail()
    assert 1 <= check_whole(root).num_episodes < 50


def test_stop_is_clean_within_five_seconds(tmp_path: Path) -> None:
    root = tmp_path / "set"
    with WorkerProcess(RECORDER, job(root, episodes=50), tmp_path / "work") as worker:
        worker.until("progress")
        worker.process.terminate()
        since = time.monotonic()
        result = worker.until("done")["result"]
        assert worker.process.wait(60) == 0, worker.tail()
        assert time.monotonic() - since < STOP_S
    assert result["discarded"] >= 1 and not list((root / ".zk0/staging").iterdir())


def test_no_take_begins_where_it_would_not_fit(tmp_path: Path) -> None:
    settings = job(tmp_path / "set", floor_bytes=1 << 60)
    with WorkerProcess(RECORDER, settings, tmp_path / "work") as worker:
        error = worker.until("error")
        assert worker.process.wait(60) != 0
    assert "floor_gb" in error["message"] and "nothing recorded is deleted" in error["hint"]


@pytest.mark.skipif(importlib.util.find_spec("rerun") is not None, reason="rerun-sdk is installed")
def test_without_rerun_it_says_what_to_install_before_an_arm_is_opened(tmp_path: Path) -> None:
    with WorkerProcess(RECORDER, job(tmp_path / "set", rerun="spawn"), tmp_path / "work") as worker:
        error = worker.until("error")
    assert "rerun-sdk" in error["message"] and "lerobot[viz]" in error["hint"]
