"""The daemon's worker processes: one table of kinds, started through zk0d.supervise, none left behind.

Under systemd each is a unit (units.py), else a child, remembered in `work/running/`, so that a daemon restarted after
`kill -9` waits for (or ends) the orphans before it starts another worker on the same files. Not for deciding what runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from zk0d.daemon import units
from zk0d.daemon.bus import BusError
from zk0d.daemon.config import Config
from zk0d.errors import WorkerError
from zk0d.runtime import base, managed_python
from zk0d.supervise import OnEvent, Worker

log = structlog.get_logger("workers")

GRACE_S = 4.5
"""Seconds a worker gets to end."""
SAVE_GRACE_S = 25.0
"""The same for a trainer whose checkpoint nobody waits for: gigabytes on a slow disk are not to be thrown away."""
ARM_GRACE_S = 20.0
"""The same for what may hold an arm: it opens devices, brings the arm to rest and saves a take before it lets go, and
one that is killed leaves the servos under torque."""
_OOM = "900"
"""Where memory ends, a trainer is what the kernel ends first: it loses the steps since its last checkpoint."""
CLOSE_GRACE_S = 3.5
"""The same when the daemon ends, which itself has five seconds for everything where no arm is held."""
CLOSE_ARM_GRACE_S = 15.0


@dataclass(frozen=True)
class Kind:
    """A kind of worker. `background`: works for the federation, so it steps back from everything a person does.

    `arm`: may hold an arm.
    """

    name: str
    module: str
    background: bool
    arm: bool = False

    @property
    def grace_s(self) -> float:
        return ARM_GRACE_S if self.arm else GRACE_S

    @property
    def close_grace_s(self) -> float:
        return CLOSE_ARM_GRACE_S if self.arm else CLOSE_GRACE_S


KINDS = {
    k.name: k
    for k in (
        Kind("trainer", "zk0d.train.trainer", background=True),
        Kind("gpu_memory", "zk0d.train.gpu_memory", background=False),
        Kind("publisher", "zk0d.train.evaluator", background=False),
        Kind("recorder", "robot.recorder", background=False, arm=True),
        Kind("rollout", "robot.rollout", background=False, arm=True),
        Kind("curation", "robot.curation", background=False),
        Kind("tending", "robot.tending", background=False, arm=True),
    )
}


class Workers:
    """Starts workers and ends them all."""

    def __init__(self, state: Path, config: Config) -> None:
        self.work = state / "work"
        self.logs = state / "log"
        self._config = config
        self._marks = self.work / "running"
        self._running: dict[Worker, str] = {}
        self._reaching = asyncio.Lock()
        self.systemd = units.Systemd() if os.environ.get(units.VARIABLE) == "units" else None
        """The service manager that runs our workers as units; None: they are children."""
        self.trouble = ""
        """Why no worker can be started: systemd does not answer. Empty while it does, and for children."""

    @property
    def python(self) -> str:
        """The interpreter that runs workers."""
        return str(self._config["runtime", "python"]) or managed_python() or sys.executable

    def pids(self) -> list[int]:
        """Main processes of the workers that run now, from any thread: under systemd they are not our children."""
        return [worker.pid for worker in list(self._running)]

    @property
    def hint(self) -> str:
        """What mends `trouble` or a missing runtime; follows "waits for"."""
        if self.trouble:
            return units.NO_BUS_HINT
        named = str(self._config["runtime", "python"])
        return "[runtime] python to name a Python with torch and lerobot" if named else "`sudo zk0ctl runtime install`"

    def runtime_missing(self) -> str:
        """Why workers cannot run; empty when their interpreter has torch and lerobot (looked up, not imported)."""
        python = self.python
        if self.systemd is not None and not self._config["runtime", "python"] and not managed_python():
            return f"there is no runtime in {base()}"
        found = python if "/" in python else shutil.which(python)
        if not found or not os.access(found, os.X_OK):
            return f"the runtime {python} is not there"
        folder = Path(found).parent.parent / "lib"
        if not (folder / "python3").exists() and not list(folder.glob("python3*/site-packages")):
            return ""  # not an environment we can look into: let the worker say
        packages = {p.name for s in folder.glob("python3*/site-packages") for p in s.iterdir()}
        missing = [name for name in ("torch", "lerobot") if name not in packages]
        return f"the runtime {python} has no {' and no '.join(missing)}" if missing else ""

    async def start(self, kind: str, name: str, job: dict[str, Any], on_event: OnEvent) -> Worker:
        """Start a worker of `kind` in `work/KIND/NAME`, output to `log/KIND.log`. Raises WorkerError."""
        k = KINDS[kind]
        units.unit_name(kind, name)  # under systemd or not
        if missing := self.runtime_missing():
            raise WorkerError(f"{missing}: no {kind} can run", self.hint)
        nice = self._config["train", "niceness"] if k.background else 0
        folder, output = self.work / kind / name, self.logs / f"{kind}.log"
        if self.systemd is not None:
            if not await self.reach():
                raise WorkerError(self.trouble, units.NO_BUS_HINT)
            how = {"python": str(self._config["runtime", "python"]), "nice": nice}
            worker = await units.start(self.systemd, kind, name, k.module, job, folder, output, on_event, how)
            self._keep(worker, kind, name, None)
            return worker
        worker = await Worker.start(self.python, k.module, job, folder, output, on_event)
        if k.background:
            _step_back(worker.pid, nice, idle=self._config["train", "cpu"] == "idle")
        mark = self._marks / str(worker.pid)
        try:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.write_text(f"{_started(worker.pid)} {kind}\n")
        except OSError as error:  # the disk is full: none runs that nobody would know of after a crash
            await worker.kill()
            raise WorkerError(f"{mark}: {error.strerror}", "make room on the disk") from error
        self._keep(worker, kind, name, mark)
        return worker

    def _keep(self, worker: Worker, kind: str, name: str, mark: Path | None) -> None:
        self._running[worker] = kind
        asyncio.get_running_loop().create_task(self._forget(worker, mark))
        log.info("worker started", kind=kind, pid=worker.pid, name=name)

    @staticmethod
    def hurry(pid: int) -> None:
        """A trainer that is to save and leave gets its share again, if permitted: a busy machine has no idle time."""
        for task in Path(f"/proc/{pid}/task").glob("*"):
            with contextlib.suppress(OSError):
                os.sched_setscheduler(int(task.name), os.SCHED_OTHER, os.sched_param(0))

    async def survivors(self) -> dict[str, str]:
        """Workers of a daemon before us that go on and can be taken over (`adopt`): name → kind."""
        if self.systemd is None:
            return {}
        try:
            found = await self.systemd.running()
        except BusError as error:
            self._lost(error)
            return {}
        return {name: kind for kind, name in found.values() if kind in units.SURVIVORS}

    def _lost(self, error: BusError) -> None:
        if not self.trouble:
            log.warning("systemd does not answer", error=error.message)
        self.trouble = f"systemd cannot be asked to run workers: {error.message}"

    async def reach(self) -> bool:
        """Whether workers can be started; after `trouble` what an earlier daemon left is ended first."""
        if self.systemd is None:
            return True
        async with self._reaching:
            try:
                await self.systemd.bus()
                if self.trouble and not self._running:
                    await self._reap_units(self.systemd, "")
            except BusError as error:
                self._lost(error)
                return False
            if self.trouble:
                log.info("systemd answers again")
                self.trouble = ""
        return True

    async def adopt(self, kind: str, name: str, on_event: OnEvent) -> Worker:
        """Take over a survivor. Raises WorkerError; it is ended then."""
        assert self.systemd is not None
        folder, output = self.work / kind / name, self.logs / f"{kind}.log"
        worker = await units.adopt(self.systemd, kind, name, KINDS[kind].module, folder, output, on_event)
        self._keep(worker, kind, name, None)
        return worker

    async def _forget(self, worker: Worker, mark: Path | None) -> None:
        await worker.ended()
        self._running.pop(worker, None)
        if mark is not None:
            mark.unlink(missing_ok=True)
        log.info("worker ended", module=worker.module, pid=worker.pid, status=worker.returncode)

    async def reap_orphans(self, keep: str = "") -> list[str]:
        """End the workers that a killed daemon left, after a time to finish what matters, but the survivor `keep`.

        Gives their kinds.
        """
        if self.systemd is not None:
            if self.trouble:
                return []
            try:
                return await self._reap_units(self.systemd, keep)
            except BusError as error:
                self._lost(error)
                return []
        found: list[tuple[int, str, Path]] = []
        for mark in self._marks.glob("*") if self._marks.is_dir() else ():
            started, _, kind = mark.read_text().strip().partition(" ")
            pid = int(mark.name)
            if started and started == _started(pid):
                found.append((pid, kind, mark))
            else:
                mark.unlink()
        began = time.monotonic()
        for pid, kind, mark in found:
            deadline = began + (KINDS[kind].grace_s if kind in KINDS else GRACE_S)
            started = mark.read_text().split()[0]
            while _started(pid) == started and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            with contextlib.suppress(ProcessLookupError):
                if _started(pid) == started:
                    log.warning("orphaned worker is killed", kind=kind, pid=pid)
                    os.killpg(pid, signal.SIGKILL)
            mark.unlink(missing_ok=True)
        return [kind for _, kind, _ in found]

    async def _reap_units(self, systemd: units.Systemd, keep: str) -> list[str]:
        found = {unit: kind for unit, (kind, name) in (await systemd.running()).items() if name != keep}
        for unit in found:
            await systemd.thaw(unit)
        began = time.monotonic()
        for unit, kind in found.items():
            deadline = began + (KINDS[kind].grace_s if kind in KINDS else GRACE_S)
            while unit in (left := await systemd.running()) and time.monotonic() < deadline:
                await asyncio.sleep(0.1)
            if unit in left:
                log.warning("orphaned worker is killed", kind=kind, unit=unit)
                await systemd.kill(unit)
        return list(found.values())

    async def stop_all(self) -> None:
        """Ask every worker to end and see that it does, within its grace; a trainer is asked for a checkpoint.

        A recorder in its own unit goes on: an upgrade of the daemon does not touch a recording.
        """
        for worker in [w for w, kind in self._running.items() if self.systemd is not None and kind in units.SURVIVORS]:
            del self._running[worker]
            worker.leave()
        running = self._running.items()
        stops = [w.stop(KINDS[k].close_grace_s, "yield" if k == "trainer" else "stop") for w, k in running]
        await asyncio.gather(*stops, return_exceptions=True)


def _step_back(pid: int, nice: int, *, idle: bool) -> None:
    """Behind everything else, as far as that needs no rights: what zk0d-train@.service and its slice do, without them.

    SCHED_IDLE is the one policy from which whatever else wakes up takes the processor at once: a program that a person
    starts needs a third of the time that it needs beside a merely nice trainer. The kernel gives it the idle I/O class
    too (block/ioprio.c). Its threads inherit all of this.
    """
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(_OOM)
        os.setpriority(os.PRIO_PGRP, pid, nice)
        os.sched_setscheduler(pid, os.SCHED_IDLE if idle else os.SCHED_BATCH, os.sched_param(0))


def _started(pid: int) -> str:
    """Start time of a process in clock ticks since boot (proc(5), field 22); empty when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
