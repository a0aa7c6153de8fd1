"""The trainer's job file and folder for a task. Not for when it runs (training.py) nor what it does (zk0d.train)."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from zk0d.daemon.config import Config
from zk0d.daemon.store import Task


def folder(task: Task) -> str:
    """A folder name for a task; its id comes from the hub, so it is not trusted as a name."""
    return hashlib.sha256(task.id.encode()).hexdigest()[:16]


def job(asked: dict[str, Any], config: Config, work: Path, task: Task) -> dict[str, Any]:
    """What is `asked` by the task and its datasets, with where and how it runs on this machine.

    A task that has a checkpoint goes on as it was begun: with other threads sums would add up in another order, and
    with the episodes recorded since, its steps would be those of another run and be thrown away.
    """
    there = work / "trainer" / folder(task)
    begun = begun_with(there)
    return {
        **asked,
        "datasets": kept(begun.get("datasets"), asked.get("datasets", [])),
        "device": config["train", "device"],
        "threads": begun.get("threads") or config["train", "threads"] or max(1, (os.cpu_count() or 2) // 2),
        "checkpoint_dir": str(there / "checkpoint"),
        "checkpoint_every_s": config["train", "checkpoint_every_s"],
        "out": str(there / "update.safetensors"),
        "cache": str(work / "cache"),
    }


def begun_with(there: Path) -> dict[str, Any]:
    """The job that a task with a checkpoint was begun with; empty where there is none."""
    if not (there / "checkpoint" / "checkpoint.pt").exists():
        return {}
    try:
        found = json.loads((there / "job.json").read_text())
        return {"threads": int(found["threads"]), "datasets": found["datasets"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def kept(begun: Any, now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The datasets of `begun` while all of them may still be trained on, else those of `now`.

    An episode that a person has taken out since, or that is gone, counts for more than the steps made with it.
    """
    there = {d["root"]: d for d in now}
    try:
        for one in begun:
            same = there[one["root"]]
            if one["rename"] != same["rename"] or not set(one["episodes"]) <= set(same["episodes"]):
                return now
    except (KeyError, TypeError):
        return now
    return list(begun) or now
