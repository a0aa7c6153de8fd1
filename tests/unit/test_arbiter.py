"""The arbiter: every rule by table, and what must hold for any signals."""

from __future__ import annotations

import bisect
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0d.daemon.arbiter import (
    CLAIMS,
    Action,
    Activity,
    LinkSignal,
    Override,
    Policy,
    Signals,
    TaskSignal,
    clock,
    decide,
    held_back,
    transfers_held,
)
from zk0d.daemon.signals.reading import Level, Reading, unknown
from zk0d.daemon.signals.windows import Windows

NOW = time.mktime((2026, 3, 4, 15, 0, 0, 0, 0, -1))
AT_1402 = NOW - 58 * 60
RECORDING = Activity("recording", "alice", AT_1402)
ROLLOUT = Activity("rollout", "bob", AT_1402)
TASK = TaskSignal("pick", 3, step=40, steps=100)
PAUSE = Override("pause", "alice", NOW + 120)
READY = Signals(task=TASK)
BUSY = Reading("foreign cpu", "80% used by others", Level.STOP)
BUSYISH = replace(BUSY, says="30% used by others", level=Level.WARY)
FULL = Reading(
    "disk", "0.1 GB free", Level.STOP, uses=("train", "network"), firm=True, waits="waits for room on the disk"
)
CLOSING = Reading("hours", "the hours for training end Mon 07:00", Level.STOP, hard=True, waits="resumes in the next")
METERED = Reading("network", "metered", Level.STOP, uses=("network",))
SHORT = Reading("gpu", "used by process 7, 0.1 GB free", Level.STOP, memory=True, waits="resumes when the GPU is free")
NOW_OVERRIDE = Override("now", "alice", NOW + 60)

TABLE = [
    ("train", READY, "train", "training: federation pick, version 3, step 40 of 100; then the update goes to the hub"),
    ("train frozen", replace(READY, trainer="frozen", frozen_since=NOW - 5), "train", "training: "),
    ("recording, running", replace(READY, activities=(RECORDING,), trainer="running"), "freeze",
     "paused: recording by alice since 14:02; resumes when it ends"),
    ("recording, none", replace(READY, activities=(RECORDING,)), "idle", "paused: recording by alice since 14:02"),
    ("recording, frozen for hours", replace(READY, activities=(RECORDING,), trainer="frozen", frozen_since=NOW - 9999),
     "freeze", "paused: recording by alice"),
    ("rollout needs the memory", replace(READY, activities=(ROLLOUT,), trainer="running"), "yield", "paused: rollout by bob"),
    ("both", replace(READY, activities=(ROLLOUT, RECORDING), trainer="running"), "freeze", "paused: recording by alice"),
    ("short pause", replace(READY, override=PAUSE, trainer="running"), "freeze", "paused: by alice; resumes at 15:02"),
    ("long pause", replace(READY, override=replace(PAUSE, until=NOW + 7200), trainer="running"), "yield", "paused: by alice"),
    ("pause that got long", replace(READY, override=PAUSE, trainer="frozen", frozen_since=NOW - 700), "yield", "paused"),
    ("pause over", replace(READY, override=replace(PAUSE, until=NOW - 1)), "train", "training: "),
    ("now", replace(READY, override=Override("now", "alice", NOW + 60)), "train", "(told by alice until 15:01)"),
    ("now never beats recording", replace(READY, override=Override("now", "a", NOW + 60), activities=(RECORDING,),
     trainer="running"), "freeze", "paused: recording"),
    ("no runtime", replace(READY, runtime_missing="the runtime /x has no torch"), "idle", "idle: the runtime /x has no torch"),
    ("not enrolled", Signals(enrolled=False), "idle", "idle: not enrolled at a hub; waits for `zk0ctl enroll`"),
    ("no federation", Signals(federations=0), "idle", "idle: member of no federation"),
    ("no dataset", Signals(datasets=0), "idle", "idle: no dataset to train on"),
    ("no hub", Signals(link=LinkSignal("waiting", "connection refused", NOW + 60)), "idle",
     "idle: no task at hand and the hub is not reached (connection refused); waits for the hub, next attempt 15:01"),
    ("trains without the hub", replace(READY, link=LinkSignal("waiting", "gone")), "train", "training: "),
    ("hub has none", Signals(no_task="merged when 2 more are in", no_task_until=NOW + 300), "idle",
     "idle: merged when 2 more are in; asks again at 15:05"),
    ("blobs missing", Signals(task=replace(TASK, blocked="fetching version 3", waits_for="trains when it is here")), "idle",
     "idle: fetching version 3; trains when it is here"),
    ("after a death", Signals(task=replace(TASK, deaths=2, retry_at=NOW + 60)), "idle",
     "idle: the trainer died (2 of 5 tries); starts again at 15:01"),
    ("now skips the wait", Signals(task=replace(TASK, deaths=2, retry_at=NOW + 60), override=Override("now", "a", NOW + 9)),
     "train", "training"),
    ("busy machine", replace(READY, readings=(BUSY,), trainer="running"), "freeze",
     "paused: foreign cpu: 80% used by others; resumes when that is over"),
    ("stays through a wary reading", replace(READY, readings=(BUSYISH,), trainer="running"), "train", "training: "),
    ("does not start on one", replace(READY, readings=(BUSYISH,)), "idle", "paused: foreign cpu: 30% used by others"),
    ("nor thaw on one", replace(READY, readings=(BUSYISH,), trainer="frozen", frozen_since=NOW - 5), "freeze", "paused"),
    ("settles", replace(READY, held_at=NOW - 20, trainer="frozen", frozen_since=NOW - 30), "freeze",
     "paused: the machine has only just become quiet; goes on at 15:00 if it stays so"),
    ("settled", replace(READY, held_at=NOW - 60, trainer="frozen", frozen_since=NOW - 70), "train", "training: "),
    ("a person does not wait for that", replace(READY, held_at=NOW - 20, override=NOW_OVERRIDE), "train", "training: "),
    ("now beats a busy machine", replace(READY, readings=(BUSY,), override=NOW_OVERRIDE), "train", "training: "),
    ("now does not beat a full disk", replace(READY, readings=(FULL,), override=NOW_OVERRIDE, trainer="running"), "freeze",
     "paused: disk: 0.1 GB free; waits for room on the disk"),
    ("the hours end", replace(READY, readings=(BUSY, CLOSING), trainer="running"), "yield", "paused: hours: "),
    ("a metered network trains", replace(READY, readings=(METERED,)), "train", "training: "),
    ("not known holds nothing", replace(READY, readings=(unknown("gpu", "no driver"),)), "train", "training: "),
    ("what remains is told", replace(READY, task=replace(TASK, left_s=725.0)), "train", "step 40 of 100, about 12 min left;"),
    ("others need the GPU's memory", replace(READY, readings=(SHORT,), trainer="running"), "yield", "paused: gpu: used by"),
    ("calibration", replace(READY, activities=(Activity("calibrate", "bob", AT_1402),), trainer="running"), "freeze",
     "paused: calibration by bob since 14:02"),
    ("teleoperation", replace(READY, activities=(Activity("teleop", "bob", AT_1402),), trainer="running"), "freeze",
     "paused: teleoperation by bob since 14:02"),
    ("trainer without a task", Signals(trainer="running"), "yield", "idle: "),
]  # fmt: skip


