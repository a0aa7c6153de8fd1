"""Recording sessions: from a request to a registered dataset, over dying recorders and ending daemons.

Each holds the arm (arm.py) and goes on when its caller leaves. Not for what a recorder does (robot.recorder).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog

from zk0d.daemon import datasets, room, staged
from zk0d.daemon.arm import Arm, Emit, Live
from zk0d.daemon.config import Config
from zk0d.daemon.record_request import RecordRequest
from zk0d.daemon.robot_table import is_virtual
from zk0d.daemon.store import Dataset, Store
from zk0d.daemon.workers import Workers
from zk0d.errors import UsageError, WorkerError, Zk0Error
from zk0d.moments import clock

log = structlog.get_logger("sessions")

_RESTARTS = 3
"""Starts of a died recorder in a row without a newly saved episode before a virtual session is given up."""


class Sessions:
    """Records datasets, one at a time."""

    def __init__(
        self, store: Store, state: Path, config: Config, workers: Workers, arm: Arm, on_change: Callable[[], None]
    ) -> None:
        self._store, self._config, self._workers, self._arm = store, config, workers, arm
        self._folder = Path(config["datasets", "folder"] or state / "datasets")
        self._on_change = on_change
        self._adopting: asyncio.Task[None] | None = None

    def survivor(self, workers: dict[str, str]) -> str:
        """Which of these workers (name → kind) records for the session that was running; "" when none does."""
        kept = self._store.get("recording")
        return str(kept["worker"]) if kept and workers.get(kept["worker"]) == "recorder" else ""

    def take_over(self) -> None:
        """Go on with the recording that went on while no daemon ran."""
        kept = self._store.get("recording")
        request = RecordRequest.kept(kept["request"])
        live = Live("recording", request.by, kept["since"], request.dataset, kept["goal"], kept["first"],
                    session=kept["session"], first=kept["first"], adopt=kept["worker"])  # fmt: skip
        live.saved = max(live.first, datasets.saved_episodes(self._root(request.dataset)))
        self._arm.hold(live)
        self._store.event("record", f"the recording of {request.dataset!r} by {request.by} goes on")

        async def nobody(event: str, **fields: Any) -> None:
            """Its caller went with the last daemon."""

        async def going_on() -> None:
            try:
                await self._recorded(live, request, self._root(request.dataset), nobody)
            except Zk0Error as error:
                log.warning("a recording that was taken over failed", dataset=request.dataset, error=error.message)
            finally:
                self._arm.release()

        self._arm.background(going_on())

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
        """After a crash: save the takes that wait in the datasets. A recording waits until that is done."""
        known = {d.name: d.root for d in self._store.datasets()}
        roots = {**{s.dataset: self._root(s.dataset) for s in self._store.sessions()}, **known}
        if self._arm.live is not None:
            roots.pop(self._arm.live.dataset, None)  # its recorder goes on, and holds it
        if staged.left_behind(roots.values()):
            self._adopting = asyncio.create_task(self._adopt(roots))

    async def _adopt(self, roots: dict[str, Path]) -> None:
        changed = await staged.adopt(self._workers, self._store, roots.values())
        tasks = {s.dataset: s.task for s in self._store.sessions()}
        for name in (n for n, root in roots.items() if root in changed):
            self._register(name, roots[name], tasks.get(name, ""), None, None)

    # -- recording ---------------------------------------------------------------------------------------------------

    async def record(self, request: dict[str, Any], live: Live, emit: Emit) -> dict[str, Any]:
        """Record as asked by whom `live` names; events of the recorder go to `emit`. The result says what is in the
        dataset now."""
        robot = self._arm.robot(request.get("robot") or {})
        checked = RecordRequest.checked(request, live.by, self._config, self._store.datasets(), robot)
        self._ours(checked.dataset)
        if checked.rerun and self._workers.systemd is not None:
            raise UsageError(
                "rerun: the recorder's unit has no network and no display, so that no frame leaves the machine",
                "zk0ctl record watch shows rates, joints and the age of images; Rerun works with `zk0d --foreground`",
            )
        live.dataset = checked.dataset
        with self._arm.waited_for(live):
            return await self._arm.independent(self._record(live, checked, emit))

    def _root(self, name: str) -> Path:
        known = next((d for d in self._store.datasets() if d.name == name), None)
        return known.root if known else self._folder / name

    def _ours(self, name: str) -> None:
        """Raises UsageError where the dataset lies elsewhere: one that was added is read and never changed."""
        root = self._root(name)
        if root.parent != self._folder:
            hint = (
                f"record into another name; or first `zk0ctl dataset import local:{root} --name NEW`, which copies it"
            )
            raise UsageError(f"the dataset {name!r} was added from {root}: nothing is recorded into it", hint)

    async def _settled(self) -> None:
        if self._adopting is not None:
            await asyncio.wait({self._adopting})
        await self._arm.settled()

    async def _record(self, live: Live, request: RecordRequest, emit: Emit) -> dict[str, Any]:
        await self._arm.beforehand(live, self._settled())
        root = self._root(request.dataset)
        first = datasets.saved_episodes(root)
        goal = request.until if request.until is not None else first + request.episodes
        if first >= goal:
            self._register(request.dataset, root, request.task, request.robot, request.train)
            return _outcome(request.dataset, first, first, goal, 0, "there already")
        await room.limits(self._config, self._folder, self._store.datasets())  # raises when there is none
        live.since, live.goal, live.saved, live.first = time.time(), goal, first, first
        self._arm.hold(live)
        try:
            return await self._recorded(live, request, root, emit)
        finally:
            self._arm.release()  # whatever fails: nobody else gets the arm, and nothing trains, until then

    async def _recorded(self, live: Live, request: RecordRequest, root: Path, emit: Emit) -> dict[str, Any]:
        """The session that holds the arm, with its row in the store."""
        first = live.first
        if not live.session:
            live.session = self._store.begin_session(request.dataset, request.task, request.by, live.goal)
            kept = {"request": asdict(request), "since": live.since, "goal": live.goal, "first": first,
                    "session": live.session, "worker": live.worker_name}  # fmt: skip
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
            if not self._arm.leaving:  # the next daemon ends it
                self._end(request, session, state, why, have - first, discarded)
                if have:
                    self._register(request.dataset, root, request.task, request.robot, request.train)
        # One more for each episode that was recorded again: `live.goal` has grown since.
        return _outcome(request.dataset, first, have, live.goal, discarded, why)

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
        # A recorder to be taken over may have saved the goal already: it has its end still to tell.
        while ((have := datasets.saved_episodes(root)) < live.goal and not live.stopping) or live.adopt:
            job: dict[str, Any] = {
                "dataset": str(root), "task": request.task, "episodes": live.goal - have,
                "episode_s": request.episode_s, "reset_s": request.reset_s, "fps": request.fps, "robot": request.robot,
                "keep": request.keep, "max_takes": 3 * (live.goal - have) + 5, "seed": seed, "auto": request.auto,
                "pace": request.pace, "paused": request.paused and have == live.first, "rerun": request.rerun,
                **await room.limits(self._config, self._folder, self._store.datasets()),
            }  # fmt: skip
            try:
                result = await self._arm.run(live, "recorder", job, emit)
                discarded += int(result.get("discarded", 0))
                if result.get("ended"):
                    return discarded, str(result["ended"])
                if int(result.get("episodes", 0)) < job["episodes"] and not live.stopping:
                    return discarded, f"only {result.get('episodes', 0)} of {result.get('takes', '?')} takes were kept"
            except WorkerError as error:
                saved = datasets.saved_episodes(root)
                barren = 0 if saved > have else barren + 1
                said = live.worker is not None and live.worker.failure is not None
                if live.stopping or saved >= live.goal:
                    break
                if said or not is_virtual(request.robot) or barren >= _RESTARTS:
                    if saved > have or live.saved > 0:
                        return discarded, error.message
                    raise
                seed += 1000  # another start, so that a seed that kills the recorder does not do so for ever
                log.warning("recorder died and is started again", dataset=request.dataset, error=error.message)
                await emit("restarted", reason=error.message, saved=saved)
        return discarded, ""

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
