"""A peer's requests, each answered once: one that comes again over a new link gets the first answer, or waits for it.

Not for what the answer is (`on_request`), nor for how many may be at work at once (peer.py).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from zk0d.errors import RefusedError, Zk0Error
from zk0d.link.messages import Body, Frame, Message, encode

log = structlog.get_logger("zk0d.link.peer")

MAX_REMEMBERED = 256
REMEMBERED_S = 300.0
"""A node that asks again does so within its own patience, of half a minute. Longer, the answers that a thousand idle
nodes had would be most of a hub's memory."""

OnRequest = Callable[[str, Body], Awaitable[Body]]


class Answers:
    """`ident` makes message ids, `send` queues frames for the peer."""

    def __init__(
        self, peer: str, on_request: OnRequest, ident: Callable[[], int], send: Callable[[list[Frame]], bool]
    ) -> None:
        self._peer, self._on_request, self._ident, self._send = peer, on_request, ident, send
        self._remembered: OrderedDict[int, tuple[float, list[Frame] | None]] = OrderedDict()

    def requested(self, message: Message, start: Callable[[Message, Coroutine[Any, Any, None]], bool]) -> None:
        """Answer `message` in a task that `start` begins; False from it: not now, the peer has been told."""
        if message.id in self._remembered:
            _, known = self._remembered[message.id]
            if known is not None:
                self._send(known)
            return
        self._forget(time.monotonic() - REMEMBERED_S)
        self._remembered[message.id] = (time.monotonic(), None)
        if not start(message, self._answer(message)):
            del self._remembered[message.id]
        while len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)

    def _forget(self, before: float) -> None:
        """Let go of the oldest answers."""
        while self._remembered:
            ident, (at, frames) = next(iter(self._remembered.items()))
            if at > before or frames is None:
                break
            del self._remembered[ident]

    async def _answer(self, message: Message) -> None:
        try:
            reply = Message("reply", self._ident(), await self._on_request(message.type, message.body), message.id)
            frames = encode(reply)
        except Zk0Error as error:
            code = error.reason if isinstance(error, RefusedError) else error.code
            log.info("link.request_refused", peer=self._peer, type=message.type, code=code, reason=error.message)
            body: Body = {"code": code, "message": error.message[:1000], "hint": error.hint[:1000]}
            if isinstance(error, RefusedError) and error.signed is not None:
                body["refusal"], body["refusal_signature"] = error.signed
            frames = encode(Message("error", self._ident(), body, message.id))
        except Exception:
            log.exception("link.request_failed", peer=self._peer, type=message.type)
            body = {"code": "internal", "message": f"the hub failed to answer {message.type}; its log says more"}
            frames = encode(Message("error", self._ident(), body, message.id))
        if message.id in self._remembered:
            self._remembered[message.id] = (time.monotonic(), frames)
        self._send(frames)
