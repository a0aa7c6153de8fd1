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
    """What is `asked` by the task and its datasets, with where and how it runs on this machine."""
    there = work / "trainer" / folder(task)
    return {
        **asked,
        "device": config["train", "device"],
        "threads": begun_with(there) or config["train", "threads"] or max(1, (os.cpu_count() or 2) // 2),
        "checkpoint_dir": str(there / "checkpoint"),
        "checkpoint_every_s": config["train", "checkpoint_every_s"],
        "out": str(there / "update.safetensors"),
        "cache": str(work / "cache"),
    }


def begun_with(there: Path) -> int:
    """Threads a task that has a checkpoint was begun with; another number would add up in another order. 0: none."""
    if not (there / "checkpoint" / "checkpoint.pt").exists():
        return 0
    try:
        return int(json.loads((there / "job.json").read_text())["threads"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
