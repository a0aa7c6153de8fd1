"""The node's end of the link: one object the daemon holds, which connects, reconnects, asks, fetches and offers.

Not for what the answers mean (the daemon's uplink). TLS and sockets are in tunnel.py, messages in peer.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog
import zmq

from zk0d.errors import LinkClosedError, LinkLostError
from zk0d.link.alone import Alone
from zk0d.link.buffers import Bytes
from zk0d.link.download import download
from zk0d.link.lane import Inbox
from zk0d.link.messages import MAX_BULK, REQUESTS, Frame
from zk0d.link.node_identity import NodeIdentity
from zk0d.link.peer import Peer
from zk0d.link.rates import Meter, Rate
from zk0d.link.soon import Soon, wait_for_room
from zk0d.link.state import LinkLimits, LinkState, Phase
from zk0d.link.tls import link_context
from zk0d.link.tunnel import Tunnel, TunnelEvent
from zk0d.model.blobs import BlobStore, hex_of

log = structlog.get_logger("zk0d.link.node")

_FIRST_PING_S = 2.0


class NodeLink:
    """Connects to one hub and stays connected. Create and use it inside a running event loop."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        identity: NodeIdentity,
        blobs: BlobStore,
        run_dir: Path,
        on_push: Callable[[str, dict[str, Any]], None],
        limits: LinkLimits | None = None,
        tap: Callable[[bytes], None] | None = None,
    ) -> None:
        """`on_push(type, body)` runs in the event loop. `tap` sees every byte string that goes into TLS (for tests)."""
        self._identity = identity
        self._where = f"{host}:{port}"
        self._blobs = blobs
        self._limits = limits or LinkLimits()
        self._on_push = on_push
        self._state = LinkState()
        self.on_state: list[Callable[[LinkState], None]] = []
        """Called with the state after every change of phase or reason, in the event loop."""
        self._upload, self._download = Meter(self._limits.max_upload), Meter(self._limits.max_download)
        self._shared: set[str] = set()
        self._alone = Alone()
        self._connected = asyncio.Event()
        self._ping = asyncio.Event()
        self._room = asyncio.Event()
        self._closed = False
        self._tasks: list[asyncio.Task[None]] = []
        self._tunnel = Tunnel(
            host=host, port=port, context=lambda: link_context(identity), run_dir=run_dir,
            on_event=self._from_tunnel, on_message=self._from_message, on_room=self._from_room,
            limits=self._limits, tap=tap,
        )  # fmt: skip

    async def start(self) -> None:
        """Begin connecting; returns at once. ConfigError when the node has no certificate or run_dir cannot be used."""
        node_id = self._identity.node_id
        self._soon = Soon(asyncio.get_running_loop())
        try:
            path = self._tunnel.start()
        except BaseException:
            self._soon.close()
            raise
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="zk0-link")
        self._context = zmq.Context(io_threads=1)
        self._socket = _dealer(self._context, node_id)
        self._socket.connect(f"ipc://{path}")
        self._peer = Peer(
            "hub", transmit=self._transmit, offer=self._tunnel.offer, blobs=self._blobs, pool=self._pool,
            may_take=self._shared.__contains__,
            limits=self._limits, upload=self._upload, download=self._download, on_push=self._on_push,
        )  # fmt: skip
        self._tasks = [
            asyncio.create_task(self._beat(), name="zk0-link-beat"),
        ]

    async def close(self) -> None:
        """End the link and everything that waits on it (LinkClosedError); leaves no thread, descriptor or file."""
        if self._closed:
            return
        self._closed = True
        started = bool(self._tasks)
        if started:
            await self._peer.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._tunnel.close)
        if started:
            self._soon.close()
            self._socket.close(linger=0)
            self._context.term()
            await asyncio.to_thread(self._pool.shutdown)
        self._connected.set()  # wakes wait_connected, which then sees that we are closed
        self._change("closed", "closed by this node")

    @property
    def state(self) -> LinkState:
        """A current snapshot."""
        up, down = self._tunnel.counters
        transfers = self._peer.transfers() if self._tasks else []
        return replace(self._state, bytes_up=up, bytes_down=down, transfers=transfers)

    async def wait_connected(self, timeout: float) -> None:
        """Until the hub has answered on this link; LinkLostError with the current reason after `timeout` seconds."""
        try:
            await asyncio.wait_for(self._connected.wait(), timeout)
        except TimeoutError:
            raise LinkLostError(f"no link to the hub at {self._where}: {self._state.reason}") from None
        if self._closed:
            raise LinkClosedError("the link is closed")

    async def request(self, type: str, body: dict[str, Any], timeout: float = 30) -> dict[str, Any]:
        """Ask the hub and give its reply's body.

        Sent again over a new link if the link breaks while waiting; the hub answers a repeated request from memory,
        so a handler runs once per request (once more only if the hub itself restarted in between). RefusedError
        (`.reason` is the hub's code) for an error reply, LinkLostError when no answer came in `timeout` seconds,
        LinkClosedError at close.
        """
        if type not in REQUESTS:
            raise ValueError(f"{type!r} is not a request type")
        self._require_open()
        return (await self._peer.ask(type, body, timeout)).body

    async def fetch(self, digest: str, like: Sequence[str] = ()) -> Path:
        """The blob's path in the store, downloaded if need be: resumes over reconnects and restarts, verified.

        RefusedError when the hub has no such blob for us, PayloadError when what it sends is wrong, LinkLostError
        without progress for `limits.stall_s`, DiskFullError when it does not fit. What has come is kept in every case.
        `like`: blobs of which it may share tensors; such tensors are not sent again.
        """
        self._require_open()
        hex_of(digest)
        async with self._alone.of(digest):
            return await download(self._peer, digest, self._limits.max_blob, like)

    def share(self, digest: str) -> None:
        """Let the hub take this blob (which is in the store). Nothing else can be taken."""
        hex_of(digest)
        self._shared.add(digest)

    def unshare(self, digest: str) -> None:
        """Take that back."""
        self._shared.discard(digest)

    def retry_now(self) -> None:
        """Do not wait for the next attempt (a person asked, or the network came back)."""
        self._tunnel.retry()

    def renewed(self) -> None:
        """The node has another certificate: link anew with it. Transfers go on where they are."""
        self._tunnel.reset("the certificate was renewed")

    def set_max_upload(self, bytes_per_s: Rate | float | None) -> None:
        """Change the upload limit (bulk only; ciphertext is about 0.2% more); None: no limit."""
        self._upload.set(bytes_per_s)

    def hold(self, on: bool) -> None:
        """Stop moving blobs, in both directions, until told otherwise; messages still travel. What has come is kept."""
        self._peer.hold(on)

    def _require_open(self) -> None:
        if self._closed or not self._tasks:
            raise LinkClosedError("the link is closed" if self._closed else "the link was not started")

    async def _transmit(self, frames: list[Frame]) -> None:
        while self._peer.linked.is_set():
            self._room.clear()
            if self._tunnel.offer(frames):
                return
            await wait_for_room(self._room)
        raise LinkLostError("the link went away")

    def _heard(self, frames: list[Bytes], size: int, inbox: Inbox) -> None:
        try:
            message = None if self._closed else self._peer.heard(frames)
        finally:
            inbox.handled(size)
        if message is not None and not self._connected.is_set() and self._peer.linked.is_set():
            self._tunnel.proven()
            self._connected.set()
            log.info("link.connected", hub=self._where)
            self._change("connected", f"linked to the hub at {self._where}")

    async def _beat(self) -> None:
        """Ping: soon after a link stands until the hub answers, then now and then."""
        while True:
            await self._peer.linked.wait()
            self._peer.say("ping", {})
            self._ping.clear()
            try:
                await asyncio.wait_for(
                    self._ping.wait(), self._limits.ping_s if self._connected.is_set() else _FIRST_PING_S
                )
            except TimeoutError:
                pass

    # From the tunnel's thread

    def _from_tunnel(self, event: TunnelEvent) -> None:
        self._soon(self._tunnel_event, event)

    def _from_message(self, frames: list[Bytes], size: int, inbox: Inbox) -> None:
        self._soon(self._heard, frames, size, inbox)

    def _from_room(self) -> None:
        self._soon(self._room.set)

    def _tunnel_event(self, event: TunnelEvent) -> None:
        if self._closed:
            return
        if event.kind == "dialling":
            if self._state.phase != "refused":  # stays what it is until the other end thinks otherwise
                self._change("connecting", f"connecting to the hub at {self._where}")
        elif event.kind == "up":
            self._peer.up()
            self._ping.set()
        else:
            self._peer.down()
            self._connected.clear()
            phase: Phase = "refused" if event.refused else "waiting"
            self._change(phase, event.reason, event.next_attempt, event.code)

    def _change(self, phase: Phase, reason: str, next_attempt: float | None = None, code: str = "") -> None:
        state = self._state
        if phase != state.phase:
            state.since = time.time()
        state.phase, state.reason, state.next_attempt, state.code = phase, reason, next_attempt, code
        for told in list(self.on_state):
            try:
                told(self.state)
            except Exception:
                log.exception("link.state_handler_failed")


def _dealer(context: zmq.Context[zmq.Socket[bytes]], node_id: str) -> zmq.Socket[bytes]:
    """Shakes hands and answers commands; messages go by the lane."""
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.ROUTING_ID, node_id.encode())
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a link that does not stand
    socket.setsockopt(zmq.HANDSHAKE_IVL, 0)  # it waits in the tunnel's backlog for as long as the hub is away
    socket.setsockopt(zmq.RECONNECT_IVL, 20)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_BULK)
    return socket
