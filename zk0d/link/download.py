"""Fetch one blob from a peer: drives the Receiver with real messages, the store and the clock.

Resumes over reconnects (the Peer lives on) and over restarts (the store's partial does). Not for who may fetch what.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from zk0d.errors import LinkClosedError, LinkLostError, PayloadError, RefusedError
from zk0d.link.peer import Peer
from zk0d.link.state import Progress
from zk0d.link.storing import Storing
from zk0d.link.transfer import Receiver
from zk0d.model import tensors
from zk0d.model.blobs import Manifest, Partial
from zk0d.model.leaves import LEAF, LEAF_DIGEST

log = structlog.get_logger("zk0d.link.download")

_BUSY_PAUSE_S = 0.2


async def download(peer: Peer, digest: str, size_limit: int, like: Sequence[str] = ()) -> Path:
    """The blob's path once it is whole and verified. See NodeLink.fetch for what it raises.

    `like`: blobs that may have tensors in common with it; those that do are not sent again.
    """
    if peer.blobs.has(digest):
        return peer.blobs.path(digest)
    with peer.fetching():
        return await _download(peer, digest, size_limit, like)


async def _download(peer: Peer, digest: str, size_limit: int, like: Sequence[str]) -> Path:
    loop = asyncio.get_running_loop()
    like = [d for d in like if peer.blobs.has(d)]
    leaves = -(-size_limit // LEAF) * LEAF_DIGEST
    with peer.expected.lasting(leaves):
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
    """The blob's manifest, proven, and, where `pieces` are wanted and the peer knows them, its tensors."""
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
    if answer.type != "manifest" or bulk is None or body["digest"] != digest:
        raise PayloadError(f"{peer.name} answered the question for the manifest of {digest} with something else")
    # Proven, or there is none. And no coarser than ours: a chunk under way holds memory here for as long as it takes.
    made = Manifest(digest, body["size"], min(body["chunk_size"], peer.limits.chunk_size), bytes(bulk))
    return made, tensors.unpack(body.get("tensors", b""), made.size)


