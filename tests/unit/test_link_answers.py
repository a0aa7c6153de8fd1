"""A request that comes again: answered once, from memory, for as long as a node may ask again."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from zk0d.link import answers
from zk0d.link.answers import MAX_REMEMBERED, Answers
from zk0d.link.messages import Body, Frame, Message


class Desk:
    """Runs what is asked at once, unless it is held."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.sent = 0
        self.tasks: list[asyncio.Task[None]] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.answers = Answers("a", self._request, lambda: 7, self._send)

    async def _request(self, kind: str, body: Body) -> Body:
        await self.hold.wait()
        self.ran.append(body["size"])
        return {}

    def _send(self, frames: list[Frame]) -> bool:
        self.sent += 1
        return True

    def _start(self, message: Message, work: Coroutine[Any, Any, None]) -> bool:
        self.tasks.append(asyncio.Task(work, loop=asyncio.get_running_loop(), eager_start=True))
        return True

    def ask(self, ident: int) -> None:
        self.answers.requested(Message("log.head", ident, {"size": ident}), self._start)


def test_a_repeat_is_answered_from_memory_and_memory_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        desk = Desk()
        for _ in range(3):
            desk.ask(1)
        assert desk.ran == [1] and desk.sent == 3
        monkeypatch.setattr(answers, "REMEMBERED_S", 0.0)
        desk.hold.clear()
        desk.ask(2)  # lets go of the first answer, and is being worked on itself
        desk.ask(3)
        desk.ask(2)
        assert len(desk.answers._remembered) == 2 and desk.sent == 3
        desk.hold.set()
        await asyncio.gather(*desk.tasks)
        assert desk.ran == [1, 2, 3] and desk.sent == 5
        desk.ask(1)
        assert desk.ran == [1, 2, 3, 1], "every request may run again"
        monkeypatch.setattr(answers, "REMEMBERED_S", 300.0)
        for ident in range(100, 500):
            desk.ask(ident)
        assert len(desk.answers._remembered) == MAX_REMEMBERED

    asyncio.run(run())
