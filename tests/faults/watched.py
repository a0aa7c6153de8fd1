"""A transfer under faults, with everything counted that must hold: the digest, what was sent again, what came twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from linked import FAST, World

from zk0d.link.node import NodeLink
from zk0d.link.state import LinkLimits, LinkState
from zk0d.model.blobs import BlobStore, Partial
from zk0d.model.lent import LentBlob, LentChunk

CHUNK = 256 * 1024


def limits(**changed: Any) -> LinkLimits:
    """Short times, small chunks, few at a time; a link that moves nothing for 1.2 s is given up.

    Nothing is asked for again on a link that stands: a machine that halts for a second would have chunks sent twice."""
    return LinkLimits(
        **{
            **FAST.__dict__,
            "chunk_size": CHUNK,
            "window_max": 2,
            "silence_s": 1.2,
            "ping_s": 0.3,
            "reask_s": 30.0,
            "stall_s": 60.0,
            **changed,
        }
    )


def losses(link: NodeLink) -> list[str]:
    """The reasons for which it is lost from now on, as they come."""
    lost, phases = list[str](), [link.state.phase]

    def told(state: LinkState) -> None:
        if phases[-1] == "connected" != state.phase:
            lost.append(state.reason)
        phases.append(state.phase)

    link.on_state.append(told)
    return lost


class Watched:
    """Counts on both ends of `w`; create before anything moves."""

    def __init__(self, w: World, patch: pytest.MonkeyPatch) -> None:
        self.w = w
        self.sent: Counter[int] = Counter()
        self.stored: Counter[int] = Counter()
        self.ran: Counter[str] = Counter()
        self.beats = 0
        read, write = LentBlob.from_disk, Partial.write

        def from_disk(blob: LentBlob, index: int, chunk_size: int) -> LentChunk:
            self.sent[index] += 1
            return read(blob, index, chunk_size)

        def stored(partial: Partial, index: int, data: bytes) -> bool:
            new = index not in partial.have
            good = write(partial, index, data)
            self.stored[index] += good and new
            return good

        lend = LentBlob.chunk

        def lent(blob: LentBlob, index: int, chunk_size: int) -> LentChunk | None:
            chunk = lend(blob, index, chunk_size)
            self.sent[index] += chunk is not None
            return chunk

        patch.setattr(LentBlob, "from_disk", from_disk)
        patch.setattr(LentBlob, "chunk", lent)
        patch.setattr(Partial, "write", stored)

        async def answer(node_id: str, kind: str, body: dict[str, Any]) -> dict[str, Any]:
            self.ran[body["software"]] += 1
            return {"node_id": node_id}

        w.answer = answer

    async def move(
        self,
        link: NodeLink,
        node_blobs: Path,
        direction: str,
        size: int,
        trouble: Callable[[Callable[[], int]], Awaitable[int]],
    ) -> None:
        """Move `size` bytes while `trouble(chunks so far)` happens (it gives the number of cuts) and requests are asked."""
        data = random.Random(size).randbytes(size)
        if direction == "up":
            digest = BlobStore(node_blobs, reserve=0).add_bytes(data)
            link.share(digest)
            moving = asyncio.create_task(self.w.hub.fetch("a", digest, size))
        else:
            digest = self.w.blobs.add_bytes(data)
            moving = asyncio.create_task(link.fetch(digest))
        asking = asyncio.create_task(self._ask(link, moving))
        lost = losses(link)
        try:
            cuts = await trouble(lambda: len(self.stored))
            path = await asyncio.wait_for(moving, 90)
            await asking
        finally:
            for task in (moving, asking):
                task.cancel()
            await asyncio.gather(moving, asking, return_exceptions=True)
        assert path.read_bytes() == data, "another digest than was asked for"
        chunks = -(-size // CHUNK)
        assert set(self.stored) == set(range(chunks)) and set(self.stored.values()) == {1}, "stored twice, or never"
        again = sum(self.sent.values()) - chunks
        window = self.w.limits.window_max
        # A machine that halts for longer than the silence that ends a link has lost one more.
        cuts = max(cuts, len(lost)) if cuts else 0
        assert again <= window * cuts, f"{again} chunks were sent again for {cuts} cuts, the window is {window}"
        assert set(self.ran.values()) == {1} and len(self.ran) == self.beats, "a request ran twice, or was lost"

    async def _ask(self, link: NodeLink, moving: asyncio.Task[Any]) -> None:
        """Requests all the while: each is answered, and runs once."""
        while not moving.done():
            name, self.beats = f"ask {self.beats}", self.beats + 1
            await link.request("hello", {"software": name, "federations": []}, 90)
            await asyncio.sleep(0.05)
