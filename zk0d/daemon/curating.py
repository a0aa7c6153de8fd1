"""Runs curation workers (robot/curation.py) for whoever asks: progress to them, and an end of theirs when they want it.

Not for what is done with the result (dataset_ops.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zk0d.errors import DatasetError, WorkerError
from zk0d.filetree import PART

if TYPE_CHECKING:
    from zk0d.control_server import ControlConnection
    from zk0d.daemon.arm import Arm
    from zk0d.daemon.sweeping import Sweeper
    from zk0d.daemon.workers import Workers
    from zk0d.supervise import Worker

_OVER_S = 10.0
_MADE = ("target", "rest")
"""Keys of a job that name the new datasets it makes."""


class WithdrawnError(DatasetError):
    """Whoever asked wants it no more, and nothing of it is left."""


@dataclass(eq=False)
class _Task:
    """What a program has asked for. `begun`: a worker does it, or is being started; else the folder still comes."""

    connection: ControlConnection
    begun: bool = False
    worker: Worker | None = None
    cancelled: bool = False
    undone: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Curating:
    """The curation workers that run. One for the daemon."""

    def __init__(self, workers: Workers, arm: Arm, sweeper: Sweeper) -> None:
        self._workers, self._arm, self._sweeper = workers, arm, sweeper
        self._tasks: list[_Task] = []

    @contextlib.contextmanager
    def coming(self, connection: ControlConnection) -> Iterator[None]:
        """A folder comes, of which a worker is to make something: a `cancel` before that is not lost."""
        task = _Task(connection)
        self._tasks.append(task)
        try:
            yield
        finally:
            self._tasks.remove(task)

    @contextlib.contextmanager
    def _task(self, connection: ControlConnection) -> Iterator[_Task]:
        known = next((task for task in self._tasks if task.connection is connection and not task.begun), None)
        with contextlib.nullcontext() if known else self.coming(connection):
            task = known or self._tasks[-1]
            if task.cancelled:
                raise WithdrawnError("cancelled", "nothing of it is left")
            task.begun = True
            try:
                yield task
            finally:
                task.over.set()

    async def run(self, job: dict[str, Any], connection: ControlConnection) -> dict[str, Any]:
        """A job's result, its progress told to the caller, who may leave. Raises WorkerError; WithdrawnError."""
        events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

        async def relay() -> None:
            while True:
                event = await events.get()
                if event["event"] not in ("done", "error"):
                    await connection.send(event)

        ours = [path for key in _MADE if job.get(key) and not os.path.lexists(path := Path(job[key]))]
        with self._task(connection) as task:
            relaying = asyncio.create_task(relay())
            try:
                name = f"{job['action']}_{time.time_ns():x}"
                worker = task.worker = await self._workers.start("curation", name, job, events.put_nowait)
                if task.cancelled:
                    await worker.kill()
                return await self._arm.independent(worker.wait())
            except WorkerError:
                if not task.cancelled:
                    raise
                task.undone = True
                task.over.set()  # whoever waits need not for its files, which may be many
                await asyncio.to_thread(self._sweep, [path for path in ours if not self._taken(path)])
                raise WithdrawnError("cancelled", "nothing of it is left") from None
            finally:
                relaying.cancel()

    async def cancel(self, connection: ControlConnection) -> bool:
        """End what the calling program has asked for over another connection → whether nothing of it is left.

        False when there was nothing, or it had just been done.
        """
        theirs = [task for task in self._tasks if task.connection.asker == connection.asker]
        begun = [task for task in theirs if task.begun]
        for task in theirs:
            task.cancelled = True
            if task.worker is not None:
                await task.worker.kill()
        for task in begun:
            await asyncio.wait_for(task.over.wait(), _OVER_S)
        return bool(theirs) and all(task.undone for task in begun)

    def _taken(self, path: Path) -> bool:
        """Whether somebody else has made a dataset of this name since: what is in it is theirs."""
        live = self._arm.live
        known = any(dataset.root == path for dataset in self._arm.store.datasets())
        return known or (live is not None and live.dataset == path.name)

    def _sweep(self, ours: list[Path]) -> None:
        """What a killed worker was making; also what has its name already and nobody was told of."""
        for made in ours:
            for half in made.parent.glob(f".{glob.escape(made.name)}.*{PART}*"):
                self._sweeper.remove(half)
            if os.path.lexists(made):
                self._sweeper.remove(made)
