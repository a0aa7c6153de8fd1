"""Calls from a wire's thread into the event loop: in order, and many under one wake-up.

Not for answers: nobody waits for what is called here.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog

log = structlog.get_logger("zk0d.link.soon")

_AT_ONCE = 32


class Soon:
    """Call it as `loop.call_soon_threadsafe` would be called, from any thread; made and closed in the loop's.

    An eventfd, since the loop's own wake-up is a socket pair: half the system calls for each message.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._told = False
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        loop.add_reader(self._wake, self._woken)

    def __call__(self, call: Callable[..., object], *args: Any) -> None:
        self._calls.append((call, args))
        if not self._told:
            self._tell()

    def _tell(self) -> None:
        self._told = True
        with self._lock:  # the number may be another file's once it is closed
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Nothing more is called from now on. Safe to call twice."""
        with self._lock:
            if self._wake >= 0:
                self._loop.remove_reader(self._wake)
                os.close(self._wake)
                self._wake = -1

    def _woken(self) -> None:
        os.eventfd_read(self._wake)
        self._run()

    def _run(self) -> None:
        self._told = False  # before the look, so that no call is missed
        for _ in range(min(_AT_ONCE, len(self._calls))):  # a flood must not starve the loop
            call, args = self._calls.popleft()
            try:
                call(*args)
            except Exception:
                log.exception("link.call_failed")
        if self._calls and not self._told:
            self._tell()


async def wait_for_room(room: asyncio.Event) -> None:
    """Until the lane has room, or a moment has passed (the link may have gone meanwhile)."""
    try:
        await asyncio.wait_for(room.wait(), 0.1)
    except TimeoutError:
        pass
