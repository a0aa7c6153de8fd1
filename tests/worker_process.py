"""A worker process as a supervisor sees it, for synchronous tests: start it, read its events, send it commands.

Not for programs (zk0d/supervise.py): here everything waits with a deadline and nothing is retried.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from zk0d.worker import FD_VARIABLE


class WorkerProcess:
    """Context manager; leaving it kills what is still running."""

    def __init__(self, module: str, job: dict[str, Any], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "job.json"
        path.write_text(json.dumps(job))
        self._ours, theirs = socket.socketpair()
        self.log = folder / "worker.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, str(path)],
                env={**os.environ, FD_VARIABLE: str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        theirs.close()
        self._buffer = b""
        self.events: list[dict[str, Any]] = []

    def read(self, timeout_s: float = 120.0) -> dict[str, Any] | None:
        """The next event; None when the worker has closed its end. Fails when neither comes in time."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            self._ours.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._ours.recv(65536)
            except TimeoutError:
                raise AssertionError(f"no event within {timeout_s} s after {self.events[-3:]}\n{self.tail()}") from None
            except ConnectionResetError:
                return None  # killed with a command of ours unread
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        self.events.append(json.loads(line))
        return self.events[-1]

    def until(self, *names: str, timeout_s: float = 120.0) -> dict[str, Any]:
        """Read up to the next event of one of these names; fails when the worker ends before it."""
        deadline = time.monotonic() + timeout_s
        while (event := self.read(max(0.01, deadline - time.monotonic()))) is not None:
            if event["event"] in names:
                return event
        raise AssertionError(f"the worker ended without {names}: {self.events[-5:]}\n{self.tail()}")

    def send(self, command: str) -> None:
        """Send a command."""
        self._ours.sendall(json.dumps({"cmd": command}).encode() + b"\n")

    def hang_up(self) -> None:
        """Go away as a supervisor that was killed does."""
        self._ours.close()

    def kill(self) -> None:
        """SIGKILL to the whole session."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)

    def of(self, name: str) -> list[dict[str, Any]]:
        """The events so far of this name."""
        return [e for e in self.events if e["event"] == name]

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-3000:]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.kill()
        self._ours.close()
