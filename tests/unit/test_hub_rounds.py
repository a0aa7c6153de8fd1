"""The rounds: a table of who gets what, and hypothesis over whole lives."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from zk0d.hub.rounds import (
    Given,
    Grant,
    IllegalTransitionError,
    Merge,
    Rules,
    Snapshot,
    Wait,
    advance,
    awaited,
    duration,
    ends,
    gathering,
    impossible,
    merge_due,
    shares,
    task_for,
    unacceptable,
)

RULES = Rules(min_nodes=2, target=3, quorum=2, deadline_s=600, versions=0, max_staleness=4)
ABC = frozenset("abc")
OPEN = Snapshot("open", 3, ABC)


def given_by(node: str, at: float = 1000.0, base: int = 3, samples: int = 100) -> Given:
    return Given(f"u-{node}-{at}", node, base, samples, at)


WAITS = [
    (replace(OPEN, members=frozenset()), 1000, "you have not joined this federation"),
    (Snapshot("gathering", -1, frozenset("a")), 1000, "gathering: it opens when 1 more node has joined"),
    (Snapshot("finished", 3, ABC), 1000, "finished with version 3"),
    (replace(OPEN, receiving=frozenset("a")), 1000, "still being received"),
    (
        replace(OPEN, buffer=(given_by("a"),)),
        1060,
        "you have given your update to version 4; it is merged when 2 more are in, or in 9 min if 1 more is in by then",
    ),
    (
        replace(OPEN, buffer=(given_by("a"), given_by("b", 1300))),
        1540,
        "you have given your update to version 4; it is merged when 1 more is in, or in 60 s",
    ),
    (replace(OPEN, buffer=(given_by("a"),)), 1601, "version 4; it is merged when 1 more is in"),
    (replace(OPEN, buffer=(given_by("a"), given_by("b"))), 1601, "version 4; it is being merged"),
    (replace(OPEN, buffer=tuple(given_by(n) for n in "abc")), 1001, "version 4; it is being merged"),
    (replace(OPEN, refusals={"a": (3, 990.0)}), 1000, "your last 3 updates were refused; the next task is in 20 s"),
]


@pytest.mark.parametrize(("snapshot", "now", "said"), WAITS, ids=[w[2][-28:] for w in WAITS])
def test_why_a_node_gets_no_task(snapshot: Snapshot, now: float, said: str) -> None:
    snapshot.validate()
    answer = task_for(RULES, snapshot, "a", now)
    assert isinstance(answer, Wait) and said in answer.reason and answer.retry_s > 0


def test_who_gets_a_task() -> None:
    assert task_for(RULES, OPEN, "a", 0) == Grant()
    assert task_for(RULES, replace(OPEN, buffer=(given_by("b"),)), "a", 0) == Grant()
    assert task_for(RULES, replace(OPEN, tasks={"a": 3}), "a", 0) == Grant(again=True)
    assert task_for(RULES, replace(OPEN, tasks={"a": 2}), "a", 0) == Grant()
    assert task_for(RULES, replace(OPEN, refusals={"a": (1, 1000.0)}), "a", 1000) == Grant()
    assert task_for(RULES, replace(OPEN, refusals={"a": (3, 1000.0)}), "a", 1030) == Grant()


def test_when_a_merge_is_due() -> None:
    two = replace(OPEN, buffer=(given_by("a"), given_by("b", 1100)))
    assert merge_due(RULES, OPEN, 0) is None
    assert merge_due(RULES, two, 1599) == 1600
    late = merge_due(RULES, two, 1600)
    assert isinstance(late, Merge) and late.version == 4 and [s.node for s in late.shares] == ["a", "b"]
    full = merge_due(RULES, replace(two, buffer=(*two.buffer, given_by("c", 1200))), 1200)
    assert isinstance(full, Merge) and len(full.shares) == 3
    alone = replace(OPEN, buffer=(given_by("a"),))
    assert merge_due(RULES, alone, 1000) == 1600 and merge_due(RULES, alone, 1601) is None
    assert merge_due(RULES, replace(two, phase="finished"), 9999) is None


def test_a_drain_waits_for_no_node_for_ever() -> None:
    """The task of a node that is gone is waited for as long as an update would be, counted from the drain on."""
    drain = replace(OPEN, hold="draining", held_at=900.0, tasks={"c": 3, "b": 2}, receiving=frozenset("a"))
    assert awaited(RULES, drain, 1499) == {"a", "c"} and awaited(RULES, drain, 1500) == frozenset()
    assert merge_due(RULES, drain, 1499) is None is merge_due(RULES, drain, 1500)
    one = replace(drain, buffer=(given_by("b"),))
    assert merge_due(RULES, one, 1499) == 1500  # before the update's own deadline, at 1600
    assert isinstance(merge_due(RULES, one, 1500), Merge)
    assert merge_due(RULES, replace(one, held_at=1200.0), 1000) == 1600
    assert isinstance(merge_due(RULES, replace(one, tasks={}, receiving=frozenset()), 1001), Merge)
    assert awaited(RULES, replace(drain, hold=""), 9999) == {"a", "c"}


def test_a_nodes_second_update_waits_for_the_next_merge() -> None:
    buffer = (given_by("a", 1000), given_by("a", 900, base=2), given_by("b"), given_by("c"))
    merge = merge_due(RULES, replace(OPEN, buffer=buffer), 1000)
    assert isinstance(merge, Merge)
    assert next((s.update, s.staleness) for s in merge.shares) == ("u-a-900", 1)
    assert len(merge.shares) == 3
    twice = replace(OPEN, buffer=(given_by("a", 1000), given_by("a", 1001), given_by("a", 1002)))
    assert not isinstance(merge_due(RULES, twice, 1100), Merge)


@pytest.mark.parametrize(
    ("node", "base", "phase", "said"),
    [("a", 3, "open", ""), ("a", 0, "open", ""), ("x", 3, "open", "not joined"), ("a", 4, "open", "no version 4"),
     ("a", -1, "open", "no version"), ("a", 3, "finished", "is finished")],
)  # fmt: skip
def test_which_updates_are_taken(node: str, base: int, phase: str, said: str) -> None:
    why = unacceptable(RULES, replace(OPEN, phase=phase), node, base)  # type: ignore[arg-type]
    assert (said in why) if said else why == ""
    assert "5 behind; at most 4" in unacceptable(RULES, replace(OPEN, version=8), "a", 3)


@given(st.lists(st.tuples(st.integers(1, 10**9), st.integers(0, 20)), min_size=1, max_size=20))
def test_weights(parts: list[tuple[int, int]]) -> None:
    made = shares(20, [Given(str(i), f"n{i:02}", 20 - s, n, 0.0) for i, (n, s) in enumerate(parts)])
    assert math.isclose(sum(s.weight for s in made), 1, rel_tol=1e-12)
    for share, (samples, staleness) in zip(made, parts, strict=True):
        assert share.staleness == staleness
        expected = samples / math.sqrt(1 + staleness) / sum(n / math.sqrt(1 + s) for n, s in parts)
        assert math.isclose(share.weight, expected, rel_tol=1e-9)


@given(st.permutations([given_by(n, at, base) for n, at, base in (("a", 1, 3), ("b", 2, 2), ("c", 3, 1), ("a", 4, 3))]))
def test_arrival_order_changes_nothing(buffer: list[Given]) -> None:
    first = merge_due(RULES, replace(OPEN, buffer=tuple(buffer)), 10)
    assert first == merge_due(RULES, replace(OPEN, buffer=tuple(sorted(buffer, key=lambda g: g.update))), 10)


@pytest.mark.parametrize(
    ("steps", "samples", "said"),
    [(20, 160, ""), (1, 8, ""), (3, 1, ""), (21, 1, "states 21 steps, the task has 20"),
     (20, 161, "20 steps of 8 cannot have seen so many"), (1, 10**9, "1 steps of 8 cannot")],
)  # fmt: skip
def test_what_no_node_can_have_done(steps: int, samples: int, said: str) -> None:
    why = impossible({"local_steps": 20, "batch_size": 8}, steps, samples)
    assert (said in why) if said else why == ""


def test_transitions_and_words() -> None:
    assert advance("gathering", "open") == "open" and advance("open", "finished") == "finished"
    for phase, to in (("open", "gathering"), ("finished", "open"), ("open", "open")):
        with pytest.raises(IllegalTransitionError, match=f"from {phase} to {to}"):
            advance(phase, to)  # type: ignore[arg-type]
    assert advance("gathering", "finished") == "finished"  # made by mistake
    ended = replace(OPEN, phase="finished", version=-1, buffer=(), tasks={}, receiving=frozenset())
    ended.validate()
    answer = task_for(RULES, ended, next(iter(OPEN.members)), 0.0)
    assert isinstance(answer, Wait) and answer.reason == "the federation is finished before version 0"
    assert [duration(s) for s in (0.2, 89, 91, 3600, 10000)] == ["1 s", "89 s", "2 min", "60 min", "3 h"]
    assert ends(replace(RULES, versions=3), 3) and not ends(replace(RULES, versions=3), 2) and not ends(RULES, 99)


class Life(RuleBasedStateMachine):
    """A federation lived through: joins, tasks, updates, merges, in any order and at any pace."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.made, self.merged = 0.0, 0, set()
        self.snapshot = Snapshot("gathering", -1)

    @initialize(min_nodes=st.integers(1, 4), goal=st.integers(1, 4), data=st.data())
    def begin(self, min_nodes: int, goal: int, data: st.DataObject) -> None:
        quorum = data.draw(st.integers(1, goal))
        self.rules = Rules(min_nodes, goal, quorum, 100.0, data.draw(st.integers(0, 5)), data.draw(st.integers(0, 3)))

    @rule(node=st.sampled_from("abcde"))
    def join(self, node: str) -> None:
        self.snapshot = replace(self.snapshot, members=self.snapshot.members | {node})
        if self.snapshot.phase == "gathering" and not gathering(self.rules, self.snapshot):
            self.snapshot = replace(self.snapshot, phase=advance("gathering", "open"), version=0)

    @rule(seconds=st.floats(0, 200))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(node=st.sampled_from("abcde"))
    def ask(self, node: str) -> None:
        answer = task_for(self.rules, self.snapshot, node, self.now)
        if isinstance(answer, Grant):
            assert self.snapshot.phase == "open" and node in self.snapshot.members
            assert all(g.node != node for g in self.snapshot.buffer)
            self.snapshot = replace(self.snapshot, tasks={**self.snapshot.tasks, node: self.snapshot.version})
        else:
            assert answer.reason and answer.retry_s > 0

    @precondition(lambda self: self.snapshot.tasks)
    @rule(data=st.data(), samples=st.integers(1, 1000))
    def give(self, data: st.DataObject, samples: int) -> None:
        node = data.draw(st.sampled_from(sorted(self.snapshot.tasks)))
        tasks = dict(self.snapshot.tasks)
        base = tasks.pop(node)
        self.snapshot = replace(self.snapshot, tasks=tasks)
        if not unacceptable(self.rules, self.snapshot, node, base):
            self.made += 1
            new = Given(f"u{self.made}", node, base, samples, self.now)
            self.snapshot = replace(self.snapshot, buffer=(*self.snapshot.buffer, new))

    @rule()
    def merge(self) -> None:
        due = merge_due(self.rules, self.snapshot, self.now)
        if isinstance(due, float):
            assert due > self.now
        if not isinstance(due, Merge):
            return
        nodes = [s.node for s in due.shares]
        assert nodes == sorted(set(nodes)) and len(nodes) >= self.rules.quorum
        assert not self.merged & {s.update for s in due.shares}, "an update counted twice"
        self.merged |= {s.update for s in due.shares}
        left = tuple(g for g in self.snapshot.buffer if g.update not in self.merged)
        phase = "finished" if ends(self.rules, due.version) else "open"
        self.snapshot = replace(self.snapshot, version=due.version, buffer=left, phase=phase)

    @invariant()
    def fits(self) -> None:
        self.snapshot.validate()
        assert self.rules_hold()

    def rules_hold(self) -> bool:
        if not hasattr(self, "rules"):
            return True
        done = self.rules.versions and self.snapshot.version >= self.rules.versions
        return bool(done) == (self.snapshot.phase == "finished")


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