class _Fetch:
    """One blob on its way: chunks come, are stored beside, and the next are asked for. All of it in the event loop."""

    def __init__(self, peer: Peer, manifest: Manifest, partial: Partial) -> None:
        self.peer, self.manifest = peer, manifest
        self.digest = manifest.digest
        self.receiver = Receiver(manifest, partial.have, peer.limits, time.monotonic())
        self.progress = Progress(self.digest, "down", manifest.size, partial.done_bytes, skipped=partial.done_bytes)
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._storing = Storing(peer.pool, partial, self._stored)
        self._taken: set[int] = set()
        self._held = False  # by the bandwidth limit or for others' turns, at the last look
        self._piece = min(manifest.chunk_size, manifest.size)
        self._charged = 0  # chunks whose bytes are taken of the credit
        self._expected = 0  # chunks that the link was told of
        self._pause = 0.0  # the peer was busy: until then nothing is asked for

    async def run(self) -> None:
        """Until the partial is complete."""
        peer = self.peer
        peer.arrivals[self.digest] = self._arrival
        peer.interruptions.append(self._interrupted)
        peer.progress["down", self.digest] = self.progress
        peer.credit.transfers += 1
        try:
            self._look()
            await self._over
        finally:
            peer.credit.transfers -= 1
            peer.arrivals.pop(self.digest, None)
            peer.interruptions.remove(self._interrupted)
            peer.progress.pop(("down", self.digest), None)
            self._end(None)
            peer.credit.leave(self._turn)
            self._settle(0, len(self._taken))
            try:
                await asyncio.shield(self._storing.close())  # nobody may write to a partial that is closed
            finally:
                self._settle(0, 0)

    def _end(self, error: BaseException | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._over.done():
            if error is None:
                self._over.set_result(None)
            else:
                self._over.set_exception(error)

    def _look(self) -> None:
        """Ask for what may be asked for now, and look again in time."""
        if self._over.done():
            return
        if self._timer is not None:
            self._timer.cancel()
        if self.receiver.done:
            self._end(None)
            return
        try:
            self._timer = self._loop.call_later(self._ask(), self._look)
        except Exception as error:  # it is this transfer's end, and its owner hears of it
            self._end(error)

    def _turn(self) -> None:
        """It is this transfer's turn to take of the credit."""
        self._loop.call_soon(self._look)

    def _settle(self, outstanding: int, held: int) -> None:
        """So many chunks are waited for, and so many not stored yet: the credit of others is given back."""
        self.peer.expected.add((outstanding - self._expected) * self._piece)
        self._expected = outstanding
        if (over := self._charged - max(outstanding, held)) > 0:
            self._charged -= over
            self.peer.credit.give(over * self._piece)

    def _ask(self) -> float:
        """Ask for what may be asked for now; seconds to wait for what comes."""
        peer, receiver, now = self.peer, self.receiver, time.monotonic()
        if peer.held or (self._held and not receiver.outstanding):  # it is we who hold it, not the peer
            receiver.progressed = now
        self._held = queued = False
        if now - receiver.progressed > peer.limits.stall_s:
            raise LinkLostError(
                f"no chunk of {self.digest} came from {peer.name} for {peer.limits.stall_s:g} s", "what came is kept"
            )
        if not peer.linked.is_set() or peer.held:  # else `up` interrupts
            wait = 1.0
        elif now < self._pause:
            wait = self._pause - now
        else:
            wait, queued = self._ask_on(now)
        if not queued:
            peer.credit.leave(self._turn)  # a turn that is not used is the next one's
        return wait

    def _ask_on(self, now: float) -> tuple[float, bool]:
        """Ask for what the window, the bandwidth limit and the credit let through; whether the credit's turn is waited
        for."""
        peer, receiver = self.peer, self.receiver
        if peer.expected.coming:
            receiver.comes(now)
        while not (held := peer.download.delay(now)):
            most = min(1, peer.credit.left(receiver.outstanding))
            if most and receiver.wants:
                if not peer.credit.take(self._turn, self._piece):
                    self._held = True
                    return 1.0, True
                self._charged += 1
            indexes = receiver.asks(now, most)
            self._settle(receiver.outstanding, len(self._taken))
            if not indexes:
                return min(1.0, receiver.next_look(now)), False
            peer.download.spend(self.manifest.length(indexes[0]))
            peer.ask_chunk(self.digest, indexes[0], self.manifest.chunk_size)
        self._held = True
        return min(1.0, held), False

    # What is heard

    def _arrival(self, index: int, data: bytes | memoryview | None, code: str) -> None:
        if self._over.done() or not self.receiver.expects(index) or index in self._taken:
            return
        if data is not None:
            self._taken.add(index)
            self._storing.put(index, data)
        elif code == "busy":
            self.receiver.unavailable(index)
            self._settle(self.receiver.outstanding, len(self._taken))
            self._pause = time.monotonic() + _BUSY_PAUSE_S
            self._look()
        else:
            refused = f"{self.peer.name} does not give chunk {index} of {self.digest}"
            self._end(RefusedError(refused, reason=code))

    def _interrupted(self) -> None:
        if self.peer.closed:
            self._end(LinkClosedError("the link is closed", "what came is kept"))
            return
        self.receiver.interrupted()
        self._expected = 0
        self._settle(0, len(self._taken))
        self._loop.call_soon(self._look)  # a link that comes back stands only after this

    def _stored(self, index: int, size: int, good: bool | None, error: BaseException | None) -> None:
        self._taken.discard(index)
        if error is not None:
            self._end(error)
            return
        if not good:
            log.warning("transfer.wrong_chunk", peer=self.peer.name, digest=self.digest, index=index)
        try:
            self.receiver.arrived(index, bool(good), time.monotonic())
        except PayloadError as wrong:
            self._end(wrong)
            return
        self._settle(self.receiver.outstanding, len(self._taken))
        self.progress.done += size if good else 0
        self.progress.moved = time.time()
        self._look()
