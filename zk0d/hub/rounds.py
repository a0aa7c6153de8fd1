"""When a federation opens, who gets a task, when a merge is due and what each update weighs: pure functions, no I/O.

Buffered asynchronous merging (FedBuff, arXiv:2106.06639): a merge when `target` nodes have given an update, or after
the deadline with at least `quorum`. Time is passed in, in seconds since the epoch. Storage and sockets are elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Phase = Literal["gathering", "open", "finished"]
_NEXT: dict[Phase, tuple[Phase, ...]] = {"gathering": ("open", "finished"), "open": ("finished",), "finished": ()}

IDLE_S = 30.0
"""How long a node waits before it asks again when nothing else says so."""
REFUSED_S = 15.0
REFUSED_MAX_S = 3600.0


@dataclass(frozen=True)
class Rules:
    """A federation's [rounds] table. `versions` 0: no end."""

    min_nodes: int
    target: int
    quorum: int
    deadline_s: float
    versions: int
    max_staleness: int
    mode: str = "buffered"


@dataclass(frozen=True)
class Given:
    """An admitted update that waits for its merge."""

    update: str
    node: str
    base_version: int
    samples: int
    """What it weighs: the samples it states, but not more than the frames its node had declared."""
    admitted_at: float


@dataclass(frozen=True)
class Snapshot:
    """A federation at one moment. `version` is the newest number, -1 while it gathers and where it ended so."""

    phase: Phase
    version: int
    members: frozenset[str] = frozenset()
    buffer: tuple[Given, ...] = ()
    receiving: frozenset[str] = frozenset()
    """Nodes whose newest update is still on its way."""
    tasks: Mapping[str, int] = field(default_factory=dict)
    """Node → version of the task it holds and has not answered; older versions' may be left out."""
    refusals: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    """Node → updates refused in a row, and when the last was."""
    hold: str = ""
    """"": it goes on; "frozen": no tasks and no merges; "draining": no new tasks, what is under way is merged."""
    held_at: float = 0.0
    """When that was decided."""
    floor: int = 0
    """Updates from versions before this one are refused: the federation was rolled back."""
    opened_at: float = 0.0
    """When the newest version was published."""

    @property
    def outstanding(self) -> frozenset[str]:
        """The nodes that owe an update to the newest version."""
        return self.receiving | {n for n, v in self.tasks.items() if v == self.version}

    def validate(self) -> None:
        """Raise AssertionError unless the parts fit together; tests call it after every step."""
        assert self.phase in _NEXT
        assert self.version != -1 if self.phase == "open" else self.version == -1 or self.phase == "finished"
        assert self.version != -1 or not (self.buffer or self.tasks or self.receiving)
        assert all(g.node in self.members and 0 <= g.base_version <= self.version for g in self.buffer)
        assert len({g.update for g in self.buffer}) == len(self.buffer)
        assert all(n in self.members and v <= self.version for n, v in self.tasks.items())


@dataclass(frozen=True)
class Grant:
    """The node gets a task of the newest version; `again`: it is the one it already holds."""

    again: bool = False


@dataclass(frozen=True)
class Wait:
    """The node gets none now: why, in a sentence, and in how many seconds to ask again."""

    reason: str
    retry_s: float


@dataclass(frozen=True)
class Share:
    """One update's part in a merge. `weight` is its fraction; all fractions of a merge sum to 1. `scale`: clipping."""

    update: str
    node: str
    staleness: int
    weight: float
    scale: float = 1.0


@dataclass(frozen=True)
class Merge:
    """A merge that is due now: the version it makes and the shares in node order."""

    version: int
    shares: tuple[Share, ...]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """How they are merged (recipe.py); the rounds do not look into it."""


class IllegalTransitionError(Exception):
    """A federation was asked to go where it cannot from where it is: a defect, not a person's mistake."""


def advance(phase: Phase, to: Phase) -> Phase:
    """The next phase, or IllegalTransitionError."""
    if to not in _NEXT[phase]:
        raise IllegalTransitionError(f"a federation cannot go from {phase} to {to}")
    return to


def gathering(rules: Rules, snapshot: Snapshot) -> int:
    """How many more nodes must join before version 0 can be published; 0: it is time."""
    return max(0, rules.min_nodes - len(snapshot.members))


def task_for(rules: Rules, snapshot: Snapshot, node: str, now: float) -> Grant | Wait:
    """Whether `node` gets a task now, or why not."""
    if node not in snapshot.members:
        return Wait("you have not joined this federation", IDLE_S)
    if snapshot.phase == "gathering":
        return Wait(f"the federation is gathering: it opens when {_more_join(gathering(rules, snapshot))}", IDLE_S)
    if snapshot.phase == "finished":
        return Wait(f"the federation is {finished(snapshot)}", REFUSED_MAX_S)
    if snapshot.hold == "frozen":
        return Wait(f"the federation is frozen at version {snapshot.version} by its maintainer", REFUSED_S * 4)
    if any(g.node == node for g in snapshot.buffer):
        return _given(rules, snapshot, now)
    if node in snapshot.receiving:
        return Wait("your update is still being received", IDLE_S)
    times, last = snapshot.refusals.get(node, (0, 0.0))
    pause = 0.0 if times < 2 else min(REFUSED_MAX_S, REFUSED_S * 2.0 ** min(times - 2, 20))
    if now < last + pause:
        left = last + pause - now
        return Wait(f"your last {times} updates were refused; the next task is in {duration(left)}", left)
    held = snapshot.tasks.get(node) == snapshot.version
    if snapshot.hold and not held:
        return Wait("the federation is draining: it gives no new tasks", REFUSED_S * 4)
    return Grant(again=held)