@pytest.mark.parametrize(("signals", "action", "sentence"), [t[1:] for t in TABLE], ids=[t[0] for t in TABLE])
def test_table(signals: Signals, action: str, sentence: str) -> None:
    decision = decide(signals, Policy(), NOW)
    assert decision.action == action
    assert sentence in decision.sentence


def test_rollout_on_the_processor_only_freezes() -> None:
    signals = replace(READY, activities=(ROLLOUT,), trainer="running")
    assert decide(signals, Policy(rollout_yields=False), NOW).action is Action.FREEZE
    long = replace(signals, trainer="frozen", frozen_since=NOW - 9999)
    assert decide(long, Policy(rollout_yields=False), NOW).action is Action.FREEZE  # not thawed to leave


PARKS = Policy(parks=True)


@pytest.mark.parametrize("why", [{"activities": (ROLLOUT,)}, {"readings": (SHORT,)}])
def test_gpu_memory_is_moved_out_where_that_can_be_done(why: dict[str, tuple[Activity | Reading, ...]]) -> None:
    needed = replace(READY, trainer="running", **why)  # type: ignore[arg-type]
    assert decide(needed, PARKS, NOW).action is Action.PARK
    frozen = replace(needed, trainer="frozen", frozen_since=NOW - 5)  # paused already, its memory still in the way
    assert decide(frozen, PARKS, NOW).action is Action.PARK
    parked = replace(frozen, parked=True, frozen_since=NOW - 9999)
    assert decide(parked, PARKS, NOW).action is Action.FREEZE  # however long: to leave it would need the memory back
    assert decide(replace(parked, readings=(*parked.readings, CLOSING)), PARKS, NOW).action in (
        Action.YIELD,
        Action.FREEZE,
    )
    assert decide(replace(READY, trainer="frozen", parked=True), PARKS, NOW).action is Action.TRAIN


