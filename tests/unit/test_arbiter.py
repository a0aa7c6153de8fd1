"""The arbiter: every rule by table, and what must hold for any signals."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0d.daemon.arbiter import (
    Action,
    Activity,
    LinkSignal,
    Override,
    Policy,
    Signals,
    TaskSignal,
    clock,
    decide,
)

NOW = time.mktime((2026, 3, 4, 15, 0, 0, 0, 0, -1))
AT_1402 = NOW - 58 * 60
RECORDING = Activity("recording", "alice", AT_1402)
ROLLOUT = Activity("rollout", "bob", AT_1402)
TASK = TaskSignal("pick", 3, step=40, steps=100)
PAUSE = Override("pause", "alice", NOW + 120)
READY = Signals(task=TASK)

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


def test_another_day_is_named() -> None:
    assert clock(AT_1402, NOW) == "14:02"
    assert clock(AT_1402 - 86400, NOW) == "3 Mar 14:02"


times = st.floats(NOW - 1e5, NOW + 1e5)
signals_ = st.builds(
    Signals,
    activities=st.lists(st.builds(Activity, st.sampled_from(["recording", "rollout"]), st.text(min_size=1), times), max_size=2).map(tuple),
    override=st.none() | st.builds(Override, st.sampled_from(["pause", "now"]), st.just("alice"), times),
    trainer=st.sampled_from(["none", "running", "frozen"]),
    frozen_since=st.none() | times,
    task=st.none() | st.builds(TaskSignal, st.just("pick"), st.integers(0, 9), deaths=st.integers(0, 5), retry_at=times,
                               blocked=st.sampled_from(["", "fetching"])),
    runtime_missing=st.sampled_from(["", "no torch"]),
    enrolled=st.booleans(),
    federations=st.integers(0, 2),
    datasets=st.integers(0, 2),
    link=st.builds(LinkSignal, st.sampled_from(["connected", "waiting", "refused", "closed"]), st.text(), st.none() | times),
    no_task=st.sampled_from(["", "later"]),
    no_task_until=st.none() | times,
)  # fmt: skip
policies = st.builds(Policy, freeze_max_s=st.floats(0, 1e4), rollout_yields=st.booleans())


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
    if decision.action in (Action.FREEZE, Action.YIELD):
        assert signals.trainer != "none"
    if decision.action is Action.TRAIN:
        assert signals.task is not None
    if decision.action is Action.IDLE:
        assert signals.trainer == "none"
