"""Fetch one blob from a peer: drives the Receiver with real messages, the store and the clock.

Resumes over reconnects (the Peer lives on) and over restarts (the store's partial does). Not for who may fetch what.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from zk0d.errors import LinkLostError, PayloadError, RefusedError
from zk0d.link.peer import Peer
from zk0d.link.state import Progress
from zk0d.link.transfer import Receiver
from zk0d.model import tensors
from zk0d.model.blobs import Manifest, Partial

log = structlog.get_logger("zk0d.link.download")

_BUSY_PAUSE_S = 0.2


async def download(peer: Peer, digest: str, size_limit: int, like: Sequence[str] = ()) -> Path:
    """The blob's path once it is whole and verified. See NodeLink.fetch for what it raises.

    `like`: blobs that may have tensors in common with it; those that do are not sent again.
    """
    if peer.blobs.has(digest):
        return peer.blobs.path(digest)
    loop = asyncio.get_running_loop()
    like = [d for d in like if peer.blobs.has(d)]
    manifest, offered = await _manifest(peer, digest, bool(like))
    if manifest.size > size_limit:
        raise PayloadError(f"{digest} is {manifest.size} bytes, at most {size_limit} are accepted here")
    partial = await loop.run_in_executor(peer.pool, peer.blobs.partial, digest, manifest)
    try:
        if offered:
            spared = await loop.run_in_executor(peer.pool, tensors.reuse, peer.blobs, partial, offered, like)
            log.info("transfer.spared", digest=digest, bytes=spared, of=manifest.size)
        await _Fetch(peer, manifest, partial).run()
        return await loop.run_in_executor(peer.pool, partial.finish)
    finally:
        await asyncio.shield(loop.run_in_executor(peer.pool, partial.close))


async def _manifest(peer: Peer, digest: str, pieces: bool) -> tuple[Manifest, tuple[tensors.Piece, ...]]:
    """The blob's manifest and, where `pieces` are wanted and the peer knows them, its tensors."""
    question = {"digest": digest, "tensors": 1} if pieces else {"digest": digest}
    end = time.monotonic() + peer.limits.stall_s
    while True:
        try:
            answer = await peer.ask("manifest.get", question, max(0.1, min(60.0, end - time.monotonic())))
            break
        except LinkLostError:
            if time.monotonic() >= end:
                raise
        except RefusedError as error:
            if error.reason != "busy" or time.monotonic() >= end:
                raise
            await asyncio.sleep(_BUSY_PAUSE_S)
    body, bulk = answer.body, answer.bulk
    if answer.type != "manifest" or bulk is None or body["digest"] != digest or len(bulk) % 32:
        raise PayloadError(f"{peer.name} answered the question for the manifest of {digest} with something else")
    raw = bytes(bulk)
    made = Manifest(digest, body["size"], body["chunk_size"], tuple(raw[i : i + 32] for i in range(0, len(raw), 32)))
    return made, tensors.unpack(body.get("tensors", b""), made.size)


@dataclass(frozen=True)
class _Event:
    """What the loop of a download hears of: a chunk was stored, or was wrong (`good`), or will not come (`code`)."""

    index: int = -1
    size: int = 0
    good: bool | None = None
    code: str = ""
    error: BaseException | None = None


class _Fetch:
    """One blob on its way. Chunks are verified and written in the pool, several at once, while more come."""

    def __init__(self, peer: Peer, manifest: Manifest, partial: Partial) -> None:
        self.peer, self.manifest, self.partial = peer, manifest, partial
        self.digest = manifest.digest
        self.receiver = Receiver(manifest, partial.have, peer.limits, time.monotonic())
        self.progress = Progress(self.digest, "down", manifest.size, partial.done_bytes, skipped=partial.done_bytes)
        # Bounded by the window: only chunks that were asked for are put in.
        self._events: asyncio.Queue[_Event] = asyncio.Queue()
        self._taken: set[int] = set()
        self._storing: set[asyncio.Future[bool]] = set()
        self._held = False  # by the bandwidth limit, at the last look

    def _arrival(self, index: int, data: bytes | memoryview | None, code: str) -> None:
        if self.receiver.expects(index) and index not in self._taken:
            self._taken.add(index)
            if data is not None:
                self._store(index, data)
            else:
                self._events.put_nowait(_Event(index, code=code))

    def _interrupted(self) -> None:
        self.receiver.interrupted()
        self._events.put_nowait(_Event(code="interrupted"))

    def _store(self, index: int, data: bytes | memoryview) -> None:
        size = len(data)
        storing = asyncio.get_running_loop().run_in_executor(self.peer.pool, self.partial.write, index, data)
        self._storing.add(storing)

        def stored(done: asyncio.Future[bool]) -> None:
            self._storing.discard(done)
            if not done.cancelled():
                error = done.exception()
                good = None if error else done.result()
                self._events.put_nowait(_Event(index, size=size, good=good, error=error))

        storing.add_done_callback(stored)

    async def run(self) -> None:
        """Until the partial is complete."""
        peer = self.peer
        peer.arrivals[self.digest] = self._arrival
        peer.interruptions.append(self._interrupted)
        peer.progress["down", self.digest] = self.progress
        try:
            while not self.receiver.done:
                patience = self._ask()
                try:
                    event = await asyncio.wait_for(self._events.get(), patience)
                except TimeoutError:
                    continue
                await self._take(event)
        finally:
            peer.arrivals.pop(self.digest, None)
            peer.interruptions.remove(self._interrupted)
            peer.progress.pop(("down", self.digest), None)
            if self._storing:  # nobody may write to a partial that is closed
                await asyncio.shield(asyncio.gather(*self._storing, return_exceptions=True))

    def _ask(self) -> float:
        """Ask for what the credit window and the bandwidth limit let through; seconds to wait for what comes."""
        peer, receiver, now = self.peer, self.receiver, time.monotonic()
        if peer.held or (self._held and not receiver.outstanding):  # it is we who hold it, not the peer
            receiver.progressed = now
        self._held = False
        if now - receiver.progressed > peer.limits.stall_s:
            raise LinkLostError(
                f"no chunk of {self.digest} came from {peer.name} for {peer.limits.stall_s:g} s", "what came is kept"
            )
        if not peer.linked.is_set() or peer.held:  # else `up` interrupts
            return 1.0
        while not (held := peer.download.delay(now)):
            indexes = receiver.asks(now, 1)
            if not indexes:
                return min(1.0, receiver.next_look(now))
            peer.download.spend(self.manifest.length(indexes[0]))
            peer.ask_chunk(self.digest, indexes[0], self.manifest.chunk_size)
        self._held = True
        return min(1.0, held)

    async def _take(self, event: _Event) -> None:
        self._taken.discard(event.index)
        if event.error is not None:
            raise event.error
        if event.good is not None:
            if not event.good:
                log.warning("transfer.wrong_chunk", peer=self.peer.name, digest=self.digest, index=event.index)
            self.receiver.arrived(event.index, event.good, time.monotonic())
            self.progress.done += event.size if event.good else 0
            self.progress.moved = time.time()
        elif event.code == "busy":
            self.receiver.unavailable(event.index)
            await asyncio.sleep(_BUSY_PAUSE_S)
        elif event.code != "interrupted":
            raise RefusedError(
                f"{self.peer.name} does not give chunk {event.index} of {self.digest}", reason=event.code
            )
