"""What one end has asked its peer and has had no answer to: asked again, with the same id, on the next link.

Not for chunks, which are asked for without waiting (download.py), nor for what the peer asks (answers.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from zk0d.errors import LinkClosedError, LinkLostError, RefusedError
from zk0d.link.messages import Body, Frame, Message, encode

MAX_PENDING = 256


class Questions:
    """`ident` makes message ids, `send` queues frames for the peer where there is a link."""

    def __init__(self, peer: str, ident: Callable[[], int], send: Callable[[list[Frame]], bool]) -> None:
        self._peer, self._ident, self._send = peer, ident, send
        self._pending: dict[int, tuple[asyncio.Future[Message], list[Frame]]] = {}
        self._closed = False

    async def ask(self, type: str, body: Body, timeout: float) -> Message:
        """Send a request and give the message that answers it; RefusedError, LinkLostError, LinkClosedError."""
        if self._closed:
            raise LinkClosedError("the link is closed")
        if len(self._pending) >= MAX_PENDING:
            raise LinkLostError(f"{MAX_PENDING} requests are waiting for {self._peer}", "the peer is away or very slow")
        ident = self._ident()
        frames = encode(Message(type, ident, body))
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._pending[ident] = (future, frames)
        try:
            self._send(frames)
            answer = await asyncio.wait_for(future, timeout)
        except TimeoutError:
            raise LinkLostError(f"no answer to {type} from {self._peer} within {timeout:g} s") from None
        finally:
            del self._pending[ident]
        if answer.type == "error":
            refused = RefusedError(answer.body["message"], answer.body.get("hint") or "", reason=answer.body["code"])
            if "refusal" in answer.body and "refusal_signature" in answer.body:
                refused.signed = (answer.body["refusal"], answer.body["refusal_signature"])
            raise refused
        return answer

    def again(self) -> None:
        """A link stands: ask whatever has had no answer."""
        for _, frames in self._pending.values():
            self._send(frames)

    def answered(self, message: Message) -> bool:
        """Whether it answers one of these."""
        if message.re not in self._pending:
            return False
        future, _ = self._pending[message.re]
        if not future.done():
            future.set_result(message)
        return True

    def close(self) -> None:
        """Whoever waits gets LinkClosedError."""
        self._closed = True
        for future, _ in self._pending.values():
            if not future.done():
                future.set_exception(LinkClosedError("the link is closing"))
