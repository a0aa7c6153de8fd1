"""The rollout's job file: which policy, on which arm, how often and how long. Read, defaulted and checked.

Imports nothing heavy. Not for rolling out (rollout.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robot.config import RobotTable
from zk0d.errors import ConfigError, DatasetError


@dataclass(frozen=True)
class RolloutJob:
    """The job file. `rename` maps the arm's camera features to the policy's, as the trainer's datasets do."""

    policy: Path
    out: Path
    robot: RobotTable
    task: str = ""
    episodes: int = 1
    max_s: float = 15.0
    reset_s: float = 10.0
    """How long a real arm stays at rest between two episodes, where a person puts things back, unless told `next`."""
    fps: int = 30
    seed: int = 0
    device: str = "auto"
    hold_s: float = 0.5
    """Without an action for so long, the arm counts as held: said, and reported."""
    give_up_s: float = 10.0
    """Without one for so long, the rollout ends and the arm goes to rest."""
    rename: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def parse(job: Mapping[str, Any]) -> RolloutJob:
        """Raises ConfigError naming the key, the value and what is accepted."""

        def refuse(key: str, accepted: str) -> ConfigError:
            return ConfigError(f"rollout job: {key} = {job.get(key)!r} cannot be used", f"use {accepted}")

        for key in ("policy", "out"):
            if not isinstance(job.get(key), str) or not Path(job[key]).is_absolute():
                raise refuse(key, "the absolute path of a folder")
        if not (Path(job["policy"]) / "config.json").is_file():
            raise DatasetError(f"{job['policy']} holds no published policy", "zk0ctl model list shows what there is")
        for key, (low, high) in {"episodes": (1, 10_000), "fps": (5, 120), "seed": (0, 2**31)}.items():
            value = job.get(key, low)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise refuse(key, f"a whole number from {low} to {high}")
        for key, usual in (("max_s", 15.0), ("hold_s", 0.5), ("give_up_s", 10.0)):
            seconds = job.get(key, usual)
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0.2 <= seconds <= 3600:
                raise refuse(key, "seconds, from 0.2 to 3600")
        pause = job.get("reset_s", 0.0)
        if isinstance(pause, bool) or not isinstance(pause, int | float) or not 0 <= pause <= 3600:
            raise refuse("reset_s", "seconds, from 0 to 3600")
        values = {k: v for k, v in job.items() if k in RolloutJob.__dataclass_fields__ and v is not None}
        values |= {"policy": Path(job["policy"]), "out": Path(job["out"])}
        values["robot"] = RobotTable.parse(job.get("robot", {}))
        return RolloutJob(**values)
