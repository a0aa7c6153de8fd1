"""The loop around the arbiter: gathers signals, asks `decide`, and freezes, thaws, starts or yields the trainer.

One trainer, for the task at hand. A trainer that dies is started again from its checkpoint with growing pauses, and the
task is given up visibly after a number of tries. Not for getting tasks or sending updates: that is uplink.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import structlog

from zk0d.daemon import trainer_job
from zk0d.daemon.arbiter import (
    CLAIMS,
    Action,
    Activity,
    Decision,
    LinkSignal,
    Override,
    Policy,
    Signals,
    TaskSignal,
    decide,
    duration,
    held_back,
    transfers_held,
)
from zk0d.daemon.config import Config
from zk0d.daemon.pace import Plan
from zk0d.daemon.paces import Paces, due_at
from zk0d.daemon.parking import Parking
from zk0d.daemon.signals.reading import Reading
from zk0d.daemon.store import Store, Task
from zk0d.daemon.workers import GRACE_S, SAVE_GRACE_S, Workers
from zk0d.errors import WorkerError, Zk0Error
from zk0d.moments import clock
from zk0d.supervise import Worker

log = structlog.get_logger("training")

TICK_S = 1.0
_BACKOFF_S = (1.0, 300.0)
_RUNTIME_CHECK_S = 30.0
_FINISH_S = 20.0
"""Seconds that a finished training gets at the daemon's end to become a kept update."""


class TaskSource(Protocol):
    """What the loop needs of the uplink."""

    def job(self, task: Task) -> dict[str, Any]: ...
    def blocked(self, task: Task) -> tuple[str, str]: ...
    async def trained(self, task: Task, result: dict[str, Any]) -> None: ...
    def given_up(self, task: Task, reason: str) -> None: ...
    def put_off(self, task: Task, reason: str, until: float) -> None: ...
    def link_signal(self) -> LinkSignal: ...
    def no_task(self) -> tuple[str, float | None]: ...


