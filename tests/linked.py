"""A hub and nodes in one process for the link's tests: real sockets, real TLS, short times. Not a test itself."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from zk0d.link.hub import HubLink
from zk0d.link.identity import Authority, NodeIdentity, ServerIdentity
from zk0d.link.node import NodeLink
from zk0d.link.state import LinkLimits
from zk0d.model.blobs import BlobStore

FAST = LinkLimits(
    handshake_s=20.0,
    ping_s=0.5,
    retry_min_s=0.02,
    retry_max_s=0.1,
    refused_min_s=0.05,
    refused_max_s=0.4,
    reask_s=5.0,
    stall_s=60.0,
    chunk_size=256 * 1024,
)


async def until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Wait for a condition; fail with its name at the deadline."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain until {what}"
        await asyncio.sleep(0.01)


class World:
    """One hub, and what its callbacks saw."""

    def __init__(self, folder: Path, limits: LinkLimits = FAST) -> None:
        self.folder, self.limits = folder, limits
        self.authority = Authority.create(folder / "ca")
        self.server: ServerIdentity = self.authority.issue_server(folder / "keys")
        self.blobs = BlobStore(folder / "hub-blobs", reserve=0)
        self.refused: set[str] = set()
        self.requests: list[tuple[str, str, dict[str, Any]]] = []
        self.answer: Callable[[str, str, dict[str, Any]], Awaitable[dict[str, Any]]] = self._answer
        self.enroll: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]] = self._enroll
        self.hub: HubLink
        self.host, self.port = "127.0.0.1", 0

    async def _answer(self, node_id: str, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        self.requests.append((node_id, kind, body))
        return {"node_id": node_id, "hub": "test", "federations": []}

    async def _enroll(self, request: dict[str, Any]) -> dict[str, Any]:
        certificate = self.authority.issue_node(request["csr"], "enrolled")
        return {
            "state": "approved",
            "node_id": "enrolled",
            "certificate": certificate,
            "ca": self.authority.pem,
            "receipt_key": b"key",
        }

    async def open(self) -> None:
        self.hub = HubLink(
            host=self.host,
            port=self.port,
            authority=self.authority,
            server_identity=self.server,
            run_dir=self.folder / "hub",
            blobs=self.blobs,
            allowed=lambda node_id, fingerprint: fingerprint not in self.refused and node_id not in self.refused,
            on_request=lambda node_id, kind, body: self.answer(node_id, kind, body),
            may_fetch=lambda node_id, digest: digest not in self.refused,
            on_enroll=lambda request: self.enroll(request),
            limits=self.limits,
        )
        await self.hub.start()
        self.port = self.hub.port

    def identity(self, node_id: str, authority: Authority | None = None, days: int = 30) -> NodeIdentity:
        """An enrolled node's keys. Another `authority` signs, but the node still trusts this world's."""
        identity = NodeIdentity.create(self.folder / f"keys-{node_id}")
        signer = authority or self.authority
        identity.install(signer.issue_node(identity.csr(), node_id, days), signer.pem, node_id)
        identity.ca_path.write_bytes(self.authority.pem)
        return identity

    @asynccontextmanager
    async def node(
        self,
        node_id: str,
        *,
        identity: NodeIdentity | None = None,
        port: int | None = None,
        wait: bool = True,
        on_push: Callable[[str, dict[str, Any]], None] = lambda kind, body: None,
        tap: Callable[[bytes], None] | None = None,
        limits: LinkLimits | None = None,
        name: str = "",
    ) -> AsyncIterator[NodeLink]:
        name = name or node_id
        link = NodeLink(
            host=self.host,
            port=port or self.port,
            identity=identity or self.identity(node_id),
            blobs=BlobStore(self.folder / f"blobs-{name}", reserve=0),
            run_dir=self.folder / f"r-{name}",
            on_push=on_push,
            limits=limits or self.limits,
            tap=tap,
        )
        await link.start()
        try:
            if wait:
                await link.wait_connected(30)
            yield link
        finally:
            await link.close()


@asynccontextmanager
async def world(folder: Path, limits: LinkLimits = FAST) -> AsyncIterator[World]:
    """A hub that runs, and is closed at the end."""
    made = World(folder, limits)
    await made.open()
    try:
        yield made
    finally:
        await made.hub.close()


def hello(link: NodeLink, timeout: float = 30) -> Awaitable[dict[str, Any]]:
    return link.request("hello", {"software": "test", "federations": []}, timeout)


class Proxy:
    """A TCP relay in a thread, to cut and to slow what passes. `cut` resets every connection that is open."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self.passed = 0
        """Bytes, both ways."""
        self.cut_at: list[int] = []
        """Values of `passed` at which everything is cut."""
        self.cuts = 0
        self._closing = False
        self._age = 0
        self._spawn(self._accept)

    def _spawn(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name="proxy")
        thread.start()
        self._threads.append(thread)

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                continue
            with self._lock:
                self._pairs.append((client, server))
            self._spawn(self._relay, client, server)
            self._spawn(self._relay, server, client)

    def freeze(self) -> None:
        """Swallow what comes on the connections that are open now, as a dead router does."""
        self._age += 1

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        age = self._age
        try:
            while data := source.recv(32768):
                if age < self._age:
                    continue
                if self._counted(len(data)):
                    self.cut()
                    return
                sink.sendall(data)
        except OSError:
            pass
        for sock in (source, sink):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _counted(self, size: int) -> bool:
        """Count what passes, of both ways one after the other: each of `cut_at` cuts once."""
        with self._lock:
            self.passed += size
            if not self.cut_at or self.passed < self.cut_at[0]:
                return False
            self.cut_at.pop(0)
            return True

    def cut(self) -> None:
        """Reset every connection."""
        self.cuts += 1
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for sock in [s for pair in pairs for s in pair]:
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()

    def close(self) -> None:
        self._closing = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in list(self._threads):
            thread.join()
