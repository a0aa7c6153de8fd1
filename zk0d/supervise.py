"""The supervisor's end of a worker process, for asyncio programs (zk0d, zk0-hub): start, talk, freeze, stop, kill.

The worker's end is zk0d/worker.py. A worker is a child in its own process group, or (zk0d/daemon/units.py) a systemd
unit. Not for deciding when a worker runs: that is the arbiter's and the rounds' business.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import structlog

import zk0d
from zk0d.durable import write_json
from zk0d.errors import WorkerError
from zk0d.halt import stop_threads
from zk0d.worker import FD_VARIABLE, MAX_EVENT, Message

log = structlog.get_logger("supervise")

OnEvent = Callable[[Message], None]
_DRAIN_S = 2.0
"""How long to read on for last events after the worker's exit."""


class Process(Protocol):
    """What runs a worker, and everything that it starts, as one: all of it is frozen, thawed and killed together."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None:
        """Exit status, negative signal number, or None while it runs."""

    async def wait(self) -> None:
        """Wait for the end of the worker's main process, and see to what it left."""

    def freeze(self) -> bool:
        """Take it off the processors, as soon as can be; false when it is gone. Does not block."""

    def thaw(self) -> None: ...
    def kill(self) -> None: ...


class Child:
    """A worker as our own child, leader of its own session and process group."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def wait(self) -> None:
        await self._process.wait()
        self._signal(signal.SIGKILL)  # whatever it left in its group, which also holds our socket open

    def freeze(self) -> bool:
        there = self._signal(signal.SIGSTOP)
        stop_threads(self._process.pid)
        return there

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> bool:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False
        return True


class Worker:
    """One worker. Made by `Worker.start` or `Worker.attach`; ends with `wait`, `stop` or `kill`.

    `result` is what the worker reported with `done`; `failure` what it reported with `error` (code, message, hint).
    """

    def __init__(self, module: str, process: Process, log_path: Path, on_event: OnEvent | None):
        self.module = module
        self.log_path = log_path
        self.frozen = False
        self.last: Message = {}
        """The latest event."""
        self.result: Message | None = None
        self.failure: Message | None = None
        self._process = process
        self._on_event = on_event
        self._writer: asyncio.StreamWriter | None = None
        self._broken = ""
        self._ended: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        python: str,
        module: str,
        job: Message,
        work_dir: Path,
        log_path: Path,
        on_event: OnEvent | None = None,
        env: dict[str, str] | None = None,
    ) -> Worker:
        """Write `work_dir`/job.json and run `python -m module job.json`, output appended to `log_path`.

        `on_event` is called in the event loop with every event, `done` and `error` included. `env` adds to the
        environment. Raises WorkerError when the process cannot be started at all.
        """
        job_path = work_dir / "job.json"
        try:
            work_dir.mkdir(parents=True, exist_ok=True)
            log_path.parent.mkdir(parents=True, exist_ok=True)
            write_json(job_path, job, mode=0o600)
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise WorkerError(f"{module} cannot be prepared in {work_dir}: {error}", "is the disk full?") from error
        ours.setblocking(False)
        try:
            with log_path.open("ab") as output:
                process = await asyncio.create_subprocess_exec(
                    python, "-P", "-m", module, str(job_path.resolve()),
                    stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, cwd=work_dir,
                    env=_environment(theirs.fileno(), env), pass_fds=(theirs.fileno(),), start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            ours.close()
            raise WorkerError(
                f"{module} cannot be started with {python}: {error.strerror or error}",
                "set [runtime] python to an interpreter that has the training packages",
            ) from error
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        child = Child(process)
        try:
            return await cls.attach(module, child, ours, log_path, on_event)
        except BaseException:  # whoever wanted it went away: nobody would ever end it
            child.kill()
            await child.wait()
            raise

    @classmethod
    async def attach(
        cls, module: str, process: Process, ours: socket.socket, log_path: Path, on_event: OnEvent | None = None
    ) -> Worker:
        """Supervise a process that runs already; `ours` is our end of its channel, non-blocking."""
        worker = cls(module, process, log_path, on_event)
        reader, worker._writer = await asyncio.open_connection(sock=ours, limit=MAX_EVENT)
        worker._ended = asyncio.create_task(worker._run(reader), name=f"worker {module}")
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    @property
    def returncode(self) -> int | None:
        """Exit status, negative signal number, or None while it runs."""
        return self._process.returncode

    async def _run(self, reader: asyncio.StreamReader) -> None:
        reading = asyncio.create_task(self._read(reader))
        try:
            await self._process.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reading, _DRAIN_S)
        finally:
            reading.cancel()
            if self._writer is not None:
                self._writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._take(json.loads(line))
        except OSError:
            pass  # its end of the channel is gone; the exit status says why
        except (ValueError, KeyError, TypeError) as error:
            self._broken = f"sent something that is not an event: {error}"
            self._process.kill()

    def _take(self, event: Message) -> None:
        kind = event["event"]
        self.last = event
        if kind == "done":
            self.result = dict(event["result"])
        elif kind == "error":
            self.failure = event
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:
                log.exception("an event handler failed", module=self.module, event_kind=kind)

    def send(self, cmd: str, **fields: Any) -> None:
        """Send a command (`stop`, `yield`, `next`, …). Does nothing when the worker has ended."""
        if self._writer is not None and self.running and not self._writer.is_closing():
            self._writer.write(json.dumps({"cmd": cmd, **fields}).encode() + b"\n")

    async def wait(self) -> Message:
        """Wait for the end → the worker's result. Raises WorkerError with its own error, or saying how it died."""
        await self.ended()
        if self.result is not None and not self._broken:
            return self.result
        raise self.error()

    async def ended(self) -> None:
        """Wait for the end, however it ends."""
        assert self._ended is not None
        await asyncio.shield(self._ended)

    def error(self) -> WorkerError:
        """Why there is no result, for a worker that has ended."""
        if self.failure is not None:
            # A sentence made for a person stands by itself; a crash is a defect, and says of which program.
            who = f"{self.module}: " if self.failure.get("code") == "crash" else ""
            return WorkerError(who + str(self.failure.get("message", "failed")), str(self.failure.get("hint", "")))
        code = self.returncode
        if self._broken:
            how = self._broken
        elif code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = f"ended with status {code} and no result"
        return WorkerError(f"{self.module} {how}", f"its output is in {self.log_path}")

    def freeze(self) -> None:
        """Take the worker and all its children off the processors at once; nothing is lost."""
        self.frozen = self._process.freeze() or self.frozen

    def thaw(self) -> None:
        """Let a frozen worker go on."""
        self._process.thaw()
        self.frozen = False

    async def stop(self, grace_s: float = 5.0, cmd: str = "stop", **fields: Any) -> None:
        """Ask it to end (`stop` or `yield`), thaw it if it is frozen, kill it after `grace_s` seconds."""
        self.send(cmd, **fields)
        self.thaw()
        try:
            await asyncio.wait_for(self.ended(), grace_s)
        except TimeoutError:
            log.warning("worker did not stop in time and is killed", module=self.module, pid=self.pid, grace_s=grace_s)
            await self.kill()

    async def kill(self) -> None:
        """SIGKILL all of it and wait for its end."""
        self._process.kill()
        await self.ended()

    def leave(self) -> None:
        """Let go of a worker that outlives its supervisor and connects to the next one; it is not told to end."""
        if self._writer is not None:
            self._writer.close()


def _environment(fd: int, extra: dict[str, str] | None) -> dict[str, str]:
    """The worker finds the same zk0d as ours, wherever that is installed, and the descriptor of its channel."""
    home = str(Path(zk0d.__file__).resolve().parent.parent)
    paths = [home, *(p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != home)]
    value = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", **(extra or {})}
    for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
        value.pop(name, None)  # systemd's sockets are the supervisor's alone
    value[FD_VARIABLE] = str(fd)
    return value
