"""The arbiter: what training may do right now, as a pure function of what is known.

`decide` takes signals, a policy and the time, and gives an action with its reason and what it waits for. It starts,
stops and asks nothing: the loop in training.py gathers the signals and carries the decision out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from zk0d.daemon.signals.reading import Level, Reading
from zk0d.moments import clock


class Action(StrEnum):
    """What the trainer process is to do: run; stop in place (SIGSTOP); stop, its GPU memory moved to the host;
    checkpoint and exit; not be there."""

    TRAIN = "train"
    FREEZE = "freeze"
    PARK = "park"
    YIELD = "yield"
    IDLE = "idle"


@dataclass(frozen=True)
class Activity:
    """Something a person does with the machine; `kind` is one of CLAIMS."""

    kind: str
    by: str
    since: float


@dataclass(frozen=True)
class Claim:
    """What an activity takes of the machine. `rhythm`: a control loop that no transfer may disturb either; `gpu`: it
    computes there, so the trainer's memory may be in its way. `words` name it to a person."""

    words: str
    rhythm: bool = True
    gpu: bool = False


CLAIMS = {
    "recording": Claim("recording"),
    "rollout": Claim("rollout", gpu=True),
    "teleop": Claim("teleoperation"),
    "doctor": Claim("check-up of the arms"),
    "calibrate": Claim("calibration", rhythm=False),
    "setup": Claim("servo set-up", rhythm=False),
}


def claim(activity: Activity) -> Claim:
    """One that is not known takes all there is."""
    return CLAIMS.get(activity.kind) or Claim(activity.kind, gpu=True)


@dataclass(frozen=True)
class Override:
    """What a person told training: `kind` "pause" or "now", until a time (seconds since the epoch)."""

    kind: str
    by: str
    until: float


@dataclass(frozen=True)
class TaskSignal:
    """The task at hand. `blocked` says why it cannot run yet ("fetching version 3"), empty when it can."""

    federation: str
    version: int
    step: int = 0
    steps: int = 0
    deaths: int = 0
    retry_at: float = 0.0
    blocked: str = ""
    waits_for: str = ""
    left_s: float | None = None
    """Seconds of training left, from measured steps; None before any was measured."""
    due_at: float | None = None
    """The hub's deadline for its update, where there is one."""


@dataclass(frozen=True)
class LinkSignal:
    """The link as the arbiter sees it: `phase` of LinkState, the `reason` it gives, and the next attempt if any."""

    phase: str = "connected"
    reason: str = ""
    next_attempt: float | None = None


@dataclass(frozen=True)
class Signals:
    """All that is known now. `trainer` is "none", "running" or "frozen" (since `frozen_since`)."""

    activities: tuple[Activity, ...] = ()
    override: Override | None = None
    trainer: str = "none"
    frozen_since: float | None = None
    parked: bool = False
    """It is frozen, and its GPU memory is on the host."""
    task: TaskSignal | None = None
    runtime_missing: str = ""
    runtime_hint: str = ""
    enrolled: bool = True
    federations: int = 1
    datasets: int = 1
    link: LinkSignal = LinkSignal()
    no_task: str = ""
    """The hub's (or our own) word why there is no task, and when to ask again."""
    no_task_until: float | None = None
    readings: tuple[Reading, ...] = ()
    """What the machine and its owner's other work say (zk0d/daemon/signals)."""
    held_at: float | None = None
    """When such a reading last held training back; it goes on only after the machine was quiet for a while."""


@dataclass(frozen=True)
class Policy:
    """What the operator chose. `rollout_yields`: a rollout needs the trainer's GPU memory; freezing is not enough.
    `parks`: that memory can be moved to the host instead of having the trainer leave.

    `settle_s`: seconds without a reading against training before it goes on, so that it does not flap.
    """

    freeze_max_s: float = 600.0
    rollout_yields: bool = True
    parks: bool = False
    tries: int = 5
    settle_s: float = 60.0


