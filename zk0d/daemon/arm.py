"""Who holds the arm: one session at a time (recording, rollout, calibration …), each by a worker process.

A session goes on when its caller leaves, and anyone can steer it (`control`). Not for what a session does (sessions.py,
rollouts.py, robot_ops.py), nor for training, which steps aside because `activities` says that somebody is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from zk0d.daemon.arbiter import Activity
from zk0d.daemon.config import Config
from zk0d.daemon.quality import keep_out
from zk0d.daemon.robot_table import SIDES, check_robot, is_virtual, pairs
from zk0d.daemon.store import Store
from zk0d.daemon.torque import SETTLE_S, Torque, after_death, left_behind
from zk0d.daemon.workers import ARM_GRACE_S, Workers
from zk0d.errors import LinkClosedError, LinkLostError, RobotError, UsageError, WorkerError
from zk0d.moments import clock
from zk0d.supervise import Worker

if TYPE_CHECKING:
    from zk0d.control_server import ControlConnection

Emit = Callable[..., Awaitable[None]]
log = structlog.get_logger("arm")

LET_GO = "arm_let_go"
"""The store's key of the last release: when and why; None once an arm has been opened again."""
CONTROLS = ("next", "discard", "rerecord", "pause", "resume", "success", "failure", "finish", "stop")
_ONLY = {
    "recording": {"discard", "rerecord", "pause", "resume"},
    "rollout": {"discard", "success", "failure"},
}
"""Controls that only some kinds of session know; the others all do."""
_EXPECT_S = 2.0
"""Seconds for which an announced recording holds the trainer, should its request never come."""

_LOOK_S = 0.05
"""How soon whoever waits for the arm notices that the session is not to begin any more."""
_SAVE_S = 60.0
"""Seconds that a worker gets to end well: takes are saved, the arm goes to rest, servos get their values back."""


@dataclass(eq=False)
class Live:
    """The session that holds the arm now."""

    kind: str
    by: str
    since: float
    dataset: str = ""
    goal: int = 0
    saved: int = 0
    session: int = 0
    """Its row in the store; 0 for a rollout."""
    first: int = 0
    adopt: str = ""
    """Name of the worker that an earlier daemon started and that is to be taken over."""
    progress: dict[str, Any] = field(default_factory=dict)
    robot: dict[str, Any] = field(default_factory=dict)
    """The `[robot]` table that its worker opens."""
    worker: Worker | None = None
    stopping: bool = False
    why: str = ""
    """Who or what ended it early."""
    gone: Callable[[], bool] = lambda: False
    """Whether whoever asked for it has left. A session goes on without them, but does not begin."""
    asker: tuple[int, int] = (0, 0)
    """Process and user of the program that asked for it."""

    @classmethod
    def asked(cls, kind: str, connection: ControlConnection) -> Live:
        """What somebody asks for over the control socket."""
        return cls(kind, connection.user, time.time(), gone=connection.closed.is_set, asker=connection.asker)

    @property
    def worker_name(self) -> str:
        return f"{int(self.since * 1000):x}"


