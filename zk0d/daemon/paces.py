"""The measured pace of each federation's tasks on this machine, kept in the store; what the training loop asks of it.

The arithmetic is in pace.py. Not for deciding whether anything trains at all: that is the arbiter's.
"""

from __future__ import annotations

import time
from typing import Any

from zk0d.daemon.pace import Meter, Pace, Plan, charged, conclude_now, plan
from zk0d.daemon.store import Store, Task


def due_at(task: Task) -> float | None:
    """The hub's deadline for its update, where it named one."""
    value = task.body.get("due_at")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def steps(task: Task) -> int:
    return int(task.body.get("local_steps", 0))


class Paces:
    """Follows the trainer that runs, and remembers when it has ended."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._meter: Meter | None = None
        self._task: Task | None = None
        self._before = Pace()
        self._now: dict[str, Pace] = {}
        self.step = 0

    def begin(self, task: Task) -> None:
        self._task, self.step = task, task.step
        self._before, self._meter = self.of(task.federation), Meter(time.monotonic())

    def event(self, event: dict[str, Any]) -> None:
        """A `progress` or `checkpoint` of the trainer."""
        if self._meter is None or self._task is None:
            return
        if event["event"] == "progress":
            self.step = int(event.get("step", 0))
            self._meter.progress(self.step, time.monotonic())
        elif event["event"] == "checkpoint":
            self._meter.saved(float(event.get("seconds", 0.0)))
        measured = {k: v for k, v in vars(self._meter.pace).items() if v > 0}
        self._now[self._task.federation] = self._before.with_(**measured)

    def disturbed(self) -> None:
        """The trainer is frozen: the span that it is in says nothing."""
        if self._meter is not None:
            self._meter.disturbed()

    def end(self) -> None:
        """The trainer has ended: keep what was measured, and charge its federation for the time it had."""
        meter, task, self._meter, self._task = self._meter, self._task, None, None
        if meter is None or task is None:
            return
        paces = self._store.get("paces", {})
        self._store.put("paces", {**paces, task.federation: vars(self.of(task.federation))})
        spent: dict[str, float] = self._store.get("trained_s", {})
        self._store.put("trained_s", charged(spent, task.federation, round(meter.trained_s, 3)))

    def of(self, federation: str) -> Pace:
        found = self._now.get(federation)
        if found is None:
            found = self._now[federation] = Pace.kept(self._store.get("paces", {}).get(federation))
        return found

    def _at(self, task: Task) -> int:
        return max(task.step, self.step) if self._task is not None and self._task.id == task.id else task.step

    def left_s(self, task: Task) -> float | None:
        """Seconds of training that the task still takes, as far as it is known."""
        return self.of(task.federation).left_s(steps(task) - self._at(task), loaded=self._task is not None)

    def plan(self, task: Task, now: float) -> Plan:
        """For a task whose trainer is about to be started."""
        return plan(self.of(task.federation), self._at(task), steps(task), due_at(task), now, loaded=False)

    def conclude_now(self, task: Task, now: float) -> bool:
        """Whether its trainer, which runs, should end with the steps it has, to be in time."""
        return conclude_now(self.of(task.federation), self._at(task), steps(task), due_at(task), now)

    def save_s(self) -> float:
        """Seconds that writing a checkpoint takes at most, and the step before it."""
        return max((p.save_s + p.step_s for p in self._now.values()), default=0.0)
