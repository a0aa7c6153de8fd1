"""Calls from a wire's thread into the event loop: in order, and many under one wake-up.

Not for answers: nobody waits for what is called here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog

log = structlog.get_logger("zk0d.link.soon")

_AT_ONCE = 32


class Soon:
    """Call it as `loop.call_soon_threadsafe` would be called, from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._told = False

    def __call__(self, call: Callable[..., object], *args: Any) -> None:
        self._calls.append((call, args))
        if not self._told:
            self._told = True
            try:
                self._loop.call_soon_threadsafe(self._run)
            except RuntimeError:
                pass  # the loop is closed; nobody is left to tell

    def _run(self) -> None:
        self._told = False  # before the look, so that no call is missed
        for _ in range(min(_AT_ONCE, len(self._calls))):  # a flood must not starve the loop
            call, args = self._calls.popleft()
            try:
                call(*args)
            except Exception:
                log.exception("link.call_failed")
        if self._calls and not self._told:
            self._told = True
            self._loop.call_soon(self._run)
