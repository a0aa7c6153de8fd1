"""The chunks that one peer wants: whose turn it is, where they lie, how far each blob has got.

Not for who may have what (peer.py asks), nor for sending: what is due comes out as frames.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor

from zk0d.errors import Zk0Error
from zk0d.link.messages import Frame, Lent
from zk0d.link.rates import Limiter
from zk0d.link.state import Progress
from zk0d.link.transfer import FairQueue
from zk0d.model.blobs import BlobStore
from zk0d.model.lent import LentBlob

MAX_CHUNKS_WAITING = 64
_MAX_LENT = 4

Ask = tuple[str, int, int, int]
"""Digest, index, chunk size, id of the question."""
Say = Callable[[Ask, Lent], list[Frame]]


class Serving:
    """In the event loop. `say` makes the message of a chunk, `refuse(ask)` tells that there is none."""

    def __init__(
        self, blobs: BlobStore, pool: Executor, upload: Limiter, progress: dict[tuple[str, str], Progress],
        say: Say, refuse: Callable[[Ask], None],
    ) -> None:  # fmt: skip
        self._blobs, self._pool, self._upload, self._progress = blobs, pool, upload, progress
        self._say, self._refuse = say, refuse
        self._queue = FairQueue(MAX_CHUNKS_WAITING)
        self._first: Ask | None = None  # its turn has come, and the disk must be asked
        self._served: dict[str, set[int]] = {}
        self._lent: OrderedDict[str, LentBlob] = OrderedDict()

    def begin(self, digest: str, size: int) -> None:
        """The peer has had the manifest."""
        self.let_go()
        self._progress["up", digest] = Progress(digest, "up", size, 0)
        self._served[digest] = set()
        while len(self._progress) > 2 * MAX_CHUNKS_WAITING:
            self._served.pop(self._progress.pop(next(iter(self._progress))).digest, None)

    def has(self, digest: str) -> bool:
        """Whether the blob is here; Zk0Error if that is no digest."""
        lent = self._lent.get(digest)
        return (lent is not None and os.path.exists(lent.path)) or self._blobs.has(digest)

    def want(self, ask: Ask) -> bool:
        """Queue it; False when too many wait."""
        return self._queue.add(*ask)

    def clear(self) -> None:
        """The link is gone, and with it whoever asked."""
        self._queue.clear()
        self._first = None
        self._lent.clear()

    def let_go(self) -> None:
        """Close what was deleted meanwhile (call it now and then): until then it keeps its place on the disk."""
        for digest in [d for d, blob in self._lent.items() if not os.path.exists(blob.path)]:
            del self._lent[digest]

    @property
    def waiting(self) -> int:
        """Chunks that were asked for and have not come out."""
        return len(self._queue) + (self._first is not None)

    @property
    def due(self) -> bool:
        return self.waiting > 0

    def delay(self) -> float:
        """Seconds until the bandwidth limit lets the next chunk go."""
        return self._upload.delay(time.monotonic())

    def from_memory(self) -> list[Frame] | None:
        """The next chunk's message, if the disk need not be asked for it and the limit lets it go."""
        while self._first is None and len(self._queue) and not self.delay():
            ask = self._queue.pop()
            try:
                lent = self._lend(ask[0]).chunk(ask[1], ask[2])
            except (Zk0Error, OSError):
                self._refuse(ask)
                continue
            if lent is not None:
                return self._made(ask, lent)
            self._first = ask
        return None

    async def from_disk(self) -> list[Frame] | None:
        """The message of the chunk that `from_memory` could not give; None when there is none (any more)."""
        ask, self._first = self._first, None
        if ask is None:
            return None
        try:
            blob = self._lend(ask[0])
            lent = await asyncio.get_running_loop().run_in_executor(self._pool, blob.from_disk, *ask[1:3])
        except (Zk0Error, OSError):
            self._refuse(ask)
            return None
        return self._made(ask, lent)

    def _lend(self, digest: str) -> LentBlob:
        """The open blob; a file stays open while its chunks are wanted."""
        blob = self._lent.pop(digest, None) or self._blobs.lend(digest)
        self._lent[digest] = blob
        while len(self._lent) > _MAX_LENT:
            self._lent.popitem(last=False)
        return blob

    def _made(self, ask: Ask, lent: Lent) -> list[Frame]:
        digest, index, _, _ = ask
        frames = self._say(ask, lent)
        size = len(lent)
        self._upload.spend(size)
        progress, served = self._progress.get(("up", digest)), self._served.setdefault(digest, set())
        if progress is not None and index not in served:
            served.add(index)
            progress.done += size
            progress.moved = time.time()
            if progress.done >= progress.size:
                del self._progress["up", digest], self._served[digest]
                self._lent.pop(digest, None)
        return frames
