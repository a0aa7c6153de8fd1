"""The hub's end of all links: one TLS port, one ROUTER behind it, one object the hub service holds.

Not for who may join or what requests mean (registry and service). TLS is in terminator.py, messages in peer.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import structlog
import zmq

from zk0d.errors import ConfigError, LinkClosedError, LinkLostError, PayloadError
from zk0d.link.alone import Alone
from zk0d.link.buffers import Bytes
from zk0d.link.download import download
from zk0d.link.enroll import hello_frame, serve_enroll
from zk0d.link.identity import Authority, ServerIdentity
from zk0d.link.lane import Inbox
from zk0d.link.messages import MAX_BULK, PUSHES, Frame
from zk0d.link.peer import Peer
from zk0d.link.rates import Meter, Meters
from zk0d.link.rundir import RunDir
from zk0d.link.soon import Soon, wait_for_room
from zk0d.link.state import LinkLimits, NodeLinkInfo, Progress
from zk0d.link.terminator import Terminator
from zk0d.link.tls import server_context
from zk0d.link.transfer import Credit
from zk0d.model.blobs import BlobStore, hex_of

log = structlog.get_logger("zk0d.link.hub")

_SOCKET = "router.sock"


class HubLink:
    """Listens for nodes. Create and use it inside a running event loop."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        authority: Authority,
        server_identity: ServerIdentity,
        run_dir: Path,
        blobs: BlobStore,
        allowed: Callable[[str, str], bool],
        on_request: Callable[[str, str, dict[str, Any]], Awaitable[dict[str, Any]]],
        may_fetch: Callable[[str, str], bool],
        on_enroll: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]],
        limits: LinkLimits | None = None,
    ) -> None:
        """The callbacks:

        allowed(node_id, certificate fingerprint): may this node link? Called in the terminator's thread, must be quick
            and must not touch the event loop (look in a set, not in SQLite).
        on_request(node_id, type, body) -> reply body; RefusedError(message, hint, reason=code) refuses. Ends at close.
        may_fetch(node_id, digest): may this node download this blob? In the event loop. RefusedError: no, and why.
        on_enroll(request) -> reply; request has `csr` and whatever the peer sent, and `address` (set here).
        RefusedError refuses.
        """
        self.port = port
        self._host = host
        self._authority = authority
        self._blobs, self._limits = blobs, limits or LinkLimits()
        self._on_request, self._may_fetch, self._on_enroll = on_request, may_fetch, on_enroll
        self._run_dir = run_dir
        self._peers: dict[str, Peer] = {}
        self._rooms: dict[str, asyncio.Event] = {}
        self._alone = Alone()
        self._upload, self._download = Meter(self._limits.max_upload), Meter(self._limits.max_download)
        self._credit = Credit(self._limits.receive_bytes)
        self._enrolling: set[asyncio.Task[None]] = set()
        self._closed = False
        self._terminator = Terminator(
            context=server_context(authority.directory / "ca.pem", server_identity),
            enroll_hello=hello_frame(authority.pem), allowed=allowed, on_up=self._from_up, on_down=self._from_down,
            on_enroll=self._from_enroll, on_message=self._from_message, on_room=self._from_room, limits=self._limits,
            crowded=lambda: self._credit.waited_for,
        )  # fmt: skip

    async def start(self) -> None:
        """Listen; `port` is then the real one. ConfigError if the address cannot be had."""
        try:
            self._folder = RunDir(self._run_dir)
        except OSError as error:
            raise ConfigError(
                f"{self._run_dir} cannot be used: {error.strerror}", "it must be a folder of ours"
            ) from None
        self._soon = Soon(asyncio.get_running_loop())
        self._folder.clear(_SOCKET)
        self._terminator.router_path = path = self._folder.socket(_SOCKET)
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="zk0-link")
        self._context = zmq.Context(io_threads=1)
        self._socket = _router(self._context)
        self._socket.bind(f"ipc://{path}")
        try:
            self.port = self._terminator.start(self._host, self.port)
        except BaseException:
            await self.close()
            raise
        log.info("hub.listening", host=self._host, port=self.port)

    async def close(self) -> None:
        """End all links; leaves no thread, descriptor or file."""
        if self._closed:
            return
        self._closed = True
        for task in self._enrolling:
            task.cancel()
        await asyncio.gather(*self._enrolling, return_exceptions=True)
        await asyncio.gather(*(peer.close() for peer in self._peers.values()))
        await asyncio.to_thread(self._terminator.close)
        if hasattr(self, "_soon"):
            self._soon.close()
        if hasattr(self, "_socket"):
            self._socket.close(linger=0)
            self._context.term()
            await asyncio.to_thread(self._pool.shutdown)
            self._folder.clear(_SOCKET)
            self._folder.close()

    async def push(self, node_id: str, type: str, body: dict[str, Any]) -> bool:
        """Say something to a node, unanswered. False (and nothing raised) when it is not linked now."""
        if type not in PUSHES:
            raise ValueError(f"{type!r} is not a push type")
        peer = self._peers.get(node_id)
        return peer is not None and peer.say(type, body)

    async def fetch(self, node_id: str, digest: str, size_limit: int) -> Path:
        """Take a blob that the node shares into the store; resumes over reconnects and restarts, verified.

        PayloadError (too large, wrong chunks; the node's link is then closed), RefusedError (the node does not share
        it), LinkLostError (no progress for `limits.stall_s`; call again when the node is back, what came is kept).
        """
        if self._closed:
            raise LinkClosedError("the hub's links are closed")
        hex_of(digest)
        async with self._alone.of(digest):
            try:
                return await download(self._peer(node_id), digest, min(size_limit, self._limits.max_blob))
            except PayloadError as error:
                log.warning("transfer.given_up", node=node_id, digest=digest, reason=error.message)
                self.disconnect(node_id, f"it sent bad data: {error.message}")
                raise

    def use(self, server_identity: ServerIdentity) -> None:
        """Show another server certificate from the next connection on; links that stand go on. ConfigError."""
        self._terminator.use(server_context(self._authority.directory / "ca.pem", server_identity))

    def disconnect(self, node_id: str, reason: str) -> None:
        """Close the node's live link, if any. It may come back unless `allowed` says no."""
        self._terminator.disconnect(node_id, reason)

    def nodes(self) -> dict[str, NodeLinkInfo]:
        """The links that are open now."""
        return self._terminator.links()

    def transfers(self) -> dict[str, list[Progress]]:
        """What is moving now, by node."""
        return {name: moving for name, peer in self._peers.items() if (moving := peer.transfers())}

    def _peer(self, node_id: str) -> Peer:
        """One per node id that passed the gate or is waited for: bounded by who is enrolled. Outlives its links."""
        if node_id not in self._peers:
            self._rooms[node_id] = asyncio.Event()

            async def transmit(frames: list[Frame]) -> None:
                await self._transmit(node_id, frames)

            self._peers[node_id] = Peer(
                node_id, transmit=transmit, offer=lambda frames: self._terminator.offer(node_id, frames),
                blobs=self._blobs, pool=self._pool, limits=self._limits,
                upload=Meters([Meter(self._limits.node_upload), self._upload]),
                download=Meters([Meter(self._limits.node_download), self._download]),
                may_take=lambda digest: self._may_fetch(node_id, digest), credit=self._credit,
                on_request=lambda type, body: self._on_request(node_id, type, body),
                on_flood=lambda why: self.disconnect(node_id, why),
            )  # fmt: skip
        return self._peers[node_id]

    async def _transmit(self, node_id: str, frames: list[Frame]) -> None:
        """Wait for room in this node's lane only: one slow node must not hold the others."""
        peer, room = self._peers[node_id], self._rooms[node_id]
        while peer.linked.is_set():
            room.clear()
            if self._terminator.offer(node_id, frames):
                return
            await wait_for_room(room)
        raise LinkLostError(f"the link of {node_id} went away")

    def _heard(self, node_id: str, frames: list[Bytes], size: int, inbox: Inbox) -> None:
        try:
            if not self._closed:
                self._peer(node_id).heard(frames)
        finally:
            inbox.handled(size)

    def _room(self, node_id: str) -> None:
        if node_id in self._rooms:
            self._rooms[node_id].set()

    # From the terminator's thread

    def _from_up(self, node_id: str, inbox: Inbox) -> None:
        self._soon(self._up, node_id, inbox)

    def _from_down(self, node_id: str, reason: str) -> None:
        self._soon(self._down, node_id)

    def _from_enroll(self, token: int, request: bytes, address: str) -> None:
        self._soon(self._enroll, token, request, address)

    def _from_message(self, node_id: str, frames: list[Bytes], size: int, inbox: Inbox) -> None:
        self._soon(self._heard, node_id, frames, size, inbox)

    def _from_room(self, node_id: str) -> None:
        self._soon(self._room, node_id)

    def _up(self, node_id: str, inbox: Inbox) -> None:
        if not self._closed:
            self._peer(node_id).up(inbox)

    def _down(self, node_id: str) -> None:
        if node_id in self._peers:
            self._peers[node_id].down()

    def _enroll(self, token: int, request: bytes, address: str) -> None:
        if self._closed:
            return

        async def answer() -> None:
            self._terminator.answer(token, await serve_enroll(request, address, self._on_enroll))

        task = asyncio.create_task(answer())
        self._enrolling.add(task)
        task.add_done_callback(self._enrolling.discard)


def _router(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    """Shakes hands and answers commands; messages go by the lanes."""
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.BACKLOG, 512)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # safe behind the gate; makes a half-open link's node reachable again
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_BULK)
    return socket