class Training:
    """Runs the trainer as the arbiter decides. `decision` is the latest; `progress` the trainer's latest figures."""

    def __init__(
        self,
        store: Store,
        config: Config,
        workers: Workers,
        source: TaskSource,
        activities: Callable[[], tuple[Activity, ...]],
        on_decision: Callable[[Decision], None],
        readings: Callable[[], tuple[Reading, ...]] = tuple,
        paces: Paces | None = None,
    ) -> None:
        self.policy = Policy(
            freeze_max_s=config["train", "freeze_max_s"],
            rollout_yields=config["train", "device"] != "cpu",
            parks=config["train", "device"] != "cpu" and config["train", "gpu_memory"] == "auto",
            tries=config["train", "tries"],
            settle_s=config["idle", "settle_s"],
        )
        self.progress: dict[str, Any] = {}
        self.paces = paces or Paces(store)
        self.parking = Parking(workers, store, config["train", "gpu_memory"])
        self._store, self._config, self._workers, self._source = store, config, workers, source
        self._activities, self._on_decision, self._readings = activities, on_decision, readings
        self._held_at: float | None = None
        self._finishing = False
        self._worker: Worker | None = None
        self._starting = False
        self._yielding: asyncio.Task[None] | None = None
        self._run_task: asyncio.Task[None] | None = None
        self._frozen_since: float | None = None
        self._closing = False
        self._told = ("", "")
        self._concluded = ""
        self._wake = asyncio.Event()
        self._runtime: tuple[float, str] = (-_RUNTIME_CHECK_S, "")
        self.decision = decide(self.signals(), self.policy, time.time())

    # -- signals -----------------------------------------------------------------------------------------------------

    def signals(self) -> Signals:
        """Everything that is known now."""
        task = self._store.task_at_hand()
        no_task, until = self._source.no_task()
        return Signals(
            activities=self._activities(),
            override=self.override(),
            trainer=self.trainer_state,
            frozen_since=self._frozen_since,
            parked=self.parking.holds(self._worker),
            task=self._task_signal(task) if task else None,
            runtime_missing=self._runtime_missing(),
            runtime_hint=self._workers.hint,
            enrolled=self._store.hub() is not None,
            federations=len(self._store.federations()),
            datasets=sum(d.train for d in self._store.datasets()),
            link=self._source.link_signal(),
            no_task=no_task,
            no_task_until=until,
            readings=self._readings(),
            held_at=self._held_at,
        )

    def transfers_held(self) -> str:
        """Why models and updates are not to be moved now; empty when they may be."""
        return transfers_held(self.signals())

    @property
    def trainer_state(self) -> str:
        if self._worker is None:
            return "running" if self._starting else "none"
        return "frozen" if self._worker.frozen else "running"

    def override(self) -> Override | None:
        """The operator's override, None once its time is over."""
        value = self._store.get("override")
        if value is None or value["until"] <= time.time():
            return None
        return Override(value["kind"], value["by"], value["until"])

    def set_override(self, kind: str | None, by: str, for_s: float = 0.0) -> None:
        """Set or clear (`kind` None) the override; `now` also forgives the trainer's earlier deaths."""
        self._store.put("override", None if kind is None else {"kind": kind, "by": by, "until": time.time() + for_s})
        if kind == "now" and (task := self._store.task_at_hand()):
            self._store.set_task(task.id, deaths=0, retry_at=0.0)
        self._store.event("train", f"{by}: train {kind or 'resume'}" + (f" for {for_s:.0f} s" if for_s else ""))
        self.tick()

    def _task_signal(self, task: Task) -> TaskSignal:
        blocked, waits = self._source.blocked(task)
        return TaskSignal(
            task.federation,
            task.version,
            int(self.progress.get("step", task.step)),
            int(task.body.get("local_steps", 0)),
            task.deaths,
            task.retry_at,
            blocked,
            waits,
            self.paces.left_s(task),
            due_at(task),
        )

    def _runtime_missing(self) -> str:
        now = time.monotonic()
        if now - self._runtime[0] >= _RUNTIME_CHECK_S:
            self._runtime = (now, self._workers.runtime_missing())
        return self._workers.trouble or self._runtime[1]

    # -- the loop ----------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something changed: decide again soon."""
        self._wake.set()

    async def run(self, alive: Callable[[], None]) -> None:
        """Decide at every change and every second, until cancelled; `alive` is called at each turn (the watchdog)."""
        while True:
            try:
                self.tick()
                alive()
            except (sqlite3.Error, OSError, Zk0Error):
                log.exception("a turn failed")  # a full disk: recording and status must go on, and room may be made
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), TICK_S)
            self._wake.clear()

    def halt(self) -> None:
        """A person begins something: the trainer stops before anything is looked up, decided or written.

        The `tick` that follows decides what is to become of it.
        """
        if self._worker is not None and not self._worker.frozen and self._yielding is None and not self.parking.busy():
            self._freeze(self._worker)

    def tick(self) -> Decision:
        """Decide and act at once: when it returns, a trainer that must not run has got its SIGSTOP."""
        signals, now = self.signals(), time.time()
        if held_back(signals):
            self._held_at = now
        decision = decide(signals, self.policy, now)
        changed = (decision.action, decision.rule, decision.reason) != (
            self.decision.action, self.decision.rule, self.decision.reason
        )  # fmt: skip
        self.decision = decision
        if not self._closing:
            self._carry_out(decision)
        if (decision.state, decision.rule) != self._told:
            self._told = (decision.state, decision.rule)
            with contextlib.suppress(sqlite3.Error):  # a full disk: whoever records goes on
                self._store.event("decision", decision.sentence, action=decision.action.value, rule=decision.rule)
        if changed:
            self._on_decision(decision)
        return decision

    def _carry_out(self, decision: Decision) -> None:
        worker = self._worker
        if self.parking.busy():
            return  # it decides again when the memory has moved
        if worker is None:
            if decision.action is Action.TRAIN and not self._starting:
                self._start()
        elif decision.action is Action.TRAIN:
            if self.parking.holds(worker):
                self.parking.fetch(worker, self.wake)
            elif worker.frozen and self._yielding is None:
                worker.thaw()
            self._frozen_since = None
            self._conclude(worker)
        elif decision.action is Action.FREEZE:
            if self._yielding is not None:  # it goes on leaving when it is thawed: the person does not wait for that
                self._yielding.cancel()
                self._yielding = None
                worker.frozen = False
            if not worker.frozen:
                self._freeze(worker)
        elif self._yielding is not None:
            return
        elif self.parking.holds(worker):
            self.parking.fetch(worker, self.wake)  # to leave it must be able to save
        elif decision.action is Action.PARK:
            self._frozen_since = self._frozen_since or time.time()
            self.paces.disturbed()
            self.parking.park(worker, self._parked)
        else:
            grace_s = GRACE_S if decision.rule in CLAIMS else max(SAVE_GRACE_S, 2 * self.paces.save_s())
            self._workers.hurry(worker.pid)
            self._yielding = asyncio.create_task(worker.stop(grace_s, cmd="yield"))

    def _freeze(self, worker: Worker) -> None:
        worker.freeze()
        self._frozen_since = time.time()
        self.paces.disturbed()

    def _parked(self) -> None:
        """Its memory is on the host, or cannot be moved on this machine, and never will be."""
        self.policy = replace(self.policy, parks=self.policy.parks and self.parking.possible)
        self.wake()

    def _conclude(self, worker: Worker) -> None:
        """Have the trainer end with the steps it has, where going on would make its update late."""
        task = self._store.task_at_hand()
        if task is not None and task.id != self._concluded and self.paces.conclude_now(task, time.time()):
            self._concluded = task.id
            self._store.event("training", f"task {task.id} ends here to be in time for the hub")
            worker.send("conclude")

    # -- the trainer -------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        task = self._store.task_at_hand()
        assert task is not None  # "train" is decided only with a task at hand
        due = due_at(task)
        if due is not None and self.paces.plan(task, time.time()) is Plan.NOT:
            left = duration(self.paces.left_s(task) or 0.0)
            reason = f"it takes {left}, and the hub's deadline is {clock(due, time.time())}"
            self._source.put_off(task, reason, due)
            return
        self._starting = True
        self._run_task = asyncio.create_task(self._train(task), name="trainer")

    async def _train(self, task: Task) -> None:
        self.progress = {"step": task.step, "steps": task.body.get("local_steps", 0)}
        self.paces.begin(task)
        try:
            worker = await self._workers.start(
                "trainer",
                trainer_job.folder(task),
                trainer_job.job(self._source.job(task), self._config, self._workers.work, task),
                self._on_event(task),
            )
        except (Zk0Error, OSError) as error:
            self._starting = False
            made = error if isinstance(error, Zk0Error) else WorkerError(f"the trainer cannot be started: {error}")
            self._died(task, made)
            return
        self._worker, self._starting = worker, False
        self.tick()  # the person may have come while it started
        try:
            result = await worker.wait()
        except WorkerError as error:
            killed = self.parking.busy()  # by us: it did not come back from the host
            self._ended()
            if self._closing or self._yielded() or killed:
                return
            self._died(task, error)
            return
        self._ended()
        self._yielded()
        if result.get("finished"):  # also while closing: the update is kept, and sent next time
            await self._finish(task, result)
        else:
            log.info("trainer left after its checkpoint", task=task.id)
        self.wake()

    def _ended(self) -> None:
        self._worker, self._frozen_since = None, None
        if not self.parking.busy():
            self.parking.parked = None
        with contextlib.suppress(sqlite3.Error):
            self.paces.end()

    def _yielded(self) -> bool:
        was, self._yielding = self._yielding is not None, None
        return was

    async def _finish(self, task: Task, result: dict[str, Any]) -> None:
        self._finishing = True
        try:
            await self._source.trained(task, result)
        except (Zk0Error, OSError) as error:
            made = error if isinstance(error, Zk0Error) else WorkerError(f"the update cannot be kept: {error}")
            self._died(task, made)
            return
        finally:
            self._finishing = False
        self.progress = {}
        shutil.rmtree(self._workers.work / "trainer" / trainer_job.folder(task), ignore_errors=True)

    def _on_event(self, task: Task) -> Callable[[dict[str, Any]], None]:
        def on_event(event: dict[str, Any]) -> None:
            self.paces.event(event)
            if event["event"] == "ready" and event.get("device") == "cpu":  # whose memory is in nobody's way
                self.policy = replace(self.policy, rollout_yields=False, parks=False)
            if event["event"] == "progress":
                self.progress = {k: v for k, v in event.items() if k != "event"}
            elif event["event"] == "checkpoint":
                self._store.set_task(task.id, step=int(event.get("step", 0)))

        return on_event

    def _died(self, task: Task, error: Zk0Error) -> None:
        """Count the death; start again later, or give the task up."""
        deaths = (self._store.task(task.id) or task).deaths + 1
        about = {"federation": task.federation, "version": task.version, "task": task.id}
        log.warning("trainer died", task=task.id, deaths=deaths, tries=self.policy.tries, error=str(error))
        if deaths >= self.policy.tries:
            reason = f"the trainer died {deaths} times, last: {error.message}"
            self._store.set_task(task.id, state="given_up", deaths=deaths, reason=reason)
            self._store.event("training", f"task {task.id} given up: {reason}", **about)
            self._source.given_up(task, reason)
        else:
            pause = min(_BACKOFF_S[1], _BACKOFF_S[0] * 2 ** (deaths - 1)) * random.uniform(0.5, 1.0)
            self._store.set_task(task.id, deaths=deaths, retry_at=time.time() + pause, reason=error.message)
            text = f"the trainer died ({deaths} of {self.policy.tries}): {error.message}"
            self._store.event("training", text, **about)
        self.progress = {}
        self.wake()

    def begin_close(self) -> None:
        """Start no trainer any more; one that ends now has not died."""
        self._closing = True

    async def close(self) -> None:
        """Wait for what follows the trainer's end."""
        if self._run_task is not None:
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(asyncio.shield(self._run_task), _FINISH_S if self._finishing else 1.0)
