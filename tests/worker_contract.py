"""What every way of running a worker must hold to: run against children here (unit tests), against units in a booted system.

`python3 worker_contract.py NAME` as user zk0d runs one part against systemd's units. Standard library and zk0d only.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

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
    if kind == "long":
        name = "videos/observation.images.front/chunk-000/file-{:05d}.mp4 does not decode"
        return {"answer": [name.format(n) for n in range(job["count"])]}
    if kind == "refuse":
        raise DatasetError("no such dataset", "record one")
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "garbage":
        channel._sock.sendall(b"not json\\n"); time.sleep(60)
    if kind == "child":
        child = subprocess.Popen([sys.executable, "-c", "while True: pass"], close_fds=False)
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
        async with asyncio.timeout(60):
            while True:
                for event in self.all:
                    if event["event"] == kind:
                        return event
                await asyncio.sleep(0.01)


Start = Callable[[Events, dict[str, Any]], Awaitable[Worker]]


def used(pid: int) -> int:
    """Processor time of a process in ticks; -1 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] in "ZX" else int(fields[11]) + int(fields[12])


async def gone(pid: int) -> None:
    async with asyncio.timeout(60):
        while used(pid) >= 0:
            await asyncio.sleep(0.01)


async def result(start: Start) -> None:
    events = Events()
    worker = await start(events, {"kind": "result", "value": [1, 2]})
    assert await worker.wait() == {"answer": [1, 2]}
    assert [e["event"] for e in events.all] == ["ready", "done"]
    assert worker.returncode == 0 and not worker.running


async def failures(start: Start) -> None:
    for kind, said in (
        ("refuse", "no such dataset (record one)"),
        ("die", "was killed by SIGKILL"),
        ("garbage", "sent something that is not an event"),
    ):
        worker = await start(Events(), {"kind": kind})
        try:
            await worker.wait()
        except WorkerError as error:
            assert said in str(error), str(error)
        else:
            raise AssertionError(f"{kind}: no error")


async def freeze(start: Start) -> None:
    """A frozen worker and its busy child take no processor time; thawed they do; a frozen one can be told to yield."""
    events = Events()
    worker = await start(events, {"kind": "child"})
    child = (await events.first("child"))["pid"]
    worker.freeze()
    assert worker.frozen
    async with asyncio.timeout(60):
        while True:
            before = (used(worker.pid), used(child))
            await asyncio.sleep(0.2)
            if before == (used(worker.pid), used(child)):
                break
    worker.thaw()
    async with asyncio.timeout(60):
        while used(child) <= before[1]:
            await asyncio.sleep(0.01)
    for _ in range(5):  # the last word counts
        worker.freeze()
        worker.thaw()
    worker.freeze()
    await worker.stop(grace_s=60, cmd="yield")
    assert worker.result == {"finished": False, "cmd": "yield"}, worker.failure
    assert not worker.frozen and not worker.running
    await gone(child)


async def kill(start: Start) -> None:
    """A deaf worker is killed after the grace, a frozen one at once."""
    events = Events()
    worker = await start(events, {"kind": "deaf"})
    await events.first("ready")
    await worker.stop(grace_s=0.1)
    assert worker.returncode == -9
    events = Events()
    worker = await start(events, {"kind": "child"})
    child = (await events.first("child"))["pid"]
    worker.freeze()
    await asyncio.sleep(0.1)
    await worker.kill()
    assert worker.returncode == -9
    await gone(child)


PARTS = {f.__name__: f for f in (result, failures, freeze, kill)}


async def freeze_times(start: Start, count: int = 100) -> list[float]:
    """Seconds from `freeze` until the kernel says that the whole unit is frozen, `count` times."""
    events, taken = Events(), []
    worker = await start(events, {"kind": "child"})
    await events.first("child")
    own = Path(f"/proc/{worker.pid}/cgroup").read_text().splitlines()[-1].rpartition("::")[2]
    state = Path(f"/sys/fs/cgroup{own}/cgroup.events")

    async def until(word: str) -> None:
        async with asyncio.timeout(60):
            while word not in state.read_text():
                await asyncio.sleep(0.0005)

    for _ in range(count):
        began = time.perf_counter()
        worker.freeze()
        await until("frozen 1")
        taken.append(time.perf_counter() - began)
        worker.thaw()
        await until("frozen 0")
        await asyncio.sleep(0.01)
    await worker.stop(5)
    return sorted(taken)


def _units(name: str) -> None:
    from zk0d.daemon import units

    state = Path("/var/lib/zk0d")
    systemd = units.Systemd()

    async def start(events: Events, job: dict[str, Any]) -> Worker:
        folder, output = state / "work" / "trainer" / "probe", state / "log" / "trainer.log"
        how = {"python": sys.executable, "nice": 5}
        return await units.start(systemd, "trainer", "probe", "probe", job, folder, output, events, how)

    if name == "freeze_times":
        taken = asyncio.run(freeze_times(start))
        print({"median_ms": taken[50] * 1e3, "p99_ms": taken[98] * 1e3, "max_ms": taken[-1] * 1e3})
    else:
        asyncio.run(PARTS[name](start))


if __name__ == "__main__":
    assert os.geteuid() != 0, "the daemon has no privileges"
    _units(sys.argv[1])
