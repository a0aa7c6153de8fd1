"""The node's process of bench/link.py: it takes one order a line on standard input and answers with one line."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from zk0d.link.identity import NodeIdentity
from zk0d.link.node import NodeLink
from zk0d.link.state import LinkLimits
from zk0d.model.blobs import BlobStore

MIB = 1 << 20


async def trips(link: NodeLink, count: int, pause: float) -> list[float]:
    """Seconds of `count` requests, one after the other."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        await link.request("hello", {"software": "bench", "federations": []})
        found.append(time.perf_counter() - began)
        if pause:
            await asyncio.sleep(pause)
    return found


async def node(folder: Path, port: int, mib: int) -> None:
    """Until standard input ends."""
    blobs = BlobStore(folder / "node-blobs")

    def another(size: int) -> str:
        path = folder / "fresh"
        with path.open("wb") as f:
            for _ in range(size):
                f.write(os.urandom(MIB))
        digest = blobs.add_file(path, move=True)
        link.share(digest)
        return digest

    link = NodeLink(
        host="127.0.0.1", port=port, identity=NodeIdentity.load(folder / "node"), blobs=blobs,
        run_dir=folder / "node-run", on_push=lambda kind, body: None,
        limits=LinkLimits(retry_min_s=0.05, reask_s=2.0),
    )  # fmt: skip
    digest, watched = another(mib), Memory()
    await link.start()
    await link.wait_connected(10)
    print(json.dumps(digest), flush=True)
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        order, *given = json.loads(line)
        answer: Any = None
        if order == "trips":
            answer = await trips(link, *given)
        elif order == "another":
            answer = another(*given)
        elif order == "sent":
            answer = link.state.bytes_up
        elif order == "grown":
            answer = watched.grown
        elif order == "watch":
            watched = Memory()
        print(json.dumps(answer), flush=True)
    await link.close()


class Memory:
    """How far this process's resident memory rose above what it was when this was made (bytes, at its highest)."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        self._before = psutil.Process().memory_info().rss

    @property
    def grown(self) -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 - self._before


class Node:
    """The other end of that: orders as methods."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process, self.pid, self.digest = process, process.pid, ""

    @classmethod
    async def start(cls, folder: Path, port: int, mib: int) -> Node:
        command = [sys.executable, sys.argv[0], "--role=node", f"--folder={folder}", f"--port={port}", f"--mib={mib}"]
        self = cls(
            await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=1 << 20)
        )
        self.digest = await self._answer()
        return self

    async def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(await self._process.stdout.readline())

    async def _order(self, *order: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        return await self._answer()

    async def trips(self, count: int, pause: float = 0.0) -> list[float]:
        found: list[float] = await self._order("trips", count, pause)
        return found

    async def share_another(self, mib: int) -> str:
        return str(await self._order("another", mib))

    async def sent(self) -> int:
        return int(await self._order("sent"))

    async def watch(self) -> None:
        """See Memory."""
        await self._order("watch")

    async def grown(self) -> int:
        return int(await self._order("grown"))

    async def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
