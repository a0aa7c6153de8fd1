"""A thousand nodes that only beat: real TLS links with client certificates, ZMTP by hand, in one process of their own.

By hand so that the crowd costs little beside the hub it measures: docs/protocol.md is all that is needed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgpack
import psutil

from zk0d.link.identity import HUB_NAME, NodeIdentity
from zk0d.link.state import LinkLimits

_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_AT_ONCE = 16  # handshakes: below the hub's own limit


class IdleNode:
    """One link; `beat` gives the seconds from ping to pong."""

    def __init__(self, name: str) -> None:
        self._name, self._id = name, random.randrange(1 << 40)

    async def link(self, context: ssl.SSLContext, port: int) -> None:
        self._in, self._out = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname=HUB_NAME, limit=4096
        )
        self._out.write(_GREETING)
        await self._in.readexactly(64)
        pairs = ((b"Socket-Type", b"DEALER"), (b"Identity", self._name.encode()))
        ready = b"\x05READY" + b"".join(bytes([len(k)]) + k + len(v).to_bytes(4, "big") + v for k, v in pairs)
        self._out.write(b"\x04" + bytes([len(ready)]) + ready)
        await self._frame()

    async def _frame(self) -> bytes:
        flags = (await self._in.readexactly(1))[0]
        return await self._in.readexactly(int.from_bytes(await self._in.readexactly(8 if flags & 2 else 1), "big"))

    async def beat(self) -> float:
        self._id += 1
        body = msgpack.packb({"v": 1, "t": "ping", "id": self._id, "body": {}})
        began = time.perf_counter()
        self._out.write(b"\x00" + bytes([len(body)]) + body)
        while msgpack.unpackb(await self._frame()).get("re") != self._id:
            pass
        return time.perf_counter() - began

    def close(self) -> None:
        self._out.close()


def _context(identity: NodeIdentity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(identity.ca_path)
    context.load_cert_chain(identity.certificate_path, identity.key_path)
    context.set_alpn_protocols(["zk0/1"])
    return context


async def crowd(folder: Path, port: int, count: int) -> None:
    """The other process: links all, says `up`, beats for as many seconds as standard input names, prints the times."""
    room, nodes = asyncio.Semaphore(_AT_ONCE), [IdleNode(f"idle-{i:04}") for i in range(count)]

    async def come(node: IdleNode, i: int) -> None:
        async with room:
            await node.link(_context(NodeIdentity.load(folder / f"idle-{i:04}")), port)

    await asyncio.gather(*(come(node, i) for i, node in enumerate(nodes)))
    print("up", flush=True)
    seconds = float(await asyncio.to_thread(sys.stdin.readline))
    every, times = LinkLimits().ping_s, []
    end = time.monotonic() + seconds

    async def live(node: IdleNode) -> None:
        await asyncio.sleep(random.random() * every)
        while time.monotonic() < end:
            times.append(await node.beat())
            await asyncio.sleep(every)

    await asyncio.gather(*(live(node) for node in nodes))
    print(json.dumps(times), flush=True)
    for node in nodes:
        node.close()


async def idle(cast: Any, count: int, seconds: float) -> dict[str, Any]:
    """`count` nodes on a hub in a process of its own (this one must not count)."""
    for i in range(count):
        identity = NodeIdentity.create(cast.folder / f"idle-{i:04}")
        identity.install(cast.authority.issue_node(identity.csr(), f"idle-{i:04}"), cast.authority.pem, f"idle-{i:04}")
    command = [sys.executable, sys.argv[0], f"--folder={cast.folder}", f"--nodes={count}"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "limit": 1 << 26}
    hub = await asyncio.create_subprocess_exec(*command, "--role=hub", **pipes)
    assert hub.stdin is not None and hub.stdout is not None
    port = int(await hub.stdout.readline())
    nodes = await asyncio.create_subprocess_exec(*command, "--role=crowd", f"--port={port}", **pipes)
    assert nodes.stdin is not None and nodes.stdout is not None
    if (await nodes.stdout.readline()).strip() != b"up":
        raise RuntimeError("the crowd could not link")
    process = psutil.Process(hub.pid)
    before = sum(process.cpu_times()[:2])
    nodes.stdin.write(f"{seconds}\n".encode())
    times = sorted(json.loads(await nodes.stdout.readline()))
    rss, used = process.memory_info().rss, sum(process.cpu_times()[:2]) - before
    await nodes.wait()
    hub.stdin.close()
    await hub.wait()
    return {
        "idle_nodes": count,
        "idle_hub_rss_mb": rss / 1e6,
        "heartbeat_p50_ms": times[len(times) // 2] * 1e3,
        "heartbeat_p99_ms": times[int(len(times) * 0.99)] * 1e3,
        "idle_hub_cpu_share": used / seconds,
        "heartbeats": len(times),
    }


async def lone_hub(cast: Any) -> None:
    """The hub's process: until standard input ends."""
    hub = cast.hub()
    await hub.start()
    print(hub.port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await hub.close()
    os._exit(0)  # a thousand links need no farewell
