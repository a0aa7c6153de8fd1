"""Measured steps, the hub's deadline, and turns among federations."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zk0d.daemon.pace import MARGIN_S, Meter, Pace, Plan, charged, conclude_now, in_turn, plan

SLOW = Pace(step_s=2.0, load_s=20.0)


def test_a_run_is_measured_but_not_while_it_is_frozen() -> None:
    meter = Meter(100.0)
    meter.progress(1, 108.0)
    assert meter.pace.load_s == 8.0 and meter.pace.step_s == 0.0
    meter.progress(5, 110.0)
    assert meter.pace.step_s == 0.5
    meter.disturbed()
    meter.progress(6, 900.0)  # thirteen minutes of somebody's recording
    assert meter.pace.step_s == 0.5 and meter.trained_s == 2.0
    meter.progress(7, 901.0)
    assert meter.pace.step_s == pytest.approx(0.65) and meter.trained_s == 3.0
    meter.saved(4.0)
    assert Pace.kept({"step_s": 1.0, "unheard_of": 3.0}).with_(save_s=meter.pace.save_s) == Pace(1.0, 0.0, 4.0)


@pytest.mark.parametrize(
    ("step", "due_in", "loaded", "expected"),
    [
        (0, None, False, Plan.WHOLE),
        (0, 20 + 200 + MARGIN_S, False, Plan.WHOLE),
        (0, 20 + 199 + MARGIN_S, False, Plan.PART),
        (0, 20 + 20 + MARGIN_S, False, Plan.PART),  # ten of a hundred steps
        (0, 20 + 19 + MARGIN_S, False, Plan.NOT),
        (0, -5, False, Plan.NOT),
        (50, 100 + MARGIN_S, True, Plan.WHOLE),
        (50, 90, True, Plan.PART),
        (5, 1, True, Plan.WHOLE),  # begun already: late is better than thrown away
    ],
)
def test_a_deadline(step: int, due_in: float | None, loaded: bool, expected: Plan) -> None:
    due_at = None if due_in is None else 1000.0 + due_in
    assert plan(SLOW, step, 100, due_at, 1000.0, loaded=loaded) is expected
    assert plan(Pace(), step, 100, due_at, 1000.0, loaded=loaded) is Plan.WHOLE  # nothing measured: try


def test_it_ends_where_it_is_just_before_the_deadline() -> None:
    due_at = 1000.0
    assert not conclude_now(SLOW, 40, 100, due_at, due_at - MARGIN_S - 2.1)
    assert conclude_now(SLOW, 40, 100, due_at, due_at - MARGIN_S - 1.9)
    assert not conclude_now(SLOW, 9, 100, due_at, due_at - 5)  # too little to be an update
    assert not conclude_now(SLOW, 40, 100, due_at, due_at + 1)  # late already: all of it then
    assert not conclude_now(SLOW, 40, 100, None, due_at)


@given(st.floats(0.01, 60), st.floats(0, 60), st.integers(0, 99), st.floats(0, 1e5), st.floats(0, 1e5))
@example(1.0, 0.0, 10, 0.0, 10.0)
def test_more_time_never_means_less_work(step_s: float, load_s: float, step: int, due_in: float, more: float) -> None:
    rank = {Plan.NOT: 0, Plan.PART: 1, Plan.WHOLE: 2}
    pace = Pace(step_s, load_s)
    early, late = (plan(pace, step, 100, d, 0.0, loaded=False) for d in (due_in, due_in + more))
    left = pace.left_s(100 - step, loaded=False)
    if step and early is Plan.WHOLE and left is not None and left + MARGIN_S > due_in:
        return  # begun, and not even a part is done in time: it is then done whole, and late
    assert rank[early] <= rank[late]


def test_turns_are_by_training_time_not_by_number() -> None:
    spent = {"a": 100.0, "b": 50.0, "c": 0.0}
    assert in_turn(["a", "b", "c"], spent) == ["c", "b", "a"]
    spent["c"] = 120.0  # its task took long
    assert in_turn(["a", "b", "c"], spent) == ["b", "a", "c"]


def test_an_absent_federation_does_not_come_back_with_a_month_of_credit() -> None:
    spent, served = {"old": 1e6, "new": 0.0}, {"old": 0, "new": 0}
    for _ in range(30):
        name = in_turn(spent, spent)[0]
        served[name] += 1
        spent = charged(spent, name, 600.0)
    assert served["old"] >= 10 and served["new"] >= 10


@given(st.lists(st.floats(1, 600), min_size=30, max_size=60), st.integers(2, 4))
def test_nobody_falls_behind_by_more_than_one_task(lengths: list[float], count: int) -> None:
    spent = dict.fromkeys([f"f{k}" for k in range(count)], 0.0)
    for length in lengths:
        spent[in_turn(spent, spent)[0]] += length
    assert max(spent.values()) - min(spent.values()) <= max(lengths)