def finished(snapshot: Snapshot) -> str:
    """How a finished federation ended."""
    return "finished before version 0" if snapshot.version < 0 else f"finished with version {snapshot.version}"


def _given(rules: Rules, snapshot: Snapshot, now: float) -> Wait:
    nodes = len({g.node for g in snapshot.buffer})
    given = f"you have given your update to version {snapshot.version + 1}; it is"
    at, lacking = deadline(rules, snapshot), rules.quorum - nodes
    assert at is not None
    if nodes >= rules.target or (now >= at and lacking <= 0):
        return Wait(f"{given} being merged", 5.0)
    if now >= at:
        return Wait(f"{given} merged when {_more(lacking)} in", IDLE_S)
    late = f"in {duration(at - now)}" + (f" if {_more(lacking)} in by then" if lacking > 0 else "")
    return Wait(f"{given} merged when {_more(rules.target - nodes)} in, or {late}", min(IDLE_S, at - now + 0.5))


def _more_join(count: int) -> str:
    return f"{count} more {'node has' if count == 1 else 'nodes have'} joined"


def _more(count: int) -> str:
    return f"{count} more {'is' if count == 1 else 'are'}"


def deadline(rules: Rules, snapshot: Snapshot) -> float | None:
    """When the quorum becomes enough: `deadline_s` after the first update of this merge, in synchronous rounds after
    the version's publication; None without an update."""
    if rules.mode == "sync":
        return snapshot.opened_at + rules.deadline_s if snapshot.buffer else None
    return min(g.admitted_at for g in snapshot.buffer) + rules.deadline_s if snapshot.buffer else None


def drain_ends(rules: Rules, snapshot: Snapshot) -> float | None:
    """When a drain waits no longer for the nodes that owe an update, of which one may be gone for good: `deadline_s`
    after it began. What comes after all is merged as well. None where nothing is drained."""
    return snapshot.held_at + rules.deadline_s if snapshot.hold == "draining" else None


def awaited(rules: Rules, snapshot: Snapshot, now: float) -> frozenset[str]:
    """The nodes whose update to the newest version is still waited for."""
    ends_at = drain_ends(rules, snapshot)
    return snapshot.outstanding if ends_at is None or now < ends_at else frozenset()


def due_in(rules: Rules, snapshot: Snapshot, now: float) -> float | None:
    """Seconds in which an update of a task given now is still in time for this merge; None where none is late."""
    return max(0.0, snapshot.opened_at + rules.deadline_s - now) if rules.mode == "sync" else None


def unacceptable(rules: Rules, snapshot: Snapshot, node: str, base_version: int) -> str:
    """Why an update of `node` from `base_version` cannot be taken; "" if it can."""
    if node not in snapshot.members:
        return "the node has not joined this federation"
    if snapshot.phase != "open":
        return f"the federation is {snapshot.phase}"
    if not 0 <= base_version <= snapshot.version:
        return f"there is no version {base_version}"
    if base_version < snapshot.floor:
        return f"the federation was rolled back: updates from before version {snapshot.floor} no longer count"
    staleness = snapshot.version - base_version
    if staleness > rules.max_staleness:
        return f"it starts from version {base_version}, {staleness} behind; at most {rules.max_staleness} is accepted"
    return ""


def impossible(task: Mapping[str, Any], steps: int, samples: int) -> str:
    """Why no work on `task` can have taken so many steps or seen so many samples; "" if it can."""
    most = int(task["local_steps"])
    if steps > most:
        return f"it states {steps} steps, the task has {most}"
    if samples > steps * int(task["batch_size"]):
        return f"it states {samples} samples, {steps} steps of {task['batch_size']} cannot have seen so many"
    return ""


def merge_due(rules: Rules, snapshot: Snapshot, now: float) -> Merge | float | None:
    """The merge that is due, or the time to look again (no update needed), or None: only a new update changes things.

    Takes each node's earliest update; what a node gave beyond that stays for the next merge.
    """
    if snapshot.phase != "open" or not snapshot.buffer or snapshot.hold == "frozen":
        return None
    first: dict[str, Given] = {}
    for given in sorted(snapshot.buffer, key=lambda g: (g.admitted_at, g.update)):
        first.setdefault(given.node, given)
    at = deadline(rules, snapshot)
    assert at is not None
    drain = drain_ends(rules, snapshot)
    drained = drain is not None and (not awaited(rules, snapshot, now) or now >= at)
    if drained or len(first) >= rules.target or (now >= at and len(first) >= rules.quorum):
        return Merge(snapshot.version + 1, shares(snapshot.version, [first[n] for n in sorted(first)]))
    return min((t for t in (at, drain) if t is not None and now < t), default=None)


def shares(version: int, updates: list[Given]) -> tuple[Share, ...]:
    """Weights samples / sqrt(1 + staleness), as fractions, summed in the given (node) order."""
    raw = [g.samples / math.sqrt(1 + (version - g.base_version)) for g in updates]
    total = sum(raw)
    return tuple(
        Share(g.update, g.node, version - g.base_version, w / total) for g, w in zip(updates, raw, strict=True)
    )


def ends(rules: Rules, version: int) -> bool:
    """Whether the federation is finished once `version` is merged."""
    return rules.versions > 0 and version >= rules.versions


def counted(number: int, what: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds for people: 40 s, 12 min, 3 h."""
    if seconds < 90:
        return f"{max(1, math.ceil(seconds))} s"
    return f"{math.ceil(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"
