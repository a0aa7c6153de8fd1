"""A recorder that outlives the daemon, taken over by the next one: a real process on the real channel, no arm."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from zk0d.daemon import units
from zk0d.daemon.arm import Arm
from zk0d.daemon.config import Config
from zk0d.daemon.record_request import RecordRequest
from zk0d.daemon.sessions import Sessions
from zk0d.daemon.store import Store
from zk0d.daemon.workers import Workers
from zk0d.worker import FD_VARIABLE, SOCKET_VARIABLE

RECORDER = """
import fcntl, pathlib, sys
from zk0d.worker import run_worker

def main(job, channel):
    root = pathlib.Path(job["dataset"])
    lock = (root / ".zk0/lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    channel.emit("saved", episode=1, frames=30, success=None, take=2)
    (root / "meta").mkdir()
    (root / "meta/info.json").write_text(
        '{"codebase_version": "v3.0", "fps": 30, "features": {}, "total_episodes": 2, "total_frames": 60}')
    return {"episodes": 2, "takes": 3, "discarded": 1, "frames": 60, "dataset": job["dataset"]}

status = run_worker(main)
pathlib.Path("ended").write_text(f"success exited {status}")
"""


def test_a_recorder_that_saved_the_goal_while_no_daemon_ran_tells_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(units.VARIABLE, "units")
    root, name = tmp_path / "datasets/cups", "abc"
    staged = root / ".zk0/staging/take-1-0001"
    staged.mkdir(parents=True)
    (staged / "begun.json").write_text("{}")  # its next take: what it holds is nobody else's to save
    work = tmp_path / "work/recorder" / name
    work.mkdir(parents=True)
    (work / "job.json").write_text(f'{{"dataset": "{root}"}}')
    (work / "recorder.py").write_text(RECORDER)
    ours, theirs = socket.socketpair()
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        FD_VARIABLE: str(theirs.fileno()),
    }
    environment[SOCKET_VARIABLE] = str(work / "channel.sock")
    process = subprocess.Popen(
        [sys.executable, "recorder.py", "job.json"], cwd=work, env=environment, pass_fds=[theirs.fileno()]
    )
    theirs.close()
    ours.close()  # the daemon before us is killed
    deadline = time.monotonic() + 60
    while not (root / "meta/info.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)

    async def next_daemon() -> None:
        config = Config.load([])
        store, workers = Store(tmp_path / "zk0d.db"), Workers(tmp_path, config)
        arm = Arm(store, config, workers, lambda: None, lambda: None)
        sessions = Sessions(store, tmp_path, config, workers, arm, lambda: None)
        request = RecordRequest(
            dataset="cups", task="t", by="alice", until=2, episodes=0, episode_s=5.0, reset_s=0.0, fps=30, keep="all",
            seed=0, robot={"follower": "/dev/ttyACM0", "units": "degrees"}, train=True, pace="",
        )  # fmt: skip
        session = store.begin_session("cups", "t", "alice", 2)
        kept = {"request": asdict(request), "since": time.time(), "goal": 2, "first": 0, "session": session}
        store.put("recording", {**kept, "worker": name})
        assert sessions.survivor({name: "recorder"}) == name
        sessions.note_cut(but=name)
        sessions.take_over()
        sessions.begin_adopting()
        end = time.monotonic() + 60
        while arm.live is not None and time.monotonic() < end:
            await asyncio.sleep(0.02)
        assert arm.live is None
        told = [event["text"] for event in store.events(20)]
        assert (store.sessions()[0].state, store.sessions()[0].saved) == ("done", 2), told
        assert any("2 episodes saved, 1 takes discarded" in text for text in told), told
        assert not any("could not be saved" in text for text in told), told
        assert store.get("recording") is None
        store.close()

    try:
        asyncio.run(next_daemon())
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
