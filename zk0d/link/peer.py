"""One conversation: requests and their answers, pushes, pings, and the two queues that keep bulk behind control.

The same at both ends, for one peer; survives that peer's reconnects. Not for sockets (node.py, hub.py transmit for it)
nor for arriving blobs (download.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Executor
from functools import lru_cache
from pathlib import Path
from typing import Any

import structlog

from zk0d.errors import LinkClosedError, LinkLostError, Zk0Error
from zk0d.link.answers import Answers, OnRequest
from zk0d.link.expected import Expected
from zk0d.link.lane import Inbox, Skipped
from zk0d.link.messages import (
    ANSWERS,
    PUSHES,
    REQUESTS,
    Body,
    Frame,
    Lent,
    Message,
    MessageError,
    decode,
    encode,
    new_id,
)
from zk0d.link.questions import MAX_PENDING, Questions
from zk0d.link.rates import Limiter, Pace
from zk0d.link.serving import MAX_CHUNKS_WAITING, Ask, Serving
from zk0d.link.state import LinkLimits, Progress
from zk0d.link.transfer import Credit
from zk0d.model import tensors
from zk0d.model.blobs import MAX_BLOB, BlobStore
from zk0d.model.manifest import may_be

log = structlog.get_logger("zk0d.link.peer")

MAX_CONTROL = 1024
MAX_UNASKED = 64 << 20
"""Bytes of chunks that were not asked for after which a link is ended: limits of bandwidth hold for what is asked."""
MAX_MALFORMED = 1 << 20
"""Bytes of messages that cannot be parsed after which a link is ended. A type that is only unknown counts for none."""
_TROUBLE = 256  # an empty one counts as much: it is told and logged like any other

Transmit = Callable[[list[Frame]], Awaitable[None]]
Arrival = Callable[[int, bytes | memoryview | None, str], None]
"""(index, data or None, error code) of a chunk that was asked for."""


@lru_cache(256)
def _packed(path: Path) -> bytes:
    return tensors.pack(tensors.pieces(path))  # a blob never changes under its name


class Peer:
    """`transmit` sends frames or raises LinkLostError; it waits while there is no room. `offer` says False then."""

    def __init__(
        self,
        name: str,
        *,
        transmit: Transmit,
        offer: Callable[[list[Frame]], bool] = lambda frames: False,
        blobs: BlobStore,
        pool: Executor,
        may_take: Callable[[str], bool],
        limits: LinkLimits,
        upload: Limiter,
        download: Limiter,
        credit: Credit | None = None,
        on_request: OnRequest | None = None,
        on_push: Callable[[str, Body], None] | None = None,
        on_flood: Callable[[str], None] | None = None,
    ) -> None:
        """`on_flood` is called, with the reason, when the peer goes on sending what nobody asked for or can read."""
        self.name = name
        self._on_flood, self._unasked, self._malformed = on_flood, 0, 0
        self.blobs, self.pool, self.limits = blobs, pool, limits
        self.held = False
        self.linked = asyncio.Event()
        self.progress: dict[tuple[str, str], Progress] = {}
        self.arrivals: dict[str, Arrival] = {}
        self.interruptions: list[Callable[[], None]] = []
        self._fetching: set[asyncio.Future[None]] = set()
        self._transmit, self._offer, self._may_take = transmit, offer, may_take
        self.download = download
        self.credit = credit or Credit(limits.receive_bytes)
        self.expected = Expected()
        self._on_push = on_push
        self._next_id = new_id()
        self._questions = Questions(name, self._ident, self._enqueue)
        self._chunk_asks: OrderedDict[int, tuple[str, int]] = OrderedDict()
        self._answers = Answers(name, on_request, self._ident, self._enqueue) if on_request is not None else None
        self._control: deque[list[Frame]] = deque()
        self._manifests: deque[list[Frame]] = deque()  # they wait for the room of bulk, so never among control
        self._unsent: list[Frame] | None = None  # a chunk that found no room
        self._serving = Serving(blobs, pool, upload, self.progress, self._say_chunk, self._no_chunk)
        self._pace = Pace(limits.requests_per_s, limits.requests_at_once)
        self._sending = False
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._sender = asyncio.create_task(self._send(), name=f"zk0-send-{name}")

    # State of the link below

    def up(self, inbox: Inbox | None = None) -> None:
        """A link stands: ask again whatever has had no answer. `inbox`: of a link that holds only what is asked for."""
        self._flush()
        self.expected.up(inbox)
        self.linked.set()
        self._questions.again()

    def down(self) -> None:
        """The link is gone; what waited to be sent on it is forgotten (askers ask again)."""
        self.linked.clear()
        self._flush()

    def _flush(self) -> None:
        self.expected.down()
        self._control.clear()
        self._manifests.clear()
        self._serving.clear()
        self._unsent = None
        self._chunk_asks.clear()
        self._unasked = self._malformed = 0
        for interrupted in list(self.interruptions):
            interrupted()

    def transfers(self) -> list[Progress]:
        """What is moving. A sender cannot know that the receiver had the rest already: silence ends it here."""
        silent = time.time() - 3 * self.limits.reask_s
        return [p for p in self.progress.values() if p.direction == "down" or p.moved > silent]

    @property
    def closed(self) -> bool:
        """Whether this is the end of the peer, not only of a link to it."""
        return self._closed

    @contextlib.contextmanager
    def fetching(self) -> Iterator[None]:
        """Around the fetch of a blob: `close` ends it, and leaves it the pool until it has put its partial away."""
        if self._closed:
            raise LinkClosedError("the link is closed")
        over = asyncio.get_running_loop().create_future()
        self._fetching.add(over)
        try:
            yield
        finally:
            self._fetching.discard(over)
            over.set_result(None)

    async def close(self) -> None:
        """End: everything that waits gets LinkClosedError."""
        self._closed = True
        self.down()
        self._questions.close()
        for task in [self._sender, *self._tasks]:
            task.cancel()
        await asyncio.gather(self._sender, *self._tasks, *self._fetching, return_exceptions=True)

    # What we say

    def _ident(self) -> int:
        self._next_id = (self._next_id + 1) % (1 << 63)
        return self._next_id

    def say(self, type: str, body: Body, re: int | None = None) -> bool:
        """Queue a control message that needs no answer. False when there is no link, or it cannot keep up."""
        return self._enqueue(encode(Message(type, self._ident(), body, re)))

    def _enqueue(self, frames: list[Frame]) -> bool:
        if not self.linked.is_set():
            return False
        if len(self._control) >= MAX_CONTROL:
            log.warning("link.queue_full", peer=self.name)
            return False
        if self._control or not self._offer(frames):
            self._control.append(frames)
            self._wake.set()
        return True

    async def ask(self, type: str, body: Body, timeout: float) -> Message:
        """Send a request and give the message that answers it; RefusedError, LinkLostError, LinkClosedError."""
        return await self._questions.ask(type, body, timeout)

    def ask_chunk(self, digest: str, index: int, chunk_size: int) -> bool:
        """Ask for one chunk; it arrives in `arrivals[digest]`."""
        ident = self._ident()
        self._chunk_asks[ident] = (digest, index)
        while len(self._chunk_asks) > MAX_PENDING:
            self._chunk_asks.popitem(last=False)
        return self._enqueue(
            encode(Message("chunk.get", ident, {"digest": digest, "index": index, "chunk_size": chunk_size}))
        )

    def hold(self, on: bool) -> None:
        """Serve and ask for no chunk while `on`."""
        if self.held != on:
            self.held = on
            self._wake.set()

    async def _send(self) -> None:
        """Sends what could not go at once: control first, then one chunk, then look again."""
        while True:
            await self.linked.wait()
            self._wake.clear()
            try:
                if self._control:
                    await self._transmit(self._control.popleft())
                elif self._manifests:
                    await self._transmit(self._manifests.popleft())
                elif self._unsent:
                    frames, self._unsent = self._unsent, None
                    await self._transmit(frames)
                elif not self._serving.due or self.held:
                    await self._wake.wait()
                elif delay := self._serving.delay():
                    await self._wait_wake(delay)
                else:
                    await self._serve_next()
            except LinkLostError:
                await asyncio.sleep(0.01)  # `down` is on its way
            except Exception:
                log.exception("link.send_failed", peer=self.name)

    async def _wait_wake(self, delay: float) -> None:
        try:
            await asyncio.wait_for(self._wake.wait(), delay)
        except TimeoutError:
            pass

    async def _serve_next(self) -> None:
        self._sending = True
        try:
            frames = self._serving.from_memory() or await self._serving.from_disk()
            if frames is not None and not self._offer(frames):
                await self._transmit(frames)
        finally:
            self._sending = False

    def _serve_at_once(self) -> None:
        """What lies in memory, for as long as there is room for it: no task is woken for that."""
        while not (self._unsent or self._sending or self.held) and (frames := self._serving.from_memory()):
            if not self._offer(frames):
                self._unsent = frames
                break
        if self._unsent or self._serving.due:
            self._wake.set()

    def _say_chunk(self, ask: Ask, lent: Lent) -> list[Frame]:
        digest, index, _, re = ask
        return encode(Message("chunk", self._ident(), {"digest": digest, "index": index}, re), lent)

    def _no_chunk(self, ask: Ask) -> None:
        self._error("not_found", f"{ask[0]} has no chunk {ask[1]} here", ask[3])

    def _error(self, code: str, message: str, re: int | None, hint: str = "") -> None:
        self.say("error", {"code": code, "message": message[:1000], "hint": hint[:1000]}, re)

    # What we hear

    def heard(self, frames: list[Any]) -> Message | None:
        """Take one message from the peer; None when it was not acceptable (the peer is told, and so is the log)."""
        try:
            message = decode(frames)
        except MessageError as error:
            log.warning("link.bad_message", peer=self.name, code=error.wire_code, reason=error.message)
            self._error(error.wire_code, error.message, error.re)
            self._malformed += max(_TROUBLE, sum(map(len, frames))) if error.wire_code == "malformed" else 0
            if self._malformed > MAX_MALFORMED and self._on_flood is not None:
                self._on_flood(f"it sent {self._malformed >> 10} KiB of messages that cannot be parsed")
            return None
        try:
            self._dispatch(message)
        except Exception:  # a handler's defect is not the link's end
            log.exception("link.dispatch_failed", peer=self.name, type=message.type)
        return message

    def _dispatch(self, message: Message) -> None:
        if message.type == "ping":
            self._serving.let_go()
            self.say("pong", {}, message.id)
        elif message.type in ANSWERS:
            self._answered(message)
        elif message.type == "chunk":
            self._chunk_came(message)
        elif message.type == "chunk.get":
            self._chunk_wanted(message)
        elif message.type == "manifest.get":
            self._start(message, self._serve_manifest(message))
        elif message.type in REQUESTS and self._answers is not None:
            self._answers.requested(message, self._start)
        elif message.type in PUSHES and self._on_push is not None:
            self._pushed(message)
        else:
            self._error("unknown_type", f"{message.type} is not for this end", message.id)

    def _answered(self, message: Message) -> None:
        if not self._questions.answered(message) and message.type == "error":
            asked = self._chunk_asks.pop(message.re, None) if message.re is not None else None
            if asked is not None and (arrival := self.arrivals.get(asked[0])):
                arrival(asked[1], None, message.body["code"])
            else:
                log.warning(
                    "link.error_from_peer", peer=self.name, code=message.body["code"], reason=message.body["message"]
                )

    def _chunk_came(self, message: Message) -> None:
        bulk = message.bulk if message.bulk is not None else b""
        if message.re is None or self._chunk_asks.pop(message.re, None) is None:
            self._unasked += bulk.size if isinstance(bulk, Skipped) else len(bulk)
            if self._unasked > MAX_UNASKED and self._on_flood is not None:
                self._on_flood(f"it sent {self._unasked >> 20} MiB of chunks that nobody asked for")
        arrival = self.arrivals.get(message.body["digest"])
        if arrival is not None and not isinstance(bulk, Skipped):
            arrival(message.body["index"], bulk, "")

    def _chunk_wanted(self, message: Message) -> None:
        digest, index, size = message.body["digest"], message.body["index"], message.body["chunk_size"]
        if not self._can_take(digest) or not may_be(index, size):
            self._error("not_found", f"no chunk {index} of {digest[:80]} for you here", message.id)
        elif not self._serving.want((digest, index, size, message.id)):
            self._error("busy", f"{MAX_CHUNKS_WAITING} chunks are waiting", message.id)
        self._serve_at_once()

    def _can_take(self, digest: str) -> bool:
        try:
            return self._may_take(digest) and self._serving.has(digest)
        except Zk0Error:
            return False  # not even a digest

    def _start(self, message: Message, work: Coroutine[Any, Any, None]) -> bool:
        many = len(self._tasks) >= self.limits.max_requests
        if many or not self._pace.go(time.monotonic()):
            work.close()
            why = f"{self.limits.max_requests} requests are being answered" if many else "ask more slowly"
            self._error("busy", why, message.id)
            return False
        # At once: what needs no waiting is answered before the loop looks around again.
        task = asyncio.Task(work, loop=asyncio.get_running_loop(), eager_start=True)
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return True

    async def _serve_manifest(self, message: Message) -> None:
        digest = message.body["digest"]
        try:
            found = self._may_take(digest) and self._serving.has(digest)
            why = f"{digest[:80]} is not here, or not for you"
        except Zk0Error as error:  # not even a digest, or one that is no longer kept
            found, why = False, error.message[:1000]
        if not found:
            self._error("not_found", why, message.id)
            return
        loop = asyncio.get_running_loop()
        try:
            manifest = await loop.run_in_executor(self.pool, self.blobs.manifest, digest, self.limits.chunk_size)
        except (Zk0Error, OSError) as error:
            log.error("link.blob_damaged", digest=digest, reason=str(error))
            self._error("not_found", f"{digest} cannot be served", message.id)
            return
        if manifest.size > MAX_BLOB:
            self._error("not_found", f"{digest} is larger than the {MAX_BLOB >> 30} GiB that travel", message.id)
            return
        self._serving.begin(digest, manifest.size)
        body: Body = {"digest": digest, "size": manifest.size, "chunk_size": manifest.chunk_size}
        if message.body.get("tensors"):
            body["tensors"] = await loop.run_in_executor(self.pool, self._tensors, digest)
        self._say_manifest(encode(Message("manifest", self._ident(), body, message.id, manifest.leaves)))

    def _say_manifest(self, frames: list[Frame]) -> None:
        if not self.linked.is_set() or len(self._manifests) >= MAX_CONTROL:
            return  # its asker asks again
        if self._manifests or not self._offer(frames):
            self._manifests.append(frames)
            self._wake.set()

    def _tensors(self, digest: str) -> bytes:
        """Where the blob's tensors lie and their digests; a hub is asked for the same ones by each of its nodes."""
        return _packed(self.blobs.path(digest))

    def _pushed(self, message: Message) -> None:
        assert self._on_push is not None
        try:
            self._on_push(message.type, message.body)
        except Exception:
            log.exception("link.push_handler_failed", type=message.type)
