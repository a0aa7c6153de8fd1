"""A hub and nodes as processes, for bench/round.py: made once, started, killed, looked at. Not a measurement itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

from _harness import REPOSITORY

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
sys.path.insert(0, str(REPOSITORY / "tests"))
from hub_cast import HubProcess, TestNode, free_port, make_parts

__all__ = ["TENSOR", "World", "family", "free_port", "make_parts", "peak_mb", "shapes"]

FEDERATION = "bench"
TENSOR = 4 << 20
"""Elements of a tensor at most: 16 MiB of float32, as the larger ones of a small language model's expert."""


def shapes(payload_bytes: int, dtype: str) -> dict[str, tuple[int, ...]]:
    """An exchange set of about `payload_bytes`, in tensors as a small language model's expert has them."""
    elements = payload_bytes // (2 if dtype == "bfloat16" else 4)
    count = max(1, -(-elements // TENSOR))
    side = max(1, int((elements / count) ** 0.5))
    return {f"layer{i:03d}.weight": (side, side) for i in range(count)}


class World:
    """A hub in `hub` (a disk) and `count` nodes in `nodes` (tmpfs: they stand for other machines)."""

    def __init__(self, hub: Path, nodes: Path, count: int, random: bool = False) -> None:
        self.hub, self.nodes, self.count, self.random = hub, nodes, count, random
        self.broker = HubProcess(hub)
        self.broker.patience_s = 300.0
        listen = tomllib.loads((hub / "hub.toml").read_text())["hub"]["listen"]
        self.port = int(listen.rpartition(":")[2])
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.peaks: dict[str, float] = {}

    def prepare(self, parts: Path, dtype: str) -> None:
        """Keys, enrolment, federation; the hub is stopped again at the end."""
        self.start_hub()
        self.broker.ready()
        for index in range(self.count):
            asyncio.run(TestNode(self.nodes, str(index)).enrol(self.broker))
        self.broker.create(FEDERATION, parts, self.count, dtype=dtype, deadline_s=86400)
        self.stop()

    def start_hub(self) -> None:
        self.broker.begin()
        assert self.broker.process is not None
        self.processes["hub"] = self.broker.process

    def start_node(self, index: int) -> None:
        folder = self.nodes / str(index)
        command = [sys.executable, str(Path(__file__).with_name("_round_node.py")), str(folder), "127.0.0.1",
                   str(self.port), str(index), FEDERATION, "random" if self.random else "constant"]  # fmt: skip
        with (folder / "console.log").open("ab") as out:
            self.processes[str(index)] = subprocess.Popen(
                command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=REPOSITORY
            )

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """A query over the hub's database, read only."""
        with contextlib.closing(sqlite3.connect(f"file:{self.hub}/hub.db?mode=ro", uri=True, timeout=10)) as db:
            return db.execute(sql).fetchall()

    def version(self) -> int:
        found = self.rows("SELECT max(number) FROM versions")[0][0]
        return -1 if found is None else int(found)

    def wait_version(self, number: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.version() < number:
            self.look()
            if time.monotonic() > deadline:
                raise TimeoutError(f"version {number} was not there after {seconds:g} s")
            time.sleep(0.1)
        self.look()

    def look(self) -> None:
        """Note each program's peak resident memory, its children included (kernel's own high-water mark)."""
        for name, process in self.processes.items():
            self.peaks[name] = max(self.peaks.get(name, 0.0), peaks_mb(process.pid))

    def kill(self, name: str) -> None:
        process = self.processes[name]
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()


def family(pid: int) -> list[int]:
    """A process and those it has begun, theirs included. A walk of all of /proc, as psutil's, would take a fifth of a
    core from what is measured."""
    found = [pid]
    with contextlib.suppress(OSError):
        for told in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in told.read_text().split():
                found += family(int(child))
    return found


def peaks_mb(pid: int) -> float:
    """The peaks of a process and of those it has begun, together. One that has forked and is not another program yet
    is its parent's memory, and not counted."""
    with contextlib.suppress(OSError):
        own = Path(f"/proc/{pid}/cmdline").read_bytes()
        others = (p for p in family(pid)[1:] if Path(f"/proc/{p}/cmdline").read_bytes() != own)
        return peak_mb(pid) + sum(map(peak_mb, others))
    return 0.0


def peak_mb(pid: int) -> float:
    """The most memory a process has had resident, in MB (VmHWM); 0 when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0
