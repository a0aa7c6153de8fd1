"""The trainer's job again, undisturbed and then frozen and yielded all the time: the same steps, to the bit."""

from __future__ import annotations

import asyncio
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zk0d.supervise import Worker


@dataclass
class _At:
    """Where a run of the trainer is."""

    step: int = -1
    saved: int = 0
    events: list[str] = field(default_factory=list)

    def take(self, event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            self.step = int(event["step"])
        elif event["event"] == "checkpoint":
            self.saved = int(event["step"])


async def _start(folder: Path, job: dict[str, Any], at: _At) -> Worker:
    mine = job | {"checkpoint_dir": str(folder / "checkpoint"), "out": str(folder / "out.safetensors")}
    return await Worker.start(sys.executable, "zk0d.train.trainer", mine, folder, folder / "trainer.log", at.take)


async def undisturbed(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    return await (await _start(folder, job, _At())).wait()


async def disturbed(folder: Path, job: dict[str, Any], freezes: int, yields: int) -> tuple[dict[str, Any], int, int]:
    """→ result, preemptions made, steps lost (done, but not in the checkpoint that a yield left)."""
    lost = made = began = 0
    each = int(job["local_steps"]) // (yields + 1)
    gap_s = 0.002
    while True:
        at = _At()
        worker = await _start(folder, job, at)
        ended = asyncio.ensure_future(worker.wait())
        left = yields > 0
        share = -(-freezes // (yields + 1)) if yields else freezes
        while not ended.done():
            await asyncio.sleep(gap_s)
            if at.step < 0:
                continue
            if share and random.random() < 0.8:
                share, freezes, made = share - 1, freezes - 1, made + 1
                worker.freeze()
                await asyncio.sleep(0.01)
                worker.thaw()
            elif left and not share and at.step >= began + each:
                worker.send("yield")
                break
        result = await ended
        if result["finished"]:
            return result, made, lost
        yields, made = yields - 1, made + 1
        lost += max(0, at.step - int(result["steps"]))
        began = int(result["steps"])


async def both(
    folder: Path, job: dict[str, Any], freezes: int, yields: int, *, together: bool
) -> tuple[dict[str, Any], dict[str, Any], int, int]:
    """The two runs, at the same time if `together` (each then has its own processor)."""
    one, two = undisturbed(folder / "undisturbed", job), disturbed(folder / "disturbed", job, freezes, yields)
    if together:
        calm, (result, made, lost) = await asyncio.gather(one, two)
    else:
        calm = await one
        result, made, lost = await two
    return calm, result, made, lost
