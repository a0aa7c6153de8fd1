"""Arriving chunks on their way to the disk: one thread at a time for each blob, in the order in which they came.

So the disk is written in order, and threads do not wait for one another.
Not for what to ask for (transfer.py), nor for how a chunk is checked and kept (zk0d.model.partial).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor

from zk0d.link.soon import Soon
from zk0d.model.blobs import Partial

_TURN = 8
"""Chunks after which another blob's have their turn in the pool."""

Stored = Callable[[int, int, bool | None, BaseException | None], None]
"""(index, bytes, whether it was the right chunk, or what went wrong)."""


class Storing:
    """Belongs to the event loop; `stored` is called there for every chunk that was put in and not dropped."""

    def __init__(self, pool: Executor, partial: Partial, stored: Stored) -> None:
        self._pool, self._partial, self._stored = pool, partial, stored
        self._soon = Soon(asyncio.get_running_loop())
        # Bounded by the window: only chunks that were asked for are put in.
        self._waiting: deque[tuple[int, bytes | memoryview]] = deque()
        self._at_work = False
        self._rest = asyncio.Event()
        self._rest.set()

    def put(self, index: int, data: bytes | memoryview) -> None:
        """Check and store a chunk. RuntimeError when the pool is shut down."""
        self._waiting.append((index, data))
        if not self._at_work:
            self._begin()

    async def close(self) -> None:
        """Drop what has not begun; afterwards no thread touches the partial."""
        self._waiting.clear()
        await self._rest.wait()
        self._soon.close()

    def _begin(self) -> None:
        self._pool.submit(self._work)
        self._at_work = True
        self._rest.clear()

    def _work(self) -> None:
        """In a thread of the pool."""
        for _ in range(_TURN):
            try:
                index, data = self._waiting.popleft()
            except IndexError:
                break
            size, good, error = len(data), None, None
            try:
                good = self._partial.write(index, data)
            except BaseException as trouble:
                error = trouble
            del data  # the wire's buffer is free again before anybody is told
            self._soon(self._stored, index, size, good, error)
        self._soon(self._ended)

    def _ended(self) -> None:
        self._at_work = False
        if self._waiting:
            self._begin()
        else:
            self._rest.set()
