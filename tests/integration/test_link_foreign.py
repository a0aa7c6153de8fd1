"""A second implementation of the node's end, written from docs/protocol.md with nothing but ssl and msgpack.

It shows that the document suffices, and it misbehaves in ways that our own node cannot.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import ssl
from pathlib import Path
from typing import Any

import msgpack
import pytest
import structlog
from linked import World, hello, until, world

from zk0d.errors import PayloadError

LEAF = CHUNK = 256 * 1024
DATA = os.urandom(5 * CHUNK + 100)
CHUNKS = [DATA[i : i + CHUNK] for i in range(0, len(DATA), CHUNK)]
LEAVES = b"".join(hashlib.sha256(c).digest() for c in CHUNKS)
DIGEST = "blob:" + hashlib.sha256(b"zk0 blob v1\0" + len(DATA).to_bytes(8, "big") + LEAVES).hexdigest()


class Foreign:
    """A blocking node; use it in a thread."""

    def __init__(self, w: World, node_id: str, announce: str | None = None) -> None:
        keys = w.identity(node_id)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=w.authority.pem.decode())
        context.load_cert_chain(keys.certificate_path, keys.key_path)
        context.set_alpn_protocols(["zk0/1"])
        raw = socket.create_connection(("127.0.0.1", w.port), timeout=60)
        self.tls = context.wrap_socket(raw, server_hostname="hub.zk0")
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
        identity = (announce or node_id).encode()
        metadata = b"".join(
            bytes([len(n)]) + n + len(v).to_bytes(4, "big") + v
            for n, v in ((b"Socket-Type", b"DEALER"), (b"Identity", identity))
        )
        ready = b"\x05READY" + metadata
        self.tls.sendall(greeting)
        assert self.read(64)[0] == 0xFF
        self.tls.sendall(b"\x04" + bytes([len(ready)]) + ready)
        assert b"ROUTER" in self.frame()[1]
        self._id = 1000

    def read(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            more = self.tls.recv(n - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def frame(self) -> tuple[int, bytes]:
        flags = self.read(1)[0]
        size = int.from_bytes(self.read(8 if flags & 2 else 1), "big")
        return flags, self.read(size)

    def send(self, *frames: bytes) -> None:
        out = b""
        for i, frame in enumerate(frames):
            out += bytes([2 | (i < len(frames) - 1)]) + len(frame).to_bytes(8, "big") + frame
        self.tls.sendall(out)

    def say(
        self, kind: str, body: dict[str, Any], re: int | None = None, bulk: bytes | None = None, **more: Any
    ) -> int:
        self._id += 1
        envelope = {"v": 2, "t": kind, "id": self._id, "body": body, **({} if re is None else {"re": re}), **more}
        self.send(msgpack.packb(envelope), *([] if bulk is None else [bulk]))
        return self._id

    def hear(self) -> dict[str, Any]:
        """The next message; pings are answered on the way."""
        while True:
            flags, data = self.frame()
            message: dict[str, Any] = msgpack.unpackb(data)
            assert not flags & 1, "the hub sent bulk"
            if message["t"] != "ping":
                return message
            self.say("pong", {}, message["id"])

    def serve(self, wrong: dict[int, int], leaves: bytes = LEAVES) -> list[int]:
        """Serve DATA until the hub has all or hangs up; chunk i is altered wrong[i] times. What was asked for."""
        asked: list[int] = []
        good: set[int] = set()
        try:
            while True:
                message = self.hear()
                if message["t"] == "manifest.get":
                    body = {"digest": DIGEST, "size": len(DATA), "chunk_size": CHUNK}
                    self.say("manifest", body, message["id"], leaves)
                elif message["t"] == "chunk.get":
                    index = message["body"]["index"]
                    asked.append(index)
                    chunk = CHUNKS[index]
                    if wrong.get(index, 0) > 0:
                        wrong[index] -= 1
                        chunk = chunk[:-1] + bytes([chunk[-1] ^ 1])
                    else:
                        good.add(index)
                    body = {"digest": DIGEST, "index": index}
                    self.say("chunk", body, message["id"], chunk)
                    if len(good) == len(CHUNKS):
                        return asked
        except (OSError, EOFError):
            return asked

    def close(self) -> None:
        self.tls.close()


def test_the_document_suffices(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            node = await asyncio.to_thread(Foreign, w, "foreign")

            def talk() -> None:
                asked = node.say("hello", {"software": "foreign", "federations": [], "unknown": 1})
                answer = node.hear()
                assert answer["t"] == "reply" and answer["re"] == asked and answer["body"]["node_id"] == "foreign"
                asked = node.say("gossip", {})
                answer = node.hear()
                assert (answer["t"], answer["re"], answer["body"]["code"]) == ("error", asked, "unknown_type")
                assert "gossip" in answer["body"]["message"]
                for bad, code in (
                    (msgpack.packb({"v": 9, "t": "ping", "id": 5}), "unsupported_version"),
                    (b"\xc1 not msgpack", "malformed"),
                    (msgpack.packb({"v": 2, "t": "task.request", "id": 6, "body": {"federation": 7}}), "malformed"),
                    (
                        msgpack.packb(
                            {
                                "v": 2,
                                "t": "version.new",
                                "id": 8,
                                "body": {"federation": "f", "number": 1, "digest": "d"},
                            }
                        ),
                        "unknown_type",
                    ),
                    (
                        msgpack.packb({"v": 2, "t": "manifest.get", "id": 9, "body": {"digest": "../../ca.key"}}),
                        "not_found",
                    ),
                ):
                    node.send(bad)
                    answer = node.hear()
                    assert answer["t"] == "error" and answer["body"]["code"] == code
                # A request that is sent twice is run once and answered twice.
                for _ in range(2):
                    node.say("task.request", {"federation": "once"}, id=4242)
                assert [node.hear()["re"] for _ in range(2)] == [4242, 4242]

            with structlog.testing.capture_logs() as logs:
                await asyncio.to_thread(talk)
            assert [b["federation"] for _, kind, b in w.requests if kind == "task.request"] == ["once"]
            assert {e["code"] for e in logs if e["event"] == "link.bad_message"} >= {"unknown_type", "malformed"}
            node.close()
            await until(lambda: not w.hub.nodes(), "the hub saw it go")

    asyncio.run(run())


def test_an_altered_chunk_is_asked_for_again(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            node = await asyncio.to_thread(Foreign, w, "foreign")
            serving = asyncio.create_task(asyncio.to_thread(node.serve, {2: 1, 4: 2}))
            with structlog.testing.capture_logs() as logs:
                path = await w.hub.fetch("foreign", DIGEST, 1 << 22)
            assert path.read_bytes() == DATA
            asked = await serving
            assert (asked.count(2), asked.count(4), asked.count(0)) == (2, 3, 1)
            assert [e["index"] for e in logs if e["event"] == "transfer.wrong_chunk"].count(4) == 2
            node.close()

    asyncio.run(run())


def test_who_sends_only_wrong_chunks_is_dropped_with_the_reason(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w, w.node("alice") as alice:
            node = await asyncio.to_thread(Foreign, w, "foreign")
            serving = asyncio.create_task(asyncio.to_thread(node.serve, {1: 99}))
            with structlog.testing.capture_logs() as logs, pytest.raises(PayloadError, match="wrong digest"):
                await w.hub.fetch("foreign", DIGEST, 1 << 22)
            await serving  # ends because the hub hung up
            assert any(e["event"] == "transfer.given_up" and e["node"] == "foreign" for e in logs)
            await until(lambda: set(w.hub.nodes()) == {"alice"}, "the liar is gone")
            assert not w.blobs.has(DIGEST)
            assert (await hello(alice))["node_id"] == "alice"
            node.close()

    asyncio.run(run())


def test_who_sends_another_manifest_is_dropped_before_a_chunk_is_asked_for(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w, w.node("alice"):
            node = await asyncio.to_thread(Foreign, w, "foreign")
            lie = LEAVES[:-1] + bytes([LEAVES[-1] ^ 1])
            serving = asyncio.create_task(asyncio.to_thread(node.serve, {}, lie))
            with pytest.raises(PayloadError, match=f"not that of {DIGEST}"):
                await w.hub.fetch("foreign", DIGEST, 1 << 22)
            assert await serving == [], "a chunk was asked for"
            await until(lambda: set(w.hub.nodes()) == {"alice"}, "the liar is gone")
            assert not w.blobs.has(DIGEST) and not list(w.blobs.partials.iterdir())
            node.close()

    asyncio.run(run())


def test_too_large_a_frame_ends_that_link_only(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w, w.node("alice") as alice:
            node = await asyncio.to_thread(Foreign, w, "foreign")

            def flood() -> None:
                node.tls.sendall(b"\x02" + (1 << 40).to_bytes(8, "big") + bytes(1000))
                with pytest.raises((EOFError, OSError)):
                    node.hear()

            await asyncio.to_thread(flood)
            await until(lambda: set(w.hub.nodes()) == {"alice"}, "its link is gone")
            assert (await hello(alice))["node_id"] == "alice"
            node.close()

    asyncio.run(run())


def test_a_flood_of_requests_is_told_to_wait(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w, w.node("alice") as alice:
            gate = asyncio.Event()

            async def slow(node_id: str, kind: str, body: dict[str, Any]) -> dict[str, Any]:
                if node_id == "foreign":
                    await gate.wait()
                return {"node_id": node_id}

            w.answer = slow
            node = await asyncio.to_thread(Foreign, w, "foreign")

            def flood() -> list[str]:
                for _ in range(100):
                    node.say("task.request", {"federation": "f"})
                return [node.hear()["body"]["code"] for _ in range(84)]

            assert set(await asyncio.to_thread(flood)) == {"busy"}
            assert (await hello(alice))["node_id"] == "alice"
            gate.set()
            node.close()

    asyncio.run(run())