def test_transfers_obey_too() -> None:
    assert transfers_held(READY) == ""
    assert transfers_held(replace(READY, activities=(RECORDING,))) == "recording by alice"
    assert transfers_held(replace(READY, activities=(Activity("teleop", "bob", NOW),))) == "teleoperation by bob"
    assert (
        transfers_held(replace(READY, activities=(Activity("setup", "bob", NOW),))) == ""
    )  # a dialogue, no control loop
    assert transfers_held(replace(READY, readings=(BUSY, METERED))) == "network: metered"
    assert transfers_held(replace(READY, readings=(FULL,))) == "disk: 0.1 GB free"


def test_another_day_is_named() -> None:
    assert clock(AT_1402, NOW) == "14:02"
    assert clock(AT_1402 - 86400, NOW) == "3 Mar 14:02"


times = st.floats(NOW - 1e5, NOW + 1e5)
signals_ = st.builds(
    Signals,
    activities=st.lists(st.builds(Activity, st.sampled_from([*CLAIMS, "unheard of"]), st.text(min_size=1), times), max_size=2).map(tuple),
    override=st.none() | st.builds(Override, st.sampled_from(["pause", "now"]), st.just("alice"), times),
    trainer=st.sampled_from(["none", "running", "frozen"]),
    frozen_since=st.none() | times,
    parked=st.booleans(),
    task=st.none() | st.builds(TaskSignal, st.just("pick"), st.integers(0, 9), deaths=st.integers(0, 5), retry_at=times,
                               blocked=st.sampled_from(["", "fetching"])),
    runtime_missing=st.sampled_from(["", "no torch"]),
    enrolled=st.booleans(),
    federations=st.integers(0, 2),
    datasets=st.integers(0, 2),
    link=st.builds(LinkSignal, st.sampled_from(["connected", "waiting", "refused", "closed"]), st.text(), st.none() | times),
    no_task=st.sampled_from(["", "later"]),
    no_task_until=st.none() | times,
    readings=st.deferred(lambda: readings_),
    held_at=st.none() | times,
)  # fmt: skip
readings_ = st.lists(
    st.builds(Reading, st.sampled_from(["gpu", "power", "hours", "disk"]), st.just("so it is"), st.sampled_from(Level),
              uses=st.sampled_from([("train",), ("network",), ("train", "network")]), hard=st.booleans(), memory=st.booleans(), firm=st.booleans()),
    max_size=4,
).map(tuple)  # fmt: skip
policies = st.builds(Policy, freeze_max_s=st.floats(0, 1e4), rollout_yields=st.booleans(), parks=st.booleans())


@given(signals_, policies)
def test_whatever_is_known(signals: Signals, policy: Policy) -> None:
    decision = decide(signals, policy, NOW)
    assert decision.reason and decision.state and decision.rule and decision.waits_for
    if signals.activities:
        assert decision.action is not Action.TRAIN and decision.state == "paused"
    if any(a.kind == "recording" for a in signals.activities):
        # Neither started, nor woken up to write a checkpoint: only stopped in place.
        assert decision.action is (Action.IDLE if signals.trainer == "none" else Action.FREEZE)
    if signals.override and signals.override.kind == "pause" and signals.override.until > NOW:
        assert decision.action is not Action.TRAIN
    if decision.action in (Action.FREEZE, Action.PARK, Action.YIELD):
        assert signals.trainer != "none"
    if decision.action is Action.TRAIN:
        assert signals.task is not None
    if decision.action is Action.PARK:
        assert policy.parks and not signals.parked
    if decision.action is Action.IDLE:
        assert signals.trainer == "none"


RANK = {Action.TRAIN: 0, Action.FREEZE: 1, Action.IDLE: 1, Action.PARK: 2, Action.YIELD: 3}


@given(signals_, policies, st.integers(0, 3), st.sampled_from(Level))
def test_a_worse_reading_never_means_more_training(signals: Signals, policy: Policy, at: int, level: Level) -> None:
    if at >= len(signals.readings):
        return
    if signals.parked and signals.readings[at].memory:
        return  # what is parked cannot leave while its memory is in the way: it stays frozen instead
    worse = list(signals.readings)
    worse[at] = replace(worse[at], level=max(level, worse[at].level))
    after = replace(signals, readings=tuple(worse))
    assert RANK[decide(after, policy, NOW).action] >= RANK[decide(signals, policy, NOW).action]
    assert held_back(after) >= held_back(signals)
    assert bool(transfers_held(after)) >= bool(transfers_held(signals))


