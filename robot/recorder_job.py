"""The recorder's job file: what to record, with which arms, how much and how. Read, defaulted and checked.

Imports nothing heavy. Not for recording (recorder.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robot.config import RobotTable
from zk0d.errors import ConfigError

_WHOLE = {"episodes": (1, 100_000), "fps": (5, 120), "max_takes": (0, 1_000_000), "seed": (0, 2**31),
          "floor_bytes": (1, 1 << 60), "quota_left": (0, 1 << 60)}  # fmt: skip


@dataclass(frozen=True)
class RecorderJob:
    """The job file. Times in seconds. `pace` "fast" does not wait for the clock: only where the bench steps its own."""

    dataset: Path
    task: str
    robot: RobotTable
    episodes: int = 1
    episode_s: float = 20.0
    reset_s: float = 0.0
    fps: int = 30
    keep: str = "all"
    max_takes: int = 0
    seed: int = 0
    auto: bool = True
    pace: str = ""
    paused: bool = False
    """Wait for `next` before the first take."""
    floor_bytes: int = 256 << 20
    """Free bytes below which no take begins, and a running one ends."""
    quota_left: int = 0
    """Bytes that may be recorded before the quota of all datasets is used up; 0: no quota."""
    rerun: str = ""

    @staticmethod
    def parse(job: Mapping[str, Any]) -> RecorderJob:
        """Raises ConfigError naming the key, the value and what is accepted."""

        def refuse(key: str, accepted: str) -> ConfigError:
            return ConfigError(f"recorder job: {key} = {job.get(key)!r} cannot be used", f"use {accepted}")

        values = {k: v for k, v in job.items() if k in RecorderJob.__dataclass_fields__ and v is not None}
        if not isinstance(job.get("dataset"), str) or not Path(job["dataset"]).is_absolute():
            raise refuse("dataset", "the absolute path of a folder")
        if not isinstance(job.get("task"), str) or not job["task"].strip():
            raise refuse("task", "a sentence that says what is done")
        for key, (low, high) in _WHOLE.items():
            value = values.get(key, low)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise refuse(key, f"a whole number from {low} to {high}")
        for key, low_s in (("episode_s", 0.2), ("reset_s", 0.0)):
            value = values.get(key, low_s)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low_s <= value <= 86_400:
                raise refuse(key, f"seconds, from {low_s:g} to 86400")
        if values.get("keep", "all") not in ("all", "success"):
            raise refuse("keep", '"all" or "success"')
        if values.get("pace", "") not in ("", "real", "fast"):
            raise refuse("pace", '"real" or "fast"')
        values["dataset"] = Path(job["dataset"])
        values["robot"] = RobotTable.parse(job.get("robot", {}))
        return RecorderJob(**values)
