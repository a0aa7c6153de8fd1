"""The trainer's job again, undisturbed and then preempted all the time: the same steps, to the bit.

Preempted as the daemon does it: stopped in place and woken up, or stopped, woken up to checkpoint and leave, and started
again. Both runs at once: it is no matter of time.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zk0d.supervise import Worker

STOPPED_S = 0.01
GRACE_S = 60.0


@dataclass
class Run:
    """One run of the job, over all its processes: `losses` as they were told, by step."""

    step: int = -1
    losses: dict[int, float] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    freezes: int = 0
    yields: int = 0
    lost: int = 0
    """Steps that were done and are not in the checkpoint that the trainer left."""

    def take(self, event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            self.step = int(event["step"])
            self.losses[self.step] = event["loss"]

    def same_curve(self, other: Run) -> bool:
        """Whether every loss that both told is the same, and some were."""
        both = self.losses.keys() & other.losses.keys()
        return bool(both) and all(self.losses[step] == other.losses[step] for step in both)


async def _start(folder: Path, job: dict[str, Any], run: Run) -> Worker:
    if not (folder / "cache").exists():  # one for each run: two that begin at once would tidy up each other's
        shutil.copytree(job["cache"], folder / "cache")
    own = {"checkpoint_dir": folder / "checkpoint", "out": folder / "out.safetensors", "cache": folder / "cache"}
    mine = job | {key: str(path) for key, path in own.items()}
    return await Worker.start(sys.executable, "zk0d.train.trainer", mine, folder, folder / "trainer.log", run.take)


async def undisturbed(folder: Path, job: dict[str, Any]) -> Run:
    run = Run()
    run.result = await (await _start(folder, job, run)).wait()
    return run


async def _stop_in_place(worker: Worker) -> None:
    worker.freeze()
    await asyncio.sleep(STOPPED_S)


async def disturbed(folder: Path, job: dict[str, Any], freezes: int, yields: int) -> Run:
    """Each process of the trainer is stopped in place its share of `freezes` and leaves, the last one ends the job."""
    run, began = Run(), 0
    while True:
        run.step = -1
        worker = await _start(folder, job, run)
        ended = asyncio.ensure_future(worker.wait())
        share = -(-(freezes - run.freezes) // (yields - run.yields + 1))
        while not ended.done():
            await asyncio.sleep(random.uniform(0.0, 0.01))
            if run.step < 0:
                continue
            if share:
                share, run.freezes = share - 1, run.freezes + 1
                await _stop_in_place(worker)
                worker.thaw()
            elif run.yields < yields and run.step > began:
                run.yields += 1
                await _stop_in_place(worker)
                await worker.stop(GRACE_S, cmd="yield")
        run.result = await ended
        if run.result["finished"]:
            return run
        began = int(run.result["steps"])
        run.lost += max(0, run.step - began)


async def both(folder: Path, job: dict[str, Any], freezes: int, yields: int) -> tuple[Run, Run]:
    """The two runs at the same time, each on one thread of its own."""
    calm, disturbed_ = await asyncio.gather(
        undisturbed(folder / "undisturbed", job), disturbed(folder / "disturbed", job, freezes, yields)
    )
    return calm, disturbed_
