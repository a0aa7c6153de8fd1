"""What a person does with the arm: recording and rollout sessions, one at a time, each by a worker process.

A session goes on when its caller leaves, and anyone can steer it (`control`). Recorded datasets are registered here.
Not for training, which steps aside because `activities` says that somebody is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import structlog

from zk0d.daemon import datasets, staged
from zk0d.daemon.arbiter import Activity, clock
from zk0d.daemon.config import Config, check_robot, is_virtual
from zk0d.daemon.store import Dataset, Store
from zk0d.daemon.workers import GRACE_S, Workers
from zk0d.errors import RobotError, UsageError, WorkerError, Zk0Error
from zk0d.model.spec import ModelSpec
from zk0d.supervise import Worker

log = structlog.get_logger("sessions")

Emit = Callable[..., Awaitable[None]]
CONTROLS = ("next", "discard", "finish", "stop")
_RESTARTS = 3
"""Starts of a died recorder in a row without a newly saved episode before a virtual session is given up."""

_EXPECT_S = 2.0
"""Seconds for which an announced recording holds the trainer, should its request never come."""

_SAVE_S = 60.0
"""Seconds a recorder that is told to stop gets to verify and save the takes that have ended."""


@dataclass
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
    worker: Worker | None = None
    stopping: bool = False
    why: str = ""
    """Who or what ended it early."""


@dataclass(frozen=True)
class RecordRequest:
    """A checked `record` request. `until` is the number of episodes the dataset shall have at the end."""

    dataset: str
    task: str
    by: str
    until: int | None
    episodes: int
    episode_s: float
    reset_s: float
    fps: int
    keep: str
    seed: int
    robot: dict[str, Any]
    train: bool
    pace: str
    """"real" or "fast" (the recorder's own choice when empty)."""


class Sessions:
    """Holds the arm for one session at a time."""

    def __init__(
        self, store: Store, state: Path, config: Config, workers: Workers, on_change: Callable[[], None]
    ) -> None:
        self.live: Live | None = None
        self._store, self._config, self._workers = store, config, workers
        self._folder = Path(config["datasets", "folder"] or state / "datasets")
        self._on_change = on_change
        self._tasks: set[asyncio.Task[Any]] = set()
        self._expected: Activity | None = None
        self._leaving = False
        self._adopting: asyncio.Task[None] | None = None

    def activities(self) -> tuple[Activity, ...]:
        """For the arbiter."""
        if self.live is not None:
            return (Activity(self.live.kind, self.live.by, self.live.since),)
        return () if self._expected is None else (self._expected,)

    def expect(self, by: str) -> None:
        """Somebody typed `zk0ctl record`: its request follows when its arguments are read. Make way already."""
        expected = self._expected = Activity("recording", by, time.time())
        self._on_change()

        def over() -> None:
            if self._expected is expected:
                self._expected = None
                self._on_change()

        asyncio.get_running_loop().call_later(_EXPECT_S, over)

    def survivor(self, workers: dict[str, str]) -> str:
        """Which of these workers (name → kind) records for the session that was running; "" when none does."""
        kept = self._store.get("recording")
        return str(kept["worker"]) if kept and workers.get(kept["worker"]) == "recorder" else ""

    def take_over(self) -> None:
        """Go on with the recording that went on while no daemon ran."""
        kept = self._store.get("recording")
        request = RecordRequest(**kept["request"])
        live = Live("recording", request.by, kept["since"], request.dataset, kept["goal"], kept["first"],
                    session=kept["session"], first=kept["first"], adopt=kept["worker"])  # fmt: skip
        live.saved = max(live.first, datasets.saved_episodes(self._root(request.dataset)))
        self._hold(live)
        self._store.event("record", f"the recording of {request.dataset!r} by {request.by} goes on")

        async def nobody(event: str, **fields: Any) -> None:
            """Its caller went with the last daemon."""

        async def going_on() -> None:
            try:
                await self._recorded(live, request, self._root(request.dataset), nobody)
            except Zk0Error as error:
                log.warning("a recording that was taken over failed", dataset=request.dataset, error=error.message)
            finally:
                self._release()

        task = asyncio.create_task(going_on())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def note_cut(self, but: str = "") -> None:
        """After a crash: sessions that were running are over, and said to have been cut; not that of worker `but`."""
        goes_on = self._store.get("recording")["session"] if but else None
        for session in self._store.sessions():
            if session.state != "running" or session.id == goes_on:
                continue
            root = self._root(session.dataset)
            have = datasets.saved_episodes(root)
            what = f"the recording of {session.dataset!r} begun at {clock(session.started_at, time.time())} was cut"
            self._store.set_session(session.id, state="cut", reason="zk0d ended in it", ended_at=time.time())
            self._store.event("record", f"{what}; {have} episodes are saved in it")
            if have:
                self._register(session.dataset, root, session.task, None, None)

    def begin_adopting(self) -> None:
        """After a crash: save the ended takes that wait in the datasets. A recording waits until that is done."""
        known = {d.name: d.root for d in self._store.datasets()}
        roots = {**{s.dataset: self._root(s.dataset) for s in self._store.sessions()}, **known}
        if staged.left_behind(roots.values()):
            self._adopting = asyncio.create_task(self._adopt(roots))

    async def _adopt(self, roots: dict[str, Path]) -> None:
        changed = await staged.adopt(self._workers, self._store, roots.values())
        tasks = {s.dataset: s.task for s in self._store.sessions()}
        for name in (n for n, root in roots.items() if root in changed):
            self._register(name, roots[name], tasks.get(name, ""), None, None)

    # -- holding the arm ---------------------------------------------------------------------------------------------

    def _hold(self, live: Live) -> None:
        if self.live is not None:
            other = self.live
            raise RobotError(
                f"the arm is in use: {other.kind} by {other.by} since {clock(other.since, time.time())}"
                + (f" (dataset {other.dataset})" if other.dataset else ""),
                "wait for it, or end it with `zk0ctl record finish`",
            )
        self.live, self._expected = live, None
        self._on_change()  # freezes the trainer before the first motor is touched

    def _release(self) -> None:
        self.live = None
        self._on_change()

    async def _independent(self, work: Awaitable[dict[str, Any]]) -> dict[str, Any]:
        """Run `work` to its end even if the caller is cancelled or leaves."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    def control(self, action: str) -> dict[str, Any]:
        """Steer the running session: next, discard, finish, stop."""
        if action not in CONTROLS:
            raise UsageError(f"record_control {action!r} is not known", f"one of {', '.join(CONTROLS)}")
        live = self.live
        if live is None:
            raise RobotError("nothing is being recorded", "start with `zk0ctl record --task … --episodes …`")
        if action in ("stop", "finish"):
            live.stopping, live.why = True, f"told to {action}"
        if live.worker is not None:
            if action == "stop":
                begun = live.kind == "recording" and live.worker.last.get("event") not in (None, "ready")
                task = asyncio.create_task(live.worker.stop(_SAVE_S if begun else GRACE_S))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                live.worker.send(action)
        return {"kind": live.kind, "by": live.by, "dataset": live.dataset, "saved": live.saved, "goal": live.goal}

    def begin_close(self) -> None:
        """Start no worker any more; the session that runs is ending."""
        if self.live is not None and self.live.kind == "recording" and self._workers.systemd is not None:
            self._leaving = True  # the recorder is a unit of its own; the next daemon takes it over
        elif self.live is not None:
            self.live.stopping, self.live.why = True, "zk0d was told to end"

    async def close(self) -> None:
        """Wait for the session's end, so that its caller gets what was saved."""
        if self._leaving:
            return
        pending = [t for t in self._tasks if not t.done()]
        if pending:
            await asyncio.wait(pending, timeout=1.0)

    # -- recording ---------------------------------------------------------------------------------------------------

    async def record(self, request: dict[str, Any], by: str, emit: Emit) -> dict[str, Any]:
        """Record as asked; events of the recorder go to `emit`. The result says what is in the dataset now."""
        return await self._independent(self._record(self._checked(request, by), emit))

    def _checked(self, request: dict[str, Any], by: str) -> RecordRequest:
        name = str(request.get("dataset") or "")
        if not name or "/" in name or name.startswith("."):
            raise UsageError(f"{name!r} cannot be a dataset's name", "letters, digits, dashes; it becomes a folder")
        known = next((d for d in self._store.datasets() if d.name == name), None)
        task = str(request.get("task") or (known.tasks[-1] if known and known.tasks else ""))
        if not task:
            raise UsageError("a recording needs a task text", 'for example --task "pick up the cube"')
        until, episodes = request.get("until"), request.get("episodes")
        if (until is None) == (episodes is None):
            raise UsageError("say how much to record", "either --episodes N more or --until N in the dataset")
        if int(until or episodes or 0) <= 0:
            raise UsageError("the number of episodes must be at least 1")
        keep = str(request.get("keep") or "success")
        if keep not in ("success", "all"):
            raise UsageError(f"keep {keep!r} is not known", "success or all")
        return RecordRequest(
            dataset=name, task=task, by=by, until=None if until is None else int(until), episodes=int(episodes or 0),
            episode_s=float(request.get("episode_s") or self._config["record", "episode_s"]),
            reset_s=float(self._config["record", "reset_s"]), fps=self._config["record", "fps"], keep=keep,
            seed=int(request.get("seed") or 0), robot=self.robot(request.get("robot") or {}),
            train=bool(request.get("train", True)),
            pace=str(request.get("pace") or ""),
        )  # fmt: skip

    def robot(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """The `[robot]` table with a request's `overrides`. Raises when no follower is named."""
        robot = {**self._config.robot, **check_robot({k: v for k, v in overrides.items() if v}, "request")}
        if not robot["follower"]:
            raise RobotError(
                "no arm is configured",
                "set [robot] follower in zk0d.toml, or give --follower /dev/ttyACM0 (or virtual:PickLift)",
            )
        if is_virtual(robot) and not robot["leader"]:
            robot["leader"] = "expert"
        return robot

    def _root(self, name: str) -> Path:
        known = next((d for d in self._store.datasets() if d.name == name), None)
        return known.root if known else self._folder / name

    async def _record(self, request: RecordRequest, emit: Emit) -> dict[str, Any]:
        if self._adopting is not None:
            await asyncio.wait({self._adopting})
        root = self._root(request.dataset)
        first = datasets.saved_episodes(root)
        goal = request.until if request.until is not None else first + request.episodes
        if first >= goal:
            self._register(request.dataset, root, request.task, request.robot, request.train)
            return _outcome(request.dataset, first, first, goal, 0, "there already")
        live = Live("recording", request.by, time.time(), request.dataset, goal, first, first=first)
        self._hold(live)
        try:
            return await self._recorded(live, request, root, emit)
        finally:
            self._release()  # whatever fails: nobody else gets the arm, and nothing trains, until then

    async def _recorded(self, live: Live, request: RecordRequest, root: Path, emit: Emit) -> dict[str, Any]:
        """The session that holds the arm, with its row in the store."""
        first, goal = live.first, live.goal
        if not live.session:
            live.session = self._store.begin_session(request.dataset, request.task, request.by, goal)
            kept = {"request": asdict(request), "since": live.since, "goal": goal, "first": first,
                    "session": live.session, "worker": _worker_name(live)}  # fmt: skip
            self._store.put("recording", kept)
        session = live.session
        discarded, why, state = 0, "", "failed"
        try:
            discarded, why = await self._takes(live, request, root, emit)
            why = why or live.why
            state = "stopped" if live.stopping else ("failed" if why else "done")
        except BaseException as error:
            why = str(error)
            raise
        finally:
            have = datasets.saved_episodes(root)
            if not self._leaving:  # the next daemon ends it
                self._end(request, session, state, why, have - first, discarded)
                if have:
                    self._register(request.dataset, root, request.task, request.robot, request.train)
        return _outcome(request.dataset, first, have, goal, discarded, why)

    def _end(self, request: RecordRequest, session: int, state: str, why: str, saved: int, discarded: int) -> None:
        self._store.put("recording", None)
        self._store.set_session(session, saved=saved, state=state, reason=why, ended_at=time.time())
        self._store.event(
            "record", f"recording of {request.dataset!r} by {request.by} {state}: {saved} episodes saved,"
            f" {discarded} takes discarded" + (f": {why}" if why else "")
        )  # fmt: skip

    async def _takes(self, live: Live, request: RecordRequest, root: Path, emit: Emit) -> tuple[int, str]:
        """Run the recorder until the goal is reached; → takes discarded, and why it ended early if it did."""
        discarded, barren, seed = 0, 0, request.seed
        while (have := datasets.saved_episodes(root)) < live.goal and not live.stopping:
            job: dict[str, Any] = {
                "dataset": str(root), "task": request.task, "episodes": live.goal - have,
                "episode_s": request.episode_s, "reset_s": request.reset_s, "fps": request.fps, "robot": request.robot,
                "keep": request.keep, "max_takes": 3 * (live.goal - have) + 5, "seed": seed, "auto": True,
                "pace": request.pace,
            }  # fmt: skip
            try:
                result = await self._run(live, "recorder", job, emit)
                discarded += int(result.get("discarded", 0))
                if int(result.get("episodes", 0)) < job["episodes"] and not live.stopping:
                    return discarded, f"only {result.get('episodes', 0)} of {result.get('takes', '?')} takes were kept"
            except WorkerError as error:
                saved = datasets.saved_episodes(root)
                barren = 0 if saved > have else barren + 1
                said = live.worker is not None and live.worker.failure is not None
                if live.stopping:
                    break
                if said or not is_virtual(request.robot) or barren >= _RESTARTS:
                    if saved > have or live.saved > 0:
                        return discarded, error.message
                    raise
                seed += 1000  # another start, so that a seed that kills the recorder does not do so for ever
                log.warning("recorder died and is started again", dataset=request.dataset, error=error.message)
                await emit("restarted", reason=error.message, saved=saved)
        return discarded, ""

    async def _run(self, live: Live, kind: str, job: dict[str, Any], emit: Emit) -> dict[str, Any]:
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
                    self._store.set_session(live.session, saved=live.saved - live.first)
            events.put_nowait(event)

        async def relay() -> None:
            while True:
                event = await events.get()
                fields = {k: v for k, v in event.items() if k != "event"}
                await emit(str(event["event"]), **fields, saved_total=live.saved, goal=live.goal)

        name, live.adopt = live.adopt, ""
        if name:
            worker = await self._workers.adopt(kind, name, on_event)
        else:
            worker = await self._workers.start(kind, _worker_name(live), job, on_event)
        live.worker = worker
        relaying = asyncio.create_task(relay())
        try:
            if live.stopping:
                await worker.stop(GRACE_S)
            return await worker.wait()
        finally:
            deadline = time.monotonic() + 1.0
            while not events.empty() and time.monotonic() < deadline and not relaying.done():
                await asyncio.sleep(0.01)
            relaying.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await relaying

    def _register(
        self, name: str, root: Path, task: str, robot: dict[str, Any] | None, train: bool | None
    ) -> Dataset | None:
        known = next((d for d in self._store.datasets() if d.name == name), None)
        units = str(robot["units"]) if robot else ""
        try:
            # An operator who took a dataset out of training once is not overruled by recording more into it.
            wanted = False if train is False else (None if known else train)
            dataset = datasets.describe(name, root, known, units=units, task=task, train=wanted)
        except Zk0Error as error:
            log.warning("a recorded dataset cannot be read", dataset=name, error=str(error))
            return None
        self._store.put_dataset(dataset)
        self._on_change()
        return dataset

    # -- rollout -----------------------------------------------------------------------------------------------------

    async def rollout(
        self, policy: Path, spec: ModelSpec, request: dict[str, Any], by: str, emit: Emit
    ) -> dict[str, Any]:
        """Run a policy folder on the arm, at its spec's rate and units; result: episodes, successes, video."""
        return await self._independent(self._rollout(policy, spec, request, by, emit))

    async def _rollout(
        self, policy: Path, spec: ModelSpec, request: dict[str, Any], by: str, emit: Emit
    ) -> dict[str, Any]:
        tasks = [t for d in self._store.datasets() for t in d.tasks]
        episodes = int(request.get("episodes") or 1)
        job = {
            "policy": str(policy), "task": str(request.get("task") or (tasks[-1] if tasks else "")),
            "robot": {**self.robot(request.get("robot") or {}), "units": spec.units}, "episodes": episodes,
            "max_s": float(request.get("max_s") or 15.0), "out": str(Path(str(request["out"])).absolute()),
            "seed": int(request.get("seed") or 0), "device": self._config["train", "device"], "fps": spec.fps,
            "rename": datasets.renamed_cameras(request.get("rename") or {}),
        }  # fmt: skip
        live = Live("rollout", by, time.time(), goal=episodes)
        self._hold(live)
        try:
            result = await self._run(live, "rollout", job, emit)
        finally:
            self._release()
        self._store.event(
            "rollout", f"rollout by {by}: {result.get('successes')} of {result.get('episodes')} succeeded"
        )
        return result


def _worker_name(live: Live) -> str:
    return f"{int(live.since * 1000):x}"


def _outcome(dataset: str, first: int, have: int, goal: int, discarded: int, why: str) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "episodes": have,
        "added": have - first,
        "goal": goal,
        "complete": have >= goal,
        "discarded": discarded,
        "reason": why,
    }