@given(signals_, policies)
def test_somebodys_use_of_the_machine_stops_training(signals: Signals, policy: Policy) -> None:
    stops = [r for r in signals.readings if r.level is Level.STOP and "train" in r.uses]
    told = signals.override is not None and signals.override.kind == "now" and signals.override.until > NOW
    if any(r.firm or not told for r in stops):
        assert decide(signals, policy, NOW).action is not Action.TRAIN


def simulate(days: float, step_s: float, signals_at: Callable[[float], Signals]) -> list[tuple[float, Action, str]]:
    """Run the arbiter's loop in virtual time: what it decided, each time that changed."""
    state, frozen_since, held_at = "none", None, None
    seen: list[tuple[float, Action, str]] = []
    for k in range(int(days * 86400 / step_s)):
        now = NOW + k * step_s
        signals = replace(signals_at(now), trainer=state, frozen_since=frozen_since, held_at=held_at)
        if held_back(signals):
            held_at = now
        decision = decide(signals, Policy(), now)
        if decision.action is Action.TRAIN:
            state, frozen_since = "running", None
        elif decision.action is Action.FREEZE and state == "running":
            state, frozen_since = "frozen", now
        elif decision.action in (Action.YIELD, Action.IDLE):
            state, frozen_since = "none", None
        if not seen or (decision.action, decision.reason) != seen[-1][1:]:
            seen.append((now, decision.action, decision.reason))
    return seen


def test_a_week() -> None:
    """Nights only, an owner who records in the evening and games at the weekend, and a fan of short busy spells."""
    hours = Windows(["Mon-Fri 19:00-07:00", "Sat,Sun"], "Europe/Berlin")
    spells = random.Random(7)
    busy_at = sorted(NOW + spells.uniform(0, 7 * 86400) for _ in range(300))

    def recording(now: float) -> bool:
        return time.localtime(now).tm_hour == 20 and time.localtime(now).tm_min < 40

    def busy(now: float) -> bool:
        at = bisect.bisect(busy_at, now)
        return at > 0 and now - busy_at[at - 1] < 15

    def signals_at(now: float) -> Signals:
        level = Level.STOP if busy(now) else Level.CLEAR
        activities = (Activity("recording", "alice", now),) if recording(now) else ()
        return Signals(task=TASK, activities=activities, readings=(hours.read(now), replace(BUSY, level=level)))

    seen = simulate(7, 5.0, signals_at)
    spans = [(a[0], b[0], a[1]) for a, b in itertools.pairwise(seen)]
    trained = sum(end - begin for begin, end, action in spans if action is Action.TRAIN)
    assert 70 * 3600 < trained < 108 * 3600  # of 108 hours that are open
    for begin, end, action in spans:
        if action is Action.TRAIN:
            samples = [begin + k * (end - begin - 1) / 20 for k in range(21)]
            assert not any(recording(t) or hours.read(t).level is Level.STOP for t in samples)
    paused_at = None
    for begin, _, action in spans:  # never two pauses of a busy machine within a minute
        if action is Action.TRAIN:
            assert paused_at is None or begin - paused_at >= 60 or recording(begin - 5)
            paused_at = None
        elif paused_at is None:
            paused_at = begin
    assert all(reason for _, _, reason in seen)


LEVELS = st.lists(st.tuples(st.sampled_from(Level), st.integers(1, 40)), min_size=1, max_size=25)


@given(LEVELS)
def test_it_never_flaps(spells: list[tuple[Level, int]]) -> None:
    """Whatever a signal does, read every five seconds: between a stop and the next start lie a minute without anything
    against training, and nothing trains while the signal says stop."""
    trace = [level for level, count in spells for _ in range(count)]
    seen = simulate(len(trace) * 5 / 86400, 5.0, lambda now: Signals(
        task=TASK, readings=(replace(BUSY, level=trace[min(round((now - NOW) / 5), len(trace) - 1)]),)
    ))  # fmt: skip
    for (begin, end, action), after in zip(
        [(a[0], b[0], a[1]) for a, b in itertools.pairwise(seen)], seen[1:], strict=True
    ):
        during = trace[round((begin - NOW) / 5) : round((end - NOW) / 5)]
        if action is Action.TRAIN:
            assert Level.STOP not in during
        elif after[1] is Action.TRAIN:
            quiet = trace[max(0, round((after[0] - NOW) / 5) - 11) : round((after[0] - NOW) / 5)]
            assert all(level is Level.CLEAR for level in quiet)
