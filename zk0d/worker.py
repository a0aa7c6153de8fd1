"""The channel between a supervisor (zk0d, zk0-hub) and a worker process: the worker's end and the job file.

One JSON object per line over an inherited socket pair; stdout and stderr stay free for whatever libraries print.
Not for bulk data, which goes through files named in the job. docs/architecture.md, "Workers", lists the events.
"""

from __future__ import annotations

import collections
import ctypes
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zk0d.errors import WorkerError, Zk0Error

FD_VARIABLE = "ZK0_WORKER_FD"
SOCKET_VARIABLE = "ZK0_WORKER_SOCKET"
"""Where a worker that outlives its supervisor (a recorder in its own unit) finds the next one."""
RECONNECT_S = 60.0
"""How long it looks for one before it is an orphan."""
_BACKLOG = 1000
MAX_LINE = 64 * 1024
"""Bytes of a command."""
MAX_EVENT = 1024 * 1024
"""Bytes of an event, or of a result: longer lists of sentences are cut, and say so."""
_PR_SET_PDEATHSIG = 1

Message = dict[str, Any]


class WorkerChannel:
    """The worker's end. `emit` sends an event; `commands` receives what the supervisor says.

    Without a supervisor (a person runs the module by hand) events are printed on stdout as JSON lines and the only
    command is the `stop` that SIGINT or SIGTERM makes. When the supervisor dies, `{"cmd": "orphaned"}` comes; where a
    next one is to be expected (SOCKET_VARIABLE), only if none came within RECONNECT_S, and what was to be told waits.
    """

    def __init__(self) -> None:
        fd = os.environ.pop(FD_VARIABLE, "")
        self._sock = socket.socket(fileno=int(fd)) if fd else None
        self._next = os.environ.pop(SOCKET_VARIABLE, "") if fd else ""
        self._backlog: collections.deque[bytes] = collections.deque(maxlen=_BACKLOG)
        self._told = threading.Event()
        """Nothing waits to be told, or there is nobody to tell any more."""
        self._told.set()
        self._lock = threading.Lock()
        self.commands: queue.SimpleQueue[Message] = queue.SimpleQueue()
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        if self._sock is not None:
            # A stopped (frozen) worker would never see its supervisor's end: let the kernel thaw it then.
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)
            threading.Thread(target=self._read, name="worker-channel", daemon=True).start()

    def _on_signal(self, number: int, frame: object) -> None:
        by = {"by": "person"} if number == signal.SIGINT and self._sock is None else {}  # Ctrl-C at a run by hand
        self.commands.put({"cmd": "stop", "signal": signal.Signals(number).name, **by})

    def _read(self) -> None:
        assert self._sock is not None
        self._read_from(self._sock)
        while self._next and (found := self._reconnect()):
            self._read_from(found)
        self._next = ""
        self._told.set()
        self.commands.put({"cmd": "orphaned"})

    def _read_from(self, sock: socket.socket) -> None:
        with sock.makefile("rb") as lines:
            try:
                while line := lines.readline(MAX_LINE):
                    self.commands.put(json.loads(line))
            except (OSError, ValueError):
                pass  # a broken channel is a lost supervisor

    def _reconnect(self) -> socket.socket | None:
        """Wait for the next supervisor, and tell it what the last one did not hear."""
        end = time.monotonic() + RECONNECT_S
        while time.monotonic() < end:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(self._next)
                with self._lock:
                    self._sock = sock
                    while self._backlog:
                        sock.sendall(self._backlog[0])
                        self._backlog.popleft()
                    self._told.set()
            except OSError:
                sock.close()
                time.sleep(0.1)
            else:
                return sock
        return None

    def finish(self) -> None:
        """Before the worker ends: wait until somebody was told everything, or nobody is left to tell."""
        self._told.wait(RECONNECT_S)

    def emit(self, event: str, **fields: Any) -> None:
        """Send one event. Raises nothing when the supervisor is gone: `orphaned` follows as a command."""
        line = _line({"event": event, **fields})
        with self._lock:
            if self._sock is None:
                sys.stdout.buffer.write(line)
                sys.stdout.flush()
                return
            try:
                self._sock.sendall(line)
            except OSError:
                if self._next and event != "progress":
                    self._backlog.append(line)
                    self._told.clear()

    def poll(self, timeout_s: float = 0.0) -> Message | None:
        """The next command, waiting up to `timeout_s` seconds; None if there is none."""
        try:
            return self.commands.get(timeout=timeout_s) if timeout_s > 0 else self.commands.get_nowait()
        except queue.Empty:
            return None


def _line(event: Message) -> bytes:
    """One line of less than MAX_EVENT bytes: whoever reads more at a time would be at a worker's mercy."""
    most = 1 << 16
    while True:
        line = json.dumps(_shortened(event, most), ensure_ascii=False).encode() + b"\n"
        if len(line) < MAX_EVENT or most < 8:
            return line
        most //= 4


def _shortened(value: Any, most: int) -> Any:
    """`value` with at most `most` sentences in a list and characters in a sentence. Numbers are all kept."""
    if isinstance(value, dict):
        return {key: _shortened(v, most) for key, v in value.items()}
    if isinstance(value, str):
        return value if len(value) <= max(most, 500) else value[: max(most, 500)] + " …"
    if isinstance(value, list | tuple):
        if len(value) > most and all(isinstance(v, str) for v in value):
            return [*(_shortened(v, most) for v in value[:most]), f"… and {len(value) - most} more"]
        return [_shortened(v, most) for v in value]
    return value


def run_worker(main: Callable[[Message, WorkerChannel], Message]) -> int:
    """Run `main(job, channel)` with the job file named in argv[1], report its result or error, give the exit status.

    Emits `done` with `result`, or `error` with `code`, `message` and `hint`. Exit status 0, the error's own, or 1.
    """
    channel = WorkerChannel()
    try:
        if len(sys.argv) != 2:
            raise WorkerError(f"usage: python -m {main.__module__} JOB.json", "give the path of one job file")
        job = json.loads(Path(sys.argv[1]).read_text())
        result = main(job, channel)
    except Zk0Error as error:
        channel.emit("error", code=error.code, message=error.message, hint=error.hint)
        channel.finish()
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        channel.emit(
            "error", code="crash", message=f"{type(error).__name__}: {error}"[:2000], hint="see the worker's log"
        )
        channel.finish()
        return 1
    channel.emit("done", result=result)
    channel.finish()
    return 0
