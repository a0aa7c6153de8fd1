"""The supervisor's end of a worker, against real processes."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from zk0d.errors import WorkerError
from zk0d.supervise import Worker

PROBE = """
import os, signal, subprocess, sys, time
from zk0d.errors import DatasetError
from zk0d.worker import run_worker

def main(job, channel):
    channel.emit("ready", pid=os.getpid())
    kind = job["kind"]
    if kind == "result":
        print("on stdout")
        return {"answer": job["value"]}
    if kind == "refuse":
        raise DatasetError("no such dataset", "record one")
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "garbage":
        channel._sock.sendall(b"not json\\n"); time.sleep(60)
    if kind == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
        channel.emit("child", pid=child.pid)
    if kind == "deaf":
        time.sleep(60)
    steps = 0
    while True:
        command = channel.poll(0.01)
        steps += 1
        channel.emit("progress", step=steps)
        if command and command["cmd"] in ("stop", "yield"):
            return {"finished": False, "cmd": command["cmd"]}

sys.exit(run_worker(main))
"""


class Events:
    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []

    def __call__(self, event: dict[str, Any]) -> None:
        self.all.append(event)

    async def first(self, kind: str) -> dict[str, Any]:
        async with asyncio.timeout(20):
            while True:
                for event in self.all:
                    if event["event"] == kind:
                        return event
                await asyncio.sleep(0.01)


async def start(tmp_path: Path, events: Events, **job: Any) -> Worker:
    (tmp_path / "probe_worker.py").write_text(PROBE)
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parents[2])])}
    return await Worker.start(
        sys.executable, "probe_worker", job, tmp_path / "work", tmp_path / "log" / "worker.log", events, env
    )


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while alive(pid):
            await asyncio.sleep(0.01)


def test_result_and_output(tmp_path: Path) -> None:
    async def run() -> None:
        events = Events()
        worker = await start(tmp_path, events, kind="result", value=[1, 2])
        assert await worker.wait() == {"answer": [1, 2]}
        assert [e["event"] for e in events.all] == ["ready", "done"]
        assert "on stdout" in (tmp_path / "log" / "worker.log").read_text()
        assert (tmp_path / "work" / "job.json").stat().st_mode & 0o777 == 0o600

    asyncio.run(run())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("refuse", "no such dataset (record one)"),
        ("die", "was killed by SIGKILL"),
        ("garbage", "sent something that is not an event"),
    ],
)
def test_how_it_failed_is_said(tmp_path: Path, kind: str, said: str) -> None:
    async def run() -> None:
        worker = await start(tmp_path, Events(), kind=kind)
        with pytest.raises(WorkerError) as caught:
            await worker.wait()
        assert said in str(caught.value)

    asyncio.run(run())


def test_missing_interpreter_is_a_worker_error(tmp_path: Path) -> None:
    async def run() -> None:
        with pytest.raises(WorkerError, match="cannot be started with /no/such/python"):
            await Worker.start("/no/such/python", "x", {}, tmp_path, tmp_path / "log")

    asyncio.run(run())


def test_freeze_thaw_and_yield(tmp_path: Path) -> None:
    async def run() -> None:
        events = Events()
        worker = await start(tmp_path, events, kind="loop")
        await events.first("progress")
        worker.freeze()
        stat = Path(f"/proc/{worker.pid}/stat")
        async with asyncio.timeout(5):
            while stat.read_text().rpartition(")")[2].split()[0] != "T":
                await asyncio.sleep(0.01)
        assert worker.frozen
        await worker.stop(grace_s=10, cmd="yield")  # thaws by itself
        assert worker.result == {"finished": False, "cmd": "yield"}
        assert not worker.frozen and not worker.running

    asyncio.run(run())


def test_deaf_worker_is_killed_after_grace(tmp_path: Path) -> None:
    async def run() -> None:
        events = Events()
        worker = await start(tmp_path, events, kind="deaf")
        await events.first("ready")
        await worker.stop(grace_s=0.1)
        assert worker.returncode == -9

    asyncio.run(run())


def test_children_go_with_the_worker(tmp_path: Path) -> None:
    """A child that inherited our socket must neither outlive the worker nor hold its end open."""

    async def run() -> None:
        events = Events()
        worker = await start(tmp_path, events, kind="child")
        child = (await events.first("child"))["pid"]
        await worker.stop(grace_s=10)
        await gone(child)

    asyncio.run(run())
