"""Workers as systemd units: started, frozen (cgroup freezer), thawed, killed over D-Bus by the unprivileged daemon.

The other end is /usr/libexec/zk0/worker, which the templates zk0d-train@, zk0d-record@ and zk0d-rollout@ run. Not for
supervising as such (zk0d/supervise.py), nor for a daemon outside the packages, whose workers are its children.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import signal
import socket
import struct
from pathlib import Path
from typing import Any

import structlog

from zk0d.daemon.bus import Bus, BusError
from zk0d.durable import write_json
from zk0d.errors import WorkerError
from zk0d.halt import stop_threads
from zk0d.supervise import OnEvent, Worker

log = structlog.get_logger("units")

VARIABLE = "ZK0_WORKERS"
"""Set to "units" by zk0d.service: workers are units. Otherwise they are children."""
TEMPLATES = {
    "trainer": "zk0d-train",
    "publisher": "zk0d-train",
    "gpu_memory": "zk0d-train",
    "recorder": "zk0d-record",
    "tending": "zk0d-record",
    "curation": "zk0d-record",
    "rollout": "zk0d-rollout",
}
SURVIVORS = ("recorder",)
"""Kinds that go on while the daemon is away, and connect to the next one."""
NO_BUS_HINT = "systemd to answer: `systemctl status dbus polkit`"
CONNECT_S = 30.0
ADOPT_S = 10.0
_FREEZE_S = 0.5
_THAW_TRIES = 20
_ENDED_S = 5.0
_INSTANCE = re.compile(r"zk0d-(?:train|record|rollout)@([a-z_]{1,20})-([A-Za-z0-9_.]{1,100})\.service")


def _manager(member: str) -> tuple[str, str, str, str]:
    return ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", member)


def unit_name(kind: str, name: str) -> str:
    """The unit of a worker; %I in it is its folder, KIND/NAME: a dash stands for the slash, so a name has none.

    Also asked where workers are children, so that no name works there alone. Raises WorkerError.
    """
    unit = f"{TEMPLATES[kind]}@{kind}-{name}.service"
    if not _INSTANCE.fullmatch(unit):
        raise WorkerError(f"{name!r} cannot be a worker's name", "letters, digits, dots, underlines")
    return unit


class Systemd:
    """The service manager, asked over one connection that is made anew when it was lost."""

    def __init__(self, path: str | None = None) -> None:
        self._path, self._lock = path, asyncio.Lock()
        self._bus: Bus | None = None

    async def bus(self) -> Bus:
        async with self._lock:
            if self._bus is None or self._bus.lost:
                self._bus = await Bus.connect(self._path)
            return self._bus

    async def call(self, member: str, signature: str, *args: Any, timeout_s: float = 10.0) -> list[Any]:
        """Raises BusError."""
        return await (await self.bus()).call(_manager(member), signature, *args, timeout_s=timeout_s)

    async def running(self) -> dict[str, tuple[str, str]]:
        """Units of ours that are not at their end → kind and name of each."""
        states = ["active", "activating", "deactivating", "reloading"]
        (rows,) = await self.call("ListUnitsByPatterns", "asas", states, [f"{t}@*.service" for t in TEMPLATES.values()])
        found = {row[0]: _INSTANCE.fullmatch(row[0]) for row in rows}
        return {unit: (m[1], m[2]) for unit, m in found.items() if m}

    async def kill(self, unit: str) -> None:
        """SIGKILL everything in a unit, frozen or not."""
        for member, signature, args in (("KillUnit", "ssi", (unit, "all", 9)), ("ThawUnit", "s", (unit,))):
            with contextlib.suppress(BusError):
                await self.call(member, signature, *args)

    async def thaw(self, unit: str) -> None:
        with contextlib.suppress(BusError):
            await self.call("ThawUnit", "s", unit)
        with contextlib.suppress(BusError):  # a freeze is a SIGSTOP too
            await self.call("KillUnit", "ssi", unit, "all", int(signal.SIGCONT))


class Unit:
    """A worker in its own unit (supervise.Process). `freeze` and `thaw` say what is wanted; one call is under way."""

    def __init__(self, systemd: Systemd, unit: str, pid: int, folder: Path) -> None:
        self.name, self._pid, self._systemd, self._folder = unit, pid, systemd, folder
        self._pidfd = os.pidfd_open(pid)
        self._code: int | None = None
        self._want = self._is = self._stopped = False
        self._changing: asyncio.Task[None] | None = None
        self._killing: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def returncode(self) -> int | None:
        return self._code

    async def wait(self) -> None:
        """The end of the main process, then of the unit, which says how it went (systemd has killed what was left)."""
        gone = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pidfd, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(self._pidfd)
        self._code = await _ended(self._folder)
        os.close(self._pidfd)

    def _gone(self) -> bool:
        return self._code is not None or bool(select.select([self._pidfd], [], [], 0)[0])

    def freeze(self) -> bool:
        if self._gone():
            return False
        self._want = self._stopped = True
        self._send(signal.SIGSTOP)
        stop_threads(self._pid)  # its own threads stop at once; the freezer, for its children too, takes 20 ms
        self._change()
        return True

    def thaw(self) -> None:
        self._want = False
        self._change()

    def kill(self) -> None:
        self._want = False
        self._killing = asyncio.ensure_future(self._systemd.kill(self.name))

    def _change(self) -> None:
        if self._changing is None or self._changing.done():
            self._changing = asyncio.ensure_future(self._changed())

    async def _changed(self) -> None:
        """Bring the unit to what is wanted. Where systemd refuses or does not answer, the signal alone holds."""
        tries = 0
        while not self._gone() and (self._want != self._is or (self._stopped and not self._want)):
            wanted, failed = self._want, False
            if wanted != self._is:
                call = "FreezeUnit" if wanted else "ThawUnit"
                try:
                    await self._systemd.call(call, "s", self.name, timeout_s=_FREEZE_S)
                except BusError as error:
                    failed = True
                    log.warning("systemd does not freeze or thaw", unit=self.name, freeze=wanted, error=error.message)
            if not wanted and not self._want:
                self._send(signal.SIGCONT)
                self._stopped = False
            if failed and not wanted and tries < _THAW_TRIES:  # perhaps frozen still, which no signal mends
                tries += 1
                await asyncio.sleep(_FREEZE_S)
                continue
            self._is = wanted

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self._pidfd, number)


async def _ended(folder: Path) -> int:
    """What ExecStopPost= wrote into `folder`/ended → exit status, or the signal's number, negative."""
    end = asyncio.get_running_loop().time() + _ENDED_S
    while asyncio.get_running_loop().time() < end:
        with contextlib.suppress(OSError):
            words = (folder / "ended").read_text().split()
            if len(words) >= 3:
                if words[1] == "exited":
                    return int(words[2])
                return -int(signal.Signals[f"SIG{words[2]}"] if not words[2].isdigit() else int(words[2]))
        await asyncio.sleep(0.005)
    return -int(signal.SIGKILL)


