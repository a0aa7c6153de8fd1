"""A trainer that is parked: stopped, with its GPU memory on the host, so that somebody else can have the GPU.

The moving is a worker's (zk0d.train.gpu_memory), since the daemon knows no CUDA. Where it cannot be done, that is said
once, and the trainer leaves instead. Not for deciding when: that is the arbiter's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from zk0d.daemon.store import Store
from zk0d.daemon.workers import Workers
from zk0d.errors import WorkerError
from zk0d.supervise import Worker

log = structlog.get_logger("parking")

PARK_S = 15.0
"""Seconds for moving the memory out; after them the trainer leaves the old way."""
RETURN_S = 60.0


class Parking:
    """Parks one trainer at a time. `possible` turns False, with `reason`, when the machine cannot do it."""

    def __init__(self, workers: Workers, store: Store, wanted: str) -> None:
        """`wanted`: the setting, "auto" or "leave"."""
        self._workers, self._store = workers, store
        self.possible = wanted == "auto"
        self.reason = "" if self.possible else 'set to "leave"'
        self.parked: Worker | None = None
        self.moving: asyncio.Task[None] | None = None

    def holds(self, worker: Worker | None) -> bool:
        """Whether `worker` is parked."""
        return worker is not None and self.parked is worker

    def busy(self) -> bool:
        """Whether memory is on its way: the trainer must then not be touched."""
        return self.moving is not None and not self.moving.done()

    def park(self, worker: Worker, then: Callable[[], None]) -> None:
        """Begin to park; `then` is called when that has succeeded or not."""
        self.moving = asyncio.create_task(self._park(worker, then))

    def fetch(self, worker: Worker, then: Callable[[], None]) -> None:
        """Begin to bring it back. A trainer that does not come back is killed; it resumes from its checkpoint."""
        self.moving = asyncio.create_task(self._fetch(worker, then))

    async def _park(self, worker: Worker, then: Callable[[], None]) -> None:
        try:
            worker.thaw()  # the driver talks to a thread of it
            await self._move("leave", worker.pid, PARK_S)
            self.parked = worker
            log.info("GPU memory is on the host", pid=worker.pid)
        except WorkerError as error:
            self.possible, self.reason = False, error.message
            log.warning("GPU memory stays where it is", pid=worker.pid, error=error.message)
            self._store.event("training", f"{error.message}; the trainer leaves when its memory is needed")
        finally:
            worker.freeze()
            self.moving = None
            then()

    async def _fetch(self, worker: Worker, then: Callable[[], None]) -> None:
        try:
            worker.thaw()
            await self._move("return", worker.pid, RETURN_S)
        except WorkerError as error:
            self._store.event("training", f"{error.message}; the trainer starts again from its checkpoint")
            await worker.kill()
        finally:
            self.parked = self.moving = None
            then()

    async def _move(self, action: str, pid: int, seconds: float) -> None:
        """Raises WorkerError."""
        mover = await self._workers.start(
            "gpu_memory", f"{action}_{int(time.time() * 1000):x}", {"action": action, "pid": pid}, lambda event: None
        )
        try:
            await asyncio.wait_for(mover.wait(), seconds)
        except TimeoutError:
            await mover.kill()
            raise WorkerError(f"GPU memory cannot be moved: no end within {seconds:.0f} s") from None
