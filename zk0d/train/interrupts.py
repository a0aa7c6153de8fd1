"""Commands that end a training worker early: `stop`, `yield`, `conclude`, `orphaned`. Freezing needs no co-operation.

Importing torch and decoding video take seconds in which nothing polls; a thread keeps the promise to end within five.
"""

from __future__ import annotations

import os
import threading
import time

from zk0d.worker import WorkerChannel

GRACE_S = 4.0
"""Seconds a `stop` may wait for the running step; after them the worker leaves from its last checkpoint."""
ORPHANED_S = 25.0
"""The same when the daemon is gone: nobody else would end a worker that hangs in a driver, say."""
ENDS_S = 29.0
"""Seconds after which a worker without a daemon has ended, its last save done or not: the one before it is whole."""


class Interrupts:
    """Reads the channel's commands. Until `guard()` was called there is nothing to lose, and a command ends the process
    at once; after it, `wanted` holds the command and the main thread is expected to save and return.
    """

    def __init__(
        self, channel: WorkerChannel, grace_s: float = GRACE_S, orphaned_s: float = ORPHANED_S, ends_s: float = ENDS_S
    ) -> None:
        self._channel = channel
        self._grace_s = {"stop": grace_s, "orphaned": orphaned_s}
        self._ends_s = ends_s
        self._lock = threading.Lock()
        self._guarded = False
        self._handled = threading.Event()
        self.wanted: str = ""

    def start(self) -> Interrupts:
        threading.Thread(target=self._watch, name="interrupts", daemon=True).start()
        return self

    def guard(self) -> None:
        """From here on there is work worth saving."""
        with self._lock:
            self._guarded = True

    def handled(self) -> None:
        """The main thread has seen `wanted` and is saving."""
        self._handled.set()

    def _watch(self) -> None:
        while True:
            message = self._channel.poll(0.2)
            command = str(message["cmd"]) if message and "cmd" in message else ""
            if command not in ("stop", "yield", "conclude", "orphaned"):
                continue
            with self._lock:
                self.wanted = command if self.wanted in ("", "conclude") else self.wanted
                guarded = self._guarded
            if not guarded:
                self._leave(command)
            told = time.monotonic()
            grace_s = self._grace_s.get(command)  # a `yield` has none here: the daemon kills
            if grace_s is not None and not self._handled.wait(grace_s):
                self._leave(command)
            if command == "orphaned":
                time.sleep(max(0.0, told + self._ends_s - time.monotonic()))  # the process ends before that
                self._leave(command)

    def _leave(self, command: str) -> None:
        self._channel.emit("done", result={"finished": False, "reason": command})
        os._exit(0)
