"""A hub in a process of its own, and many nodes by hand that send to it at a time. Not a test itself.

The nodes are docs/protocol.md and nothing else, so that a crowd costs little beside the hub that is measured. Each has a
blob of its own: zeros but for its number. `python tests/crowd.py FOLDER` is the hub.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import structlog
from linked import FAST, World

from zk0d.errors import Zk0Error
from zk0d.link.identity import Authority
from zk0d.link.tls import HUB_NAME
from zk0d.model.leaves import LEAF, name_of_leaves

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
ZEROS = memoryview(bytes(4 << 20))
_AT_ONCE = 16  # handshakes: below the hub's own limit


class Sender:
    """One node, and the blob that it has."""

    def __init__(self, number: int, size: int, chunk: int) -> None:
        self.name, self.size, self.chunk = f"n-{number:04}", size, chunk
        self.mark = number.to_bytes(8, "big")
        first = hashlib.sha256(self.mark + ZEROS[8 : min(size, LEAF)]).digest()
        full, last = divmod(size - LEAF, LEAF)
        rest = hashlib.sha256(ZEROS[:LEAF]).digest() * full + (hashlib.sha256(ZEROS[:last]).digest() if last else b"")
        self.leaves = first + rest
        self.digest = name_of_leaves(size, self.leaves)
        self.chunks = 0
        """How many it has sent."""
        self._id = 1

    async def link(self, authority: Authority, folder: Path, port: int) -> None:
        from zk0d.link.identity import NodeIdentity

        keys = NodeIdentity.create(folder / self.name)
        keys.install(authority.issue_node(keys.csr(), self.name), authority.pem, self.name)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=authority.pem.decode())
        context.load_cert_chain(keys.certificate_path, keys.key_path)
        context.set_alpn_protocols(["zk0/1"])
        self._in, self._out = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname=HUB_NAME, limit=1 << 16
        )
        self._out.transport.set_write_buffer_limits(1 << 16)  # type: ignore[attr-defined]
        pairs = ((b"Socket-Type", b"DEALER"), (b"Identity", self.name.encode()))
        ready = b"\x05READY" + b"".join(bytes([len(k)]) + k + len(v).to_bytes(4, "big") + v for k, v in pairs)
        self._out.write(GREETING + b"\x04" + bytes([len(ready)]) + ready)
        await self._in.readexactly(64)
        await self._frame()

    async def _frame(self) -> bytes:
        flags = (await self._in.readexactly(1))[0]
        return await self._in.readexactly(int.from_bytes(await self._in.readexactly(8 if flags & 2 else 1), "big"))

    def say(self, kind: str, body: dict[str, Any], re: int | None = None, bulk: int | None = None) -> None:
        """A message; `bulk`: so many bytes of a raw frame are to follow."""
        self._id += 1
        packed = msgpack.packb({"v": 2, "t": kind, "id": self._id, "body": body, **({} if re is None else {"re": re})})
        self._out.write(bytes([2 | (bulk is not None)]) + len(packed).to_bytes(8, "big") + packed)
        if bulk is not None:
            self._out.write(b"\x02" + bulk.to_bytes(8, "big"))

    async def write(self, data: bytes | memoryview) -> None:
        for at in range(0, len(data), 1 << 16):
            self._out.write(data[at : at + (1 << 16)])
            await self._out.drain()

    async def serve(self, dawdle: float) -> None:
        """Offer the blob, and give what is asked for until the hub has all: each chunk's last bytes `dawdle` s late."""
        self.say("hello", {"software": f"{self.digest} {self.size}", "federations": []})
        while True:
            message = msgpack.unpackb(await self._frame())
            body = message.get("body", {})
            if message["t"] == "manifest.get":
                told = {"digest": self.digest, "size": self.size, "chunk_size": self.chunk}
                self.say("manifest", told, message["id"], len(self.leaves))
                await self.write(self.leaves)
            elif message["t"] == "chunk.get":
                at = body["index"] * body["chunk_size"]
                size = min(body["chunk_size"], self.size - at)
                self.say("chunk", {"digest": self.digest, "index": body["index"]}, message["id"], size)
                if not at:
                    await self.write(self.mark)
                late = min(1000, size // 2)
                await self.write(ZEROS[: size - late - (0 if at else 8)])
                await asyncio.sleep(dawdle)
                await self.write(ZEROS[:late])
                self.chunks += 1
            elif message["t"] == "reply":
                return  # which comes when the hub has it

    async def flood(self, size: int) -> None:
        """All but the end of a chunk that nobody asked for; then silence."""
        self.say("chunk", {"digest": self.digest, "index": 0}, 7, size)
        await self.write(ZEROS[: size - 1])

    def close(self) -> None:
        self._out.transport.abort()


class Crowd:
    """The hub's process and whoever is linked to it."""

    def __init__(self, folder: Path, receive_bytes: int) -> None:
        self.folder = folder
        command = [sys.executable, __file__, str(folder / "hub"), str(receive_bytes)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.authority = Authority.load(folder / "hub" / "ca")
        self.nodes: list[Sender] = []

    async def come(self, count: int, size: int, chunk: int) -> list[Sender]:
        """So many nodes more, linked."""
        room, begun = asyncio.Semaphore(_AT_ONCE), len(self.nodes)
        made = [Sender(begun + i, size, chunk) for i in range(count)]

        async def one(node: Sender) -> None:
            async with room:
                await node.link(self.authority, self.folder / "keys", self.port)

        await asyncio.gather(*(one(node) for node in made))
        self.nodes += made
        return made

    def memory(self, what: str = "VmRSS") -> int:
        """Bytes that the hub has in memory now, or had at most (VmHWM) since `forget`."""
        found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found is not None
        return int(found[1]) << 10

    def forget(self) -> None:
        """Its peak is counted from now on."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def close(self) -> None:
        for node in self.nodes:
            node.close()
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


@asynccontextmanager
async def crowd(folder: Path, receive_bytes: int) -> AsyncIterator[Crowd]:
    made = await asyncio.to_thread(Crowd, folder, receive_bytes)
    try:
        yield made
    finally:
        await asyncio.to_thread(made.close)


async def until_quiet(look: Callable[[], int], seconds: float = 60.0) -> int:
    """`look()` once it has been the same for a while."""
    end, last, same = asyncio.get_running_loop().time() + seconds, look(), 0
    while same < 10:
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.05)
        now = look()
        last, same = now, same + 1 if now == last else 0
    return last


async def hub(folder: Path, receive_bytes: int) -> None:
    """Takes the blob that a `hello` names, and answers when it has it; until standard input ends."""
    folder.mkdir(parents=True)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory((folder / "log").open("w")))
    w = World(folder, replace(FAST, chunk_size=4 << 20, reask_s=30.0, stall_s=300.0, receive_bytes=receive_bytes))

    async def answer(node: str, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        digest, size = body["software"].split()
        path = await w.hub.fetch(node, digest, int(size))
        assert path.stat().st_size == int(size)
        w.blobs.delete(digest)
        return {}

    w.answer = answer
    await w.open()
    print(w.port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    try:
        await w.hub.close()
    except Zk0Error:
        pass


if __name__ == "__main__":
    asyncio.run(hub(Path(sys.argv[1]), int(sys.argv[2])))