async def _accept(listener: socket.socket, folder: Path, seconds: float) -> tuple[socket.socket, int]:
    """The worker's connection and its pid. Raises WorkerError when it ends before it connects, or in time."""
    loop = asyncio.get_running_loop()
    accepting = asyncio.ensure_future(loop.sock_accept(listener))
    end = loop.time() + seconds
    try:
        while loop.time() < end:
            done, _ = await asyncio.wait({accepting}, timeout=0.1)
            if done:
                ours = accepting.result()[0]
                pid, uid, _ = struct.unpack("3i", ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                if uid == os.geteuid():
                    return ours, pid
                ours.close()
                accepting = asyncio.ensure_future(loop.sock_accept(listener))
            elif (folder / "ended").exists():
                raise WorkerError(
                    f"its unit ended with status {await _ended(folder)} before it began", "see the journal"
                )
        raise WorkerError(f"its unit did not begin within {seconds:.0f} s", "see the journal: journalctl -u 'zk0d-*'")
    finally:
        accepting.cancel()


def _listen(folder: Path) -> socket.socket:
    path = folder / "channel.sock"
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(4)
    listener.setblocking(False)
    return listener


async def start(
    systemd: Systemd, kind: str, name: str, module: str, job: dict[str, Any], folder: Path, log_path: Path,
    on_event: OnEvent, how: dict[str, Any],
) -> Worker:  # fmt: skip
    """Start a worker's unit. `how` (interpreter, niceness) is for the shim. Raises WorkerError."""
    unit = unit_name(kind, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log_path.parent.mkdir(parents=True, exist_ok=True)
        (folder / "ended").unlink(missing_ok=True)
        write_json(folder / "job.json", job, mode=0o600)
        write_json(folder / "start.json", how, mode=0o600)
        listener = _listen(folder)
    except OSError as error:
        raise WorkerError(f"{module} cannot be prepared in {folder}: {error}", "is the disk full?") from error
    with listener:
        try:
            await systemd.call("StartUnit", "ss", unit, "replace")
            ours, pid = await _accept(listener, folder, CONNECT_S)
        except WorkerError as error:
            await systemd.kill(unit)
            raise WorkerError(f"{unit} cannot be started: {error.message}", error.hint) from error
        except asyncio.CancelledError:  # nobody would ever end it
            await systemd.kill(unit)
            raise
    return await _attach(systemd, unit, module, pid, ours, folder, log_path, on_event)


async def adopt(
    systemd: Systemd, kind: str, name: str, module: str, folder: Path, log_path: Path, on_event: OnEvent
) -> Worker:
    """Take over a worker that a daemon before us started and that looks for the next. Raises WorkerError."""
    unit = unit_name(kind, name)
    with _listen(folder) as listener:
        try:
            ours, pid = await _accept(listener, folder, ADOPT_S)
        except WorkerError as error:
            await systemd.kill(unit)
            raise WorkerError(f"{unit} did not come back: {error.message}", error.hint) from error
    return await _attach(systemd, unit, module, pid, ours, folder, log_path, on_event)


async def _attach(
    systemd: Systemd, unit: str, module: str, pid: int, ours: socket.socket, folder: Path, log_path: Path,
    on_event: OnEvent,
) -> Worker:  # fmt: skip
    ours.setblocking(False)
    try:
        process = Unit(systemd, unit, pid, folder)
    except OSError as error:  # it ended in this moment
        ours.close()
        raise WorkerError(f"{unit} ended at once: {error}", f"its output is in {log_path}") from error
    return await Worker.attach(module, process, ours, log_path, on_event)
