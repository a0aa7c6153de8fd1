"""How fast this machine trains, measured, and what follows: when a task ends, and what to do about the hub's deadline.

Pure arithmetic over what the trainer reports; and the fair share of each federation. Not for starting anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

MIN_SHARE = 0.1
"""Least part of a task's steps that is worth an update of its own."""
MARGIN_S = 10.0
"""Seconds kept between the last step and the hub's deadline: for the payload, its signature and its offer."""
CREDIT_S = 3600.0
"""How far a federation may be behind the others: one that had no tasks for a month does not get a month of them."""
_NEW = 0.3
"""Weight of a new measurement against the older ones."""


@dataclass(frozen=True)
class Pace:
    """Seconds: one step, from the trainer's start to its first step, writing a checkpoint. 0: not measured yet."""

    step_s: float = 0.0
    load_s: float = 0.0
    save_s: float = 0.0

    @classmethod
    def kept(cls, value: Mapping[str, float] | None) -> Pace:
        known = {k: float(v) for k, v in (value or {}).items() if k in cls.__dataclass_fields__}
        return cls(**known)

    def with_(self, **measured: float) -> Pace:
        """With new measurements of some of its parts, which move the older ones."""
        now = asdict(self)
        moved = {k: v if now[k] <= 0 else (1 - _NEW) * now[k] + _NEW * v for k, v in measured.items() if v > 0}
        return replace(self, **moved)

    def left_s(self, steps: int, *, loaded: bool) -> float | None:
        """Seconds of training that `steps` more take; None when no step was measured yet."""
        if self.step_s <= 0:
            return None
        return steps * self.step_s + (0.0 if loaded else self.load_s)


class Meter:
    """Watches one run of the trainer. Spans in which it was frozen are left out: they say nothing about its pace."""

    def __init__(self, began: float) -> None:
        self.trained_s = 0.0
        self.pace = Pace()
        self._began, self._last, self._disturbed = began, (-1, began), False

    def disturbed(self) -> None:
        """It was frozen: the span that it is in does not count."""
        self._disturbed = True

    def progress(self, step: int, now: float) -> None:
        before, at = self._last
        self._last = (step, now)
        if self._disturbed:
            self._disturbed = False
        elif before < 0:
            self.pace = self.pace.with_(load_s=now - self._began)
        elif step > before:
            self.trained_s += now - at
            self.pace = self.pace.with_(step_s=(now - at) / (step - before))

    def saved(self, seconds: float) -> None:
        self.pace = self.pace.with_(save_s=seconds)


class Plan(StrEnum):
    """What to do with a task: all of it; a part of it, declared by its steps; not at all."""

    WHOLE = "whole"
    PART = "part"
    NOT = "not"


def plan(pace: Pace, step: int, steps: int, due_at: float | None, now: float, *, loaded: bool) -> Plan:
    """Whether a task ends before the hub's deadline. Without deadline or measurement, and once begun, it is done.

    What was begun is never thrown away: late, it goes to the hub's next merge.
    """
    left = pace.left_s(steps - step, loaded=loaded)
    if due_at is None or left is None or now + left + MARGIN_S <= due_at:
        return Plan.WHOLE
    until_then = due_at - MARGIN_S - now - (0.0 if loaded else pace.load_s)
    if step + until_then / pace.step_s >= MIN_SHARE * steps:
        return Plan.PART
    return Plan.NOT if step == 0 else Plan.WHOLE


def conclude_now(pace: Pace, step: int, steps: int, due_at: float | None, now: float) -> bool:
    """Whether the trainer, which runs, should end here with what it has: another step would make the update late."""
    if due_at is None or step < max(1.0, MIN_SHARE * steps) or step >= steps:
        return False
    return due_at - MARGIN_S - pace.step_s <= now < due_at


def charged(trained_s: Mapping[str, float], name: str, seconds: float) -> dict[str, float]:
    """`trained_s` after `name` was trained for `seconds` more."""
    most = max(trained_s.values(), default=0.0)
    return {**trained_s, name: max(trained_s.get(name, 0.0), most - CREDIT_S) + seconds}


def in_turn(federations: Iterable[str], trained_s: Mapping[str, float]) -> list[str]:
    """Whose task comes first: who has had the least training time, within CREDIT_S of who has had the most."""
    names = list(federations)
    most = max((trained_s.get(n, 0.0) for n in names), default=0.0)
    return sorted(names, key=lambda n: (max(trained_s.get(n, 0.0), most - CREDIT_S), n))
