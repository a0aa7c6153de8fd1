"""What a virtual station is, and how it is written in a config file (`virtual:PickLift?seed=3&clock=wall`).

Cheap to import: no lerobot, no mujoco. Not for building the station (station.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl

from zk0d.errors import UsageError

TASKS = ("Touch", "PickLift", "Move", "LookAt", "PickAndPlace", "StackCube", "PickReturn")
"""so101-nexus tasks that a station can hold; "" is a free bench with a cube on it."""
EXPERT_TASKS = ("Touch", "PickLift", "Move", "LookAt", "PickAndPlace")
"""Those that the scripted expert solves."""

_KEYS = ("leader", "seed", "fps", "clock", "arm", "cameras")


@dataclass(frozen=True)
class StationSpec:
    """One bench: a task, a leader, cameras and a clock.

    `leader` is "expert", "replay:FILE[#EPISODE]" or "rest" (an expert on a free bench rests). `cameras` maps a name to
    (height, width) in pixels.
    `clock` "step": simulated time advances one control period (1/fps) per sync write of the follower's goals;
    "wall": it follows the wall clock.
    """

    task: str
    leader: str = "expert"
    seed: int = 0
    cameras: dict[str, tuple[int, int]] = field(default_factory=dict)
    fps: int = 30
    clock: str = "step"
    arm: str = "so101"

    def __post_init__(self) -> None:
        def refuse(what: str, value: object, accepted: str) -> UsageError:
            return UsageError(f"virtual station: {what} {value!r} is not known", f"use {accepted}")

        if not self.task and self.leader == "expert":
            object.__setattr__(self, "leader", "rest")  # a free bench has nothing for an expert to solve
        if self.task and self.task not in TASKS:
            raise refuse("task", self.task, ", ".join(TASKS) + ', or "" for a free bench')
        if self.leader not in ("expert", "rest") and not self.leader.startswith("replay:"):
            raise refuse("leader", self.leader, '"expert", "rest" or "replay:FILE[#EPISODE]"')
        if self.leader == "expert" and self.task not in EXPERT_TASKS:
            raise refuse("a scripted expert for task", self.task, f"one of {', '.join(EXPERT_TASKS)}, or leader=rest")
        if self.clock not in ("step", "wall"):
            raise refuse("clock", self.clock, '"step" or "wall"')
        if self.arm not in ("so100", "so101"):
            raise refuse("arm", self.arm, '"so100" or "so101"')
        if not 5 <= self.fps <= 200:
            raise refuse("fps", self.fps, "5 to 200")
        for name, size in self.cameras.items():
            if len(size) != 2 or not all(16 <= int(n) <= 2048 for n in size):
                raise refuse(f"size of camera {name}", size, "(height, width) from 16 to 2048")

    @staticmethod
    def parse(text: str, **overrides: Any) -> StationSpec:
        """Read `virtual:TASK?key=value&…`; keyword arguments that are not None win over the text.

        Keys: leader, seed, fps, clock, arm, cameras (`front:96x96,wrist:96x128`, height x width).
        Raises UsageError that says what is accepted.
        """
        if not text.startswith("virtual:"):
            raise UsageError(f"{text!r} is not a virtual station", "write virtual:TASK?seed=0&clock=step")
        task, _, query = text.removeprefix("virtual:").partition("?")
        values: dict[str, Any] = {}
        for key, value in parse_qsl(query, keep_blank_values=True):
            if key not in _KEYS:
                raise UsageError(f"virtual station: key {key!r} in {text!r} is not known", f"use {', '.join(_KEYS)}")
            values[key] = _value(key, value, text)
        values.update({k: v for k, v in overrides.items() if v is not None})
        return StationSpec(task=values.pop("task", task), **values)

    def with_seed(self, seed: int) -> StationSpec:
        """The same station with another seed."""
        return replace(self, seed=seed)


def _value(key: str, value: str, text: str) -> Any:
    try:
        if key in ("seed", "fps"):
            return int(value)
        if key == "cameras":
            sizes: dict[str, tuple[int, int]] = {}
            for part in filter(None, value.split(",")):
                name, _, size = part.partition(":")
                height, _, width = size.partition("x")
                sizes[name] = (int(height), int(width))
            return sizes
    except ValueError as exc:
        example = "cameras=front:96x96" if key == "cameras" else f"{key}=3"
        raise UsageError(f"virtual station: {key}={value!r} in {text!r} cannot be read", f"write {example}") from exc
    return value
