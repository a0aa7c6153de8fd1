"""What a worker hears outside its control loop: while it opens devices, loads a policy, moves an arm into place.

An end is noticed there too, and nothing else that is said is lost: it waits for the loop. Not the channel (worker.py).
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Protocol

ENDS = ("stop", "finish", "release", "orphaned")
"""Commands that end a session."""


class Channel(Protocol):
    """The worker's end of its channel (zk0d.worker.WorkerChannel)."""

    def emit(self, event: str, **fields: Any) -> None: ...

    def poll(self, timeout_s: float = 0.0) -> dict[str, Any] | None: ...


class Nobody:
    """The channel of whoever opens an arm without a supervisor."""

    def emit(self, event: str, **fields: Any) -> None:
        pass

    def poll(self, timeout_s: float = 0.0) -> dict[str, Any] | None:
        time.sleep(max(0.0, timeout_s))
        return None


class Ended(Exception):
    """Told to end before the work began; its one argument is the command."""


class Ear:
    """A channel that can be asked whether it is time to end, without taking any other word from the loop."""

    def __init__(self, channel: Channel | None = None) -> None:
        self._channel = channel or Nobody()
        self._kept: deque[dict[str, Any]] = deque()
        self.stopped = False
        """Whether a person's `stop` was heard and taken."""

    def emit(self, event: str, **fields: Any) -> None:
        """Send one event."""
        self._channel.emit(event, **fields)

    def poll(self, timeout_s: float = 0.0) -> dict[str, Any] | None:
        """The next command, one that was put aside first; waits up to `timeout_s` seconds, None if there is none."""
        message = self._kept.popleft() if self._kept else self._channel.poll(timeout_s)
        self._note(message or {})
        return message

    def _note(self, message: dict[str, Any]) -> None:
        self.stopped |= message.get("cmd") == "stop" and message.get("by") == "person"

    def end(self, wait_s: float = 0.0, ends: tuple[str, ...] = ENDS, *, by_person: bool = False) -> str:
        """The first command of `ends`, which is taken; "" when none comes in `wait_s` seconds, which are waited out.

        `by_person`: a `stop` counts only where it carries `"by": "person"`.
        """
        deadline = time.perf_counter() + wait_s
        while True:
            for message in self._kept:
                word = message.get("cmd")
                if word in ends and not (by_person and word == "stop" and message.get("by") != "person"):
                    self._kept.remove(message)
                    self._note(message)
                    return str(word)
            heard = self._channel.poll(max(0.0, deadline - time.perf_counter()))
            if heard is None:
                return ""
            self._kept.append(heard)

    def check(self) -> None:
        """Raises Ended when the session is to end."""
        if word := self.end():
            raise Ended(word)
