"""The supervisor's end of a worker, against real processes."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from worker_contract import PARTS, PROBE, Events

from zk0d.errors import WorkerError
from zk0d.supervise import Worker


async def start(tmp_path: Path, events: Events, **job: Any) -> Worker:
    (tmp_path / "probe_worker.py").write_text(PROBE)
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parents[2])])}
    return await Worker.start(
        sys.executable, "probe_worker", job, tmp_path / "work", tmp_path / "log" / "worker.log", events, env
    )


@pytest.mark.parametrize("part", PARTS)
def test_the_contract_of_workers(tmp_path: Path, part: str) -> None:
    """The same holds for workers as units: tests/booted/test_worker_units.py."""

    async def one(events: Events, job: dict[str, Any]) -> Worker:
        return await start(tmp_path, events, **job)

    asyncio.run(PARTS[part](one))


def test_result_and_output(tmp_path: Path) -> None:
    async def run() -> None:
        events = Events()
        worker = await start(tmp_path, events, kind="result", value=[1, 2])
        assert await worker.wait() == {"answer": [1, 2]}
        assert [e["event"] for e in events.all] == ["ready", "done"]
        assert "on stdout" in (tmp_path / "log" / "worker.log").read_text()
        assert (tmp_path / "work" / "job.json").stat().st_mode & 0o777 == 0o600

    asyncio.run(run())


def test_missing_interpreter_is_a_worker_error(tmp_path: Path) -> None:
    async def run() -> None:
        with pytest.raises(WorkerError, match="cannot be started with /no/such/python"):
            await Worker.start("/no/such/python", "x", {}, tmp_path, tmp_path / "log")

    asyncio.run(run())


def test_nothing_of_a_worker_is_left_whose_start_is_cancelled(tmp_path: Path) -> None:
    """Wherever in the start that happens; the leak gate looks for the process, its pidfd and its channel."""

    async def run(turns: int) -> bool:
        starting = asyncio.create_task(start(tmp_path, Events(), kind="loop"))
        for _ in range(turns):
            await asyncio.sleep(0)
        if starting.done():
            await (await starting).kill()
            return True
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        return False

    assert next(n for n in range(50) if asyncio.run(run(n))) > 3


def test_freeze_thaw_and_yield(tmp_path: Path) -> None:
    async def run() -> None:
        events = Events()
        worker = await start(tmp_path, events, kind="loop")
        await events.first("progress")
        worker.freeze()
        stat = Path(f"/proc/{worker.pid}/stat")
        async with asyncio.timeout(60):
            while stat.read_text().rpartition(")")[2].split()[0] != "T":
                await asyncio.sleep(0.01)
        assert worker.frozen
        await worker.stop(grace_s=60, cmd="yield")  # thaws by itself
        assert worker.result == {"finished": False, "cmd": "yield"}
        assert not worker.frozen and not worker.running

    asyncio.run(run())


DEAF = """
import signal, time
from zk0d.worker import WorkerChannel
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
channel = WorkerChannel()
channel.emit("progress", step=1)
while True:
    time.sleep(60)
"""


def test_one_that_ignores_the_yield_is_killed_in_time(tmp_path: Path) -> None:
    """Frozen before it is asked, as a trainer is that somebody's rollout found."""

    async def run() -> None:
        (tmp_path / "deaf_worker.py").write_text(DEAF)
        env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parents[2])])}
        events = Events()
        worker = await Worker.start(sys.executable, "deaf_worker", {}, tmp_path / "work", tmp_path / "log", events, env)
        await events.first("progress")
        worker.freeze()
        async with asyncio.timeout(60):
            await worker.stop(grace_s=0.2, cmd="yield")
        assert worker.returncode == -9 and not worker.frozen
        with pytest.raises(WorkerError, match="SIGKILL"):
            await worker.wait()

    asyncio.run(run())


@pytest.mark.parametrize("count", [900, 60_000])
def test_a_long_result_arrives_and_one_too_long_says_what_is_left_out(tmp_path: Path, count: int) -> None:
    """A badly damaged dataset has a sentence for each file; all of them are more than a line of 64 KiB."""
    value = [f"videos/observation.images.front/chunk-000/file-{n:05d}.mp4 does not decode" for n in range(count)]

    async def run() -> None:
        events = Events()
        worker = await start(tmp_path, events, kind="long", count=count)
        answer = (await worker.wait())["answer"]
        assert answer == value if count < 1000 else answer[:-1] == value[: len(answer) - 1]
        assert count < 1000 or answer[-1] == f"… and {count - len(answer) + 1} more"

    asyncio.run(run())
