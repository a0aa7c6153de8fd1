"""Fetch one blob from a peer: drives the Receiver with real messages, the store and the clock.

Resumes over reconnects (the Peer lives on) and over restarts (the store's partial does). Not for who may fetch what.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
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
        await _chunks(peer, manifest, partial)
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


def _ask(peer: Peer, receiver: Receiver, now: float) -> float:
    """Ask for what the credit window and the bandwidth limit let through; seconds until the limit lets more, or 0."""
    manifest = receiver.manifest
    while not (held := peer.download.delay(now)):
        indexes = receiver.asks(now, 1)
        if not indexes:
            return 0.0
        peer.download.spend(manifest.length(indexes[0]))
        peer.ask_chunk(manifest.digest, indexes[0], manifest.chunk_size)
    return held


async def _chunks(peer: Peer, manifest: Manifest, partial: Partial) -> None:
    """Until the partial is complete."""
    loop, digest = asyncio.get_running_loop(), manifest.digest
    receiver = Receiver(manifest, partial.have, peer.limits, time.monotonic())
    progress = Progress(digest, "down", manifest.size, partial.done_bytes, skipped=partial.done_bytes)
    # Bounded by the window: only chunks that were asked for are put in.
    arrived: asyncio.Queue[tuple[int, bytes | memoryview | None, str]] = asyncio.Queue()

    queued: set[int] = set()

    def arrival(index: int, data: bytes | memoryview | None, code: str) -> None:
        if receiver.expects(index) and index not in queued:
            queued.add(index)
            arrived.put_nowait((index, data, code))

    def interrupted() -> None:
        receiver.interrupted()
        arrived.put_nowait((-1, None, "interrupted"))

    peer.arrivals[digest] = arrival
    peer.interruptions.append(interrupted)
    peer.progress["down", digest] = progress
    held = 0.0
    try:
        while not receiver.done:
            now = time.monotonic()
            if peer.held or (held and not receiver.outstanding):  # it is we who hold it, not the peer
                receiver.progressed = now
            if now - receiver.progressed > peer.limits.stall_s:
                raise LinkLostError(
                    f"no chunk of {digest} came from {peer.name} for {peer.limits.stall_s:g} s", "what came is kept"
                )
            patience, held = 1.0, 0.0
            if peer.linked.is_set() and not peer.held:  # else `up` interrupts
                held = _ask(peer, receiver, now)
                patience = min(1.0, held or receiver.next_look(now))
            try:
                index, data, code = await asyncio.wait_for(arrived.get(), patience)
            except TimeoutError:
                continue
            queued.discard(index)
            if data is not None:
                good = await loop.run_in_executor(peer.pool, partial.write, index, data)
                if not good:
                    log.warning("transfer.wrong_chunk", peer=peer.name, digest=digest, index=index)
                receiver.arrived(index, good, time.monotonic())
                progress.done, progress.moved = progress.done + (len(data) if good else 0), time.time()
            elif code == "busy":
                receiver.unavailable(index)
                await asyncio.sleep(_BUSY_PAUSE_S)
            elif code != "interrupted":
                raise RefusedError(f"{peer.name} does not give chunk {index} of {digest}", reason=code)
    finally:
        peer.arrivals.pop(digest, None)
        peer.interruptions.remove(interrupted)
        peer.progress.pop(("down", digest), None)