@dataclass(frozen=True)
class Decision:
    """An action, the word for the state it makes ("training", "paused", "idle"), why, what it waits for, the rule."""

    action: Action
    state: str
    reason: str
    waits_for: str
    rule: str

    @property
    def sentence(self) -> str:
        """One sentence for a person: "paused: recording by alice since 14:02; resumes when it ends"."""
        return f"{self.state}: {self.reason}" + (f"; {self.waits_for}" if self.waits_for else "")


def decide(signals: Signals, policy: Policy, now: float) -> Decision:
    """What training does at `now` (seconds since the epoch). Rules in order; the first that applies wins.

    A person's activity outranks an override; `now` outranks readings that are not firm, and the wait after them.
    """
    for rule in (_activity, _pause, _runtime, _nothing_to_do, _blocked, _machine):
        decision = rule(signals, policy, now)
        if decision is not None:
            return decision
    assert signals.task is not None
    task = signals.task
    done = f", step {task.step} of {task.steps}" if task.steps else ""
    if task.left_s is not None:
        done += f", {duration(task.left_s)} left"
    forced = signals.override
    told = f" (told by {forced.by} until {clock(forced.until, now)})" if _active(forced, "now", now) and forced else ""
    return Decision(
        Action.TRAIN,
        "training",
        f"federation {task.federation}, version {task.version}{done}{told}",
        "then the update goes to the hub",
        "train",
    )


def duration(seconds: float) -> str:
    """Roughly, as a person says it."""
    if seconds < 90:
        return f"about {max(1, round(seconds / 10)) * 10} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def _active(override: Override | None, kind: str, now: float) -> bool:
    return override is not None and override.kind == kind and override.until > now


def _halt(signals: Signals, policy: Policy, now: float, *, hard: bool, lasts_s: float, memory: bool = False) -> Action:
    """Freeze what runs; park it where its GPU `memory` is needed; yield where it must go (`hard`), where it cannot be
    parked or the pause is long; nothing when nothing runs. What is parked is not fetched back while memory is needed.
    """
    if signals.trainer == "none":
        return Action.IDLE
    if memory and not hard:
        return Action.FREEZE if signals.parked else Action.PARK if policy.parks else Action.YIELD
    frozen_s = now - signals.frozen_since if signals.frozen_since is not None else 0.0
    return Action.YIELD if hard or max(frozen_s, lasts_s) > policy.freeze_max_s else Action.FREEZE


def _activity(signals: Signals, policy: Policy, now: float) -> Decision | None:
    if not signals.activities:
        return None
    # What a person does never yields the trainer unless it needs the memory: thawing it for a checkpoint disturbs.
    recording = [a for a in signals.activities if a.kind == "recording"]
    first = min(recording or signals.activities, key=lambda a: a.since)
    if recording or not policy.rollout_yields or not any(claim(a).gpu for a in signals.activities):
        action = Action.IDLE if signals.trainer == "none" else Action.FREEZE
    else:
        action = _halt(signals, policy, now, hard=False, lasts_s=0.0, memory=True)
    reason = f"{claim(first).words} by {first.by} since {clock(first.since, now)}"
    return Decision(action, "paused", reason, "resumes when it ends", first.kind)


def _pause(signals: Signals, policy: Policy, now: float) -> Decision | None:
    override = signals.override
    if override is None or not _active(override, "pause", now):
        return None
    action = _halt(signals, policy, now, hard=False, lasts_s=override.until - now)
    until = f"resumes at {clock(override.until, now)}, or with `zk0ctl train resume`"
    return Decision(action, "paused", f"by {override.by}", until, "pause")


def _runtime(signals: Signals, policy: Policy, now: float) -> Decision | None:
    if not signals.runtime_missing or signals.trainer != "none":
        return None
    return Decision(Action.IDLE, "idle", signals.runtime_missing, f"waits for {signals.runtime_hint}", "runtime")


