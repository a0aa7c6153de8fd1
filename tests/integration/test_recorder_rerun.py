"""`record --rerun` with a real viewer without a window: what the recorder shows arrives there. Needs rerun-sdk."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from daemon_process import wait_until
from recorded_dataset import check_whole
from worker_process import WorkerProcess

pytest.importorskip("lerobot")
pytest.importorskip("so101_nexus")
pytest.importorskip("rerun", reason="rerun-sdk is not installed (lerobot[viz])")


def job(root: Path, port: int) -> dict[str, Any]:
    robot = {
        "follower": "virtual:Touch?clock=wall",
        "leader": "rest",
        "cameras": {"front": {"height": 64, "width": 64}},
    }
    base = {"dataset": str(root), "task": "touch", "episodes": 1, "episode_s": 1.5, "keep": "all"}
    return {**base, "robot": robot, "rerun": f"127.0.0.1:{port}"}


@contextmanager
def viewer(saved: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A viewer that keeps what it is shown in a file → its port and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "rerun_cli", "--save", str(saved), "--bind", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def listens() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(listens, "the viewer listens")
        yield port, process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)


def test_joints_and_images_arrive_in_the_viewer(tmp_path: Path) -> None:
    saved = tmp_path / "seen.rrd"
    with viewer(saved) as (port, process):
        with WorkerProcess("robot.recorder", job(tmp_path / "set", port), tmp_path / "work") as worker:
            assert worker.until("done")["result"]["episodes"] == 1
            assert worker.process.wait(60) == 0, worker.tail()
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
    said = subprocess.run(
        [sys.executable, "-m", "rerun_cli", "rrd", "print", str(saved)], capture_output=True, text=True
    )
    for path in ("/observation.front", "/observation.elbow_flex.pos", "/action.gripper.pos"):
        assert said.stdout.count(f"- {path} -") >= 3, said.stdout[-2000:]
    assert check_whole(tmp_path / "set").num_episodes == 1


def test_a_viewer_that_goes_away_costs_nothing(tmp_path: Path) -> None:
    with viewer(tmp_path / "seen.rrd") as (port, process):
        with WorkerProcess("robot.recorder", job(tmp_path / "set", port), tmp_path / "work") as worker:
            worker.until("progress")
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)
            assert worker.until("done")["result"]["episodes"] == 1
            assert worker.process.wait(60) == 0, worker.tail()
        with WorkerProcess("robot.recorder", job(tmp_path / "set", port), tmp_path / "work") as worker:
            error = worker.until("error")
    assert f"no viewer answers at 127.0.0.1:{port}" in error["message"] and "rerun --bind" in error["hint"]
    assert check_whole(tmp_path / "set").num_episodes == 1