class Arm:
    """Holds the arm for one session at a time, and runs its workers."""

    def __init__(
        self,
        store: Store,
        config: Config,
        workers: Workers,
        halt: Callable[[], None],
        on_change: Callable[[], None],
    ) -> None:
        """`halt` stops the trainer at once, before `on_change` has it decided what becomes of it."""
        self.live: Live | None = None
        self.leaving = False
        """The daemon ends, and the recording that runs does not: the next daemon takes it over."""
        self.torque = Torque(store)
        self._closing = False
        self._letting_go: asyncio.Task[Any] | None = None
        self.store, self._config, self.workers = store, config, workers
        self._halt, self._on_change = halt, on_change
        self._tasks: set[asyncio.Task[Any]] = set()
        self._expected: Activity | None = None
        self._asked: list[Live] = []

    def activities(self) -> tuple[Activity, ...]:
        """For the arbiter."""
        if self.live is not None:
            return (Activity(self.live.kind, self.live.by, self.live.since),)
        return () if self._expected is None else (self._expected,)

    def expect(self, by: str) -> None:
        """Somebody typed `zk0ctl record`: its request follows when its arguments are read. Make way already."""
        self._halt()
        expected = self._expected = Activity("recording", by, time.time())
        self._on_change()

        def over() -> None:
            if self._expected is expected:
                self.refused()

        asyncio.get_running_loop().call_later(_EXPECT_S, over)

    def refused(self) -> None:
        """What was announced does not come."""
        if self._expected is not None:
            self._expected = None
            self._on_change()

    @contextlib.contextmanager
    def waited_for(self, live: Live) -> Iterator[None]:
        """While somebody waits for the result of `live`: before it holds the arm, too, a `stop` is meant for it."""
        self._asked.append(live)
        try:
            yield
        finally:
            self._asked.remove(live)

    def call_off(self, why: str) -> None:
        """None of the sessions that are waited for begins: they wait for the arm, a model, or takes to be saved."""
        self._call_off([live for live in self._asked if live is not self.live], why)

    @staticmethod
    def _call_off(waiting: list[Live], why: str) -> None:
        for live in waiting:
            live.stopping, live.why = True, why

    async def beforehand[T](self, live: Live, work: Coroutine[Any, Any, T]) -> T:
        """Do what comes before `live` can begin. Raises as `_not_begun` does as soon as it is not to begin any more;
        `work` then goes on by itself."""
        doing: asyncio.Task[T] = self.background(work)
        doing.add_done_callback(lambda task: task.cancelled() or task.exception())  # heard, also where nobody asks
        while not doing.done():
            self._not_begun(live)
            await asyncio.wait({doing}, timeout=_LOOK_S)
        return doing.result()

    def _not_begun(self, live: Live) -> None:
        """Raises RobotError when `live` was told to end, LinkLostError when nobody is left to watch it begin, and
        LinkClosedError when zk0d ends."""
        if self._closing:
            raise LinkClosedError(f"zk0d ends, and the {live.kind} does not begin", "start it again")
        if live.stopping:
            raise RobotError(f"the {live.kind} was {live.why or 'ended'} before it began", "nothing was moved")
        if live.gone():
            text = f"the {live.kind} that {live.by} asked for did not begin: they had left"
            self.store.event(live.kind, text)
            raise LinkLostError(text)

    def hold(self, live: Live) -> None:
        """Begin `live`. Raises RobotError when another session has the arm; and as `_not_begun` does."""
        self._not_begun(live)
        if self.live is not None:
            other = self.live
            raise RobotError(
                f"the arm is in use: {other.kind} by {other.by} since {clock(other.since, time.time())}"
                + (f" (dataset {other.dataset})" if other.dataset else ""),
                "wait for it, or end it with `zk0ctl record finish`",
            )
        self._halt()  # before the first motor is touched
        self.live, self._expected = live, None
        self._on_change()

    def release(self) -> None:
        self.live = None
        self._on_change()

    def background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `work` to its end; `close` waits for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def independent(self, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        """Run `work` to its end even if the caller is cancelled or leaves."""
        return await asyncio.shield(self.background(work))

    def control(self, action: str, note: str = "", asker: tuple[int, int] | None = None) -> dict[str, Any]:
        """Steer the running session: next, discard, finish, stop. With `asker` only the one that this program asked
        for: a Ctrl-C must not end another person's."""
        if action not in CONTROLS:
            raise UsageError(f"record_control {action!r} is not known", f"one of {', '.join(CONTROLS)}")
        live = self.live
        waiting = [one for one in self._asked if one is not live and asker in (None, one.asker)]
        if asker is not None and live is not None and live.asker != asker:
            live = None
        if action in ("stop", "finish") and waiting and (live is None or live.kind == "release"):
            self._call_off(waiting, f"told to {action}")
            return self._told(waiting[-1])
        if live is None:
            raise RobotError(
                "nothing is being recorded, and nothing else has the arm",
                "start with `zk0ctl record --dataset NAME --task TEXT --episodes N`, rollout, or robot teleop",
            )
        special = set().union(*_ONLY.values())
        if action in special and action not in _ONLY.get(live.kind, ()):
            raise UsageError(f"a {live.kind} knows no {action}", "next, finish and stop work")
        if action in ("stop", "finish"):
            live.stopping, live.why = True, f"told to {action}"
        if live.worker is not None:
            if action == "stop":
                idle = live.kind == "recording" and live.worker.last.get("event") in (None, "ready")
                self.background(live.worker.stop(ARM_GRACE_S if idle else _SAVE_S, by="person"))
            else:
                live.worker.send(action, **({"note": note} if note else {}))
        return self._told(live)

    @staticmethod
    def _told(live: Live) -> dict[str, Any]:
        return {"kind": live.kind, "by": live.by, "dataset": live.dataset, "saved": live.saved, "goal": live.goal}

    def begin_close(self) -> None:
        """Start no worker any more; the session that runs is ending."""
        self._closing = True
        if self.live is not None and self.live.kind == "recording" and self.workers.systemd is not None:
            self.leaving = True  # the recorder is a unit of its own; the next daemon takes it over
        elif self.live is not None:
            self.live.stopping, self.live.why = True, "zk0d was told to end"

    async def close(self) -> None:
        """Wait for the session's end, so that its caller gets what was saved."""
        if self.leaving:
            return
        pending = [t for t in self._tasks if not t.done()]
        if pending:
            await asyncio.wait(pending, timeout=1.0)

    def robot(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """The `[robot]` table with a request's `overrides`. Raises when no follower is named."""
        own = check_robot({k: v for k, v in overrides.items() if v}, "request")
        robot = copy.deepcopy({**self._config.robot, **own})
        if own.get("follower"):  # one arm, named for this session, instead of two pairs
            robot = {k: v for k, v in robot.items() if k not in SIDES}
        if not all(pair.get("follower") for pair in pairs(robot)):
            raise RobotError(
                "no arm is configured",
                "set [robot] follower in zk0d.toml, or give --follower /dev/ttyACM0 (or virtual:PickLift)",
            )
        if is_virtual(robot):
            for pair in pairs(robot):
                pair["leader"] = pair.get("leader") or "expert"
        return robot

    def _cared(self, event: dict[str, Any]) -> None:
        """The worker has warned of a servo, slowed the arm or let it go: into history, journal and status."""
        level, text = str(event.get("level")), str(event.get("text"))
        words = {"slow": f"the arm is slowed: {text}", "release": f"the arm was let go: {text}"}
        self.store.event("care", words.get(level, text))
        log.warning("care for the arm", level=level, joint=event.get("joint"), reason=text)
        if level == "release":
            self.store.put(LET_GO, {"at": time.time(), "text": text})
        self._on_change()

    def _superseded(self, live: Live, episode: int) -> None:
        """An episode is to be recorded again: it stays on disk, is not trained on, and another take is wanted."""
        keep_out(self.store, live.dataset, episode)
        live.goal += 1
        if kept := self.store.get("recording"):
            self.store.put("recording", {**kept, "goal": live.goal})
        text = f"episode {episode} of {live.dataset!r} is recorded again; it stays on disk and is kept out of training"
        self.store.event("record", text)

    async def _left(self, live: Live, how: str, tell: Callable[[dict[str, Any]], None]) -> None:
        """What its worker has left under torque is let down, unless zk0d ends: then the next one does it."""
        if self.torque.of(live.robot) and not self._closing:
            said = await after_death(self, live, how, live.robot)
            tell({"event": "care", "level": "release", "joint": "", "kind": "torque", "text": said})

    def begin_letting_go(self) -> None:
        """After a crash: let down the arms that were left under torque. Sessions wait for that (`settled`)."""
        if self.torque.ports and self.live is None:
            self._letting_go = self.background(left_behind(self))

    async def settled(self) -> None:
        """Until the arms that an earlier daemon left under torque are limp, or cannot be reached; SETTLE_S at most."""
        if self._letting_go is not None:
            await asyncio.wait({self._letting_go}, timeout=SETTLE_S)

    async def run(self, live: Live, kind: str, job: dict[str, Any], emit: Emit) -> dict[str, Any]:
        """One worker of the session; its events go to the caller in order, and into `live`."""
        events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] in ("done", "error"):
                return
            if event["event"] == "progress":
                live.progress = {k: v for k, v in event.items() if k != "event"}
            elif event["event"] in ("saved", "episode"):
                live.saved += 1
                if live.session:
                    self.store.set_session(live.session, saved=live.saved - live.first)
            elif event["event"] == "superseded":
                self._superseded(live, int(event["episode"]))
            elif event["event"] == "paused":
                live.progress = {"phase": "paused"}
            elif event["event"] == "watchdog":
                self.store.event(live.kind, str(event.get("text")))
            elif event["event"] == "care":
                self._cared(event)
            elif event["event"] == "torque":
                self.torque.heard(event, live.robot)
                if event.get("on") and not event.get("text"):  # opened again; `ready` comes too late to say that
                    self.store.put(LET_GO, None)
                return
            events.put_nowait(event)

        async def relay() -> None:
            while True:
                event = await events.get()
                fields = {k: v for k, v in event.items() if k != "event"}
                await emit(str(event["event"]), **fields, saved_total=live.saved, goal=live.goal)

        name, live.adopt = live.adopt, ""
        live.robot, live.worker = job["robot"], None
        try:
            if name:
                worker = await self.workers.adopt(kind, name, on_event)
            else:
                worker = await self.workers.start(kind, live.worker_name, job, on_event)
        except WorkerError as error:
            await self._left(live, error.message, events.put_nowait)
            raise
        live.worker = worker
        relaying = asyncio.create_task(relay())
        try:
            if live.stopping:
                await worker.stop(ARM_GRACE_S)
            await worker.ended()
            how = f"the {live.kind} ended" if worker.result is not None else worker.error().message
            await self._left(live, how, events.put_nowait)
            return await worker.wait()
        finally:
            deadline = time.monotonic() + 1.0
            while not events.empty() and time.monotonic() < deadline and not relaying.done():
                await asyncio.sleep(0.01)
            relaying.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await relaying