def _nothing_to_do(signals: Signals, policy: Policy, now: float) -> Decision | None:
    if signals.task is not None:
        return None
    # A trainer without a task has lost its purpose (its task was given up): let it end by itself.
    action = Action.IDLE if signals.trainer == "none" else Action.YIELD

    def idle(rule: str, reason: str, waits_for: str) -> Decision:
        return Decision(action, "idle", reason, waits_for, rule)

    if not signals.enrolled:
        return idle("enrol", "not enrolled at a hub", "waits for `zk0ctl enroll`")
    if not signals.federations:
        return idle("join", "member of no federation", "waits for `zk0ctl federation join`")
    if not signals.datasets:
        return idle("datasets", "no dataset to train on", "waits for `zk0ctl record` or `zk0ctl dataset add`")
    if signals.link.phase != "connected":
        waits = "waits for the hub"
        if signals.link.next_attempt is not None:
            waits += f", next attempt {clock(signals.link.next_attempt, now)}"
        why = f" ({signals.link.reason})" if signals.link.reason else ""
        return idle("link", f"no task at hand and the hub is not reached{why}", waits)
    waits = "asks again when the hub publishes a version"
    if signals.no_task_until is not None:
        waits = (
            f"asks again at {clock(signals.no_task_until, now)}" if signals.no_task_until > now else "asks again now"
        )
    return idle("no task", signals.no_task or "the hub has not been asked for a task yet", waits)


def _blocked(signals: Signals, policy: Policy, now: float) -> Decision | None:
    task = signals.task
    assert task is not None
    if signals.trainer != "none":
        return None
    if task.blocked:
        return Decision(Action.IDLE, "idle", task.blocked, task.waits_for or "trains after that", "blocked")
    if task.retry_at > now and not _active(signals.override, "now", now):
        reason = f"the trainer died ({task.deaths} of {policy.tries} tries)"
        return Decision(Action.IDLE, "idle", reason, f"starts again at {clock(task.retry_at, now)}", "retry")
    return None


def _machine(signals: Signals, policy: Policy, now: float) -> Decision | None:
    """Readings against training. One that runs stays through a wary reading; none starts on it. Stopping is at once,
    going on waits until nothing was against it for `settle_s`: so there is never more than one pause in that time."""
    told = _active(signals.override, "now", now)
    staying = signals.trainer == "running"
    against = [
        r
        for r in signals.readings
        if "train" in r.uses and r.level >= (Level.STOP if staying else Level.WARY) and (r.firm or not told)
    ]
    if against:
        worst = max(against, key=lambda r: (r.hard and r.level is Level.STOP, r.level))
        stops = [r for r in against if r.level is Level.STOP]
        hard, memory = any(r.hard for r in stops), any(r.memory for r in stops)
        action = _halt(signals, policy, now, hard=hard, lasts_s=0.0, memory=memory)
        return Decision(action, "paused", f"{worst.name}: {worst.says}", worst.waits, worst.name)
    held = signals.held_at
    if not staying and not told and held is not None and 0 <= now - held < policy.settle_s:
        action = _halt(signals, policy, now, hard=False, lasts_s=0.0)
        waits = f"goes on at {clock(held + policy.settle_s, now)} if it stays so"
        return Decision(action, "paused", "the machine has only just become quiet", waits, "settling")
    return None


def held_back(signals: Signals) -> bool:
    """Whether a reading holds training back now: what `held_at` remembers."""
    level = Level.STOP if signals.trainer == "running" else Level.WARY
    return any("train" in r.uses and r.level >= level for r in signals.readings)


def transfers_held(signals: Signals) -> str:
    """Why models and updates are not to be moved now; empty when they may be."""
    for activity in signals.activities:
        if claim(activity).rhythm:
            return f"{claim(activity).words} by {activity.by}"
    for reading in signals.readings:
        if "network" in reading.uses and reading.level is Level.STOP:
            return f"{reading.name}: {reading.says}"
    return ""
