"""The daemon: puts its parts together, answers the control socket, tells systemd how it is, ends cleanly.

What each operation means is in its room (sessions, training, uplink, models); here are only their names and the wiring.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog

from zk0d.control_server import ControlConnection, ControlServer
from zk0d.daemon.arbiter import Decision
from zk0d.daemon.arm import Arm
from zk0d.daemon.carrying import Carrying
from zk0d.daemon.config import Config
from zk0d.daemon.curating import Curating
from zk0d.daemon.dataset_swap import settle
from zk0d.daemon.models import Models
from zk0d.daemon.ops import OPS
from zk0d.daemon.paces import Paces
from zk0d.daemon.report import LiveParts, status
from zk0d.daemon.sessions import Sessions
from zk0d.daemon.signals.all import sources
from zk0d.daemon.signals.board import Board
from zk0d.daemon.store import Store
from zk0d.daemon.sweeping import Sweeper
from zk0d.daemon.training import Training
from zk0d.daemon.uplink import Uplink
from zk0d.daemon.workers import Workers
from zk0d.errors import LinkClosedError, UsageError, Zk0Error
from zk0d.notify import Notifier

log = structlog.get_logger("zk0d")

_SEEN_S = 10.0
_MISFITS_S = 10.0
_REACH_S = 5.0
_FIRST_FD = 3


class Service:
    """Everything of one running daemon. `run` returns when it was told to end."""

    def __init__(self, state: Path, config: Config, socket: Path) -> None:
        self.state, self.config = state, config
        self.store = Store(state / "zk0d.db")
        self.store.tell = lambda kind, text, fields: log.info(kind, text=text, **fields)
        self.workers = Workers(state, config)
        self.arm = Arm(self.store, config, self.workers, self._halt, self.changed)
        self.sessions = Sessions(self.store, state, config, self.workers, self.arm, self.changed)
        self.uplink = Uplink(self.store, state, config, self.changed, self._may_ask)
        self.selection = self.uplink.selection
        self.datasets_folder = Path(config["datasets", "folder"] or state / "datasets")
        self.sweeper = Sweeper()
        self.carrying = Carrying(config, self.store, self.sweeper)
        self.curating = Curating(self.workers, self.arm, self.sweeper)
        self._loop: asyncio.AbstractEventLoop | None = None
        paces = Paces(self.store)
        self.board = Board(sources(config, state, self._own_pids, paces.save_s), self._sensed)
        self.training = Training(
            self.store, config, self.workers, self.uplink, self.arm.activities, self._on_decision,
            self.board.readings, paces,
        )  # fmt: skip
        self.models = Models(self.store, state, self.workers, self.uplink)
        self.started_at = time.time()
        self.ending = asyncio.Event()
        self._ready = False
        self._misfits: tuple[Any, float, tuple[str, ...]] = (None, 0.0, ())
        self._seen = 0.0
        self._notifier = Notifier()
        self._control = ControlServer(_listening_fd() or socket, self._handle, mode=0o660)

    # -- life --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start, serve until SIGTERM or SIGINT, end everything: within five seconds where no arm is held.

        A worker that holds one has CLOSE_ARM_GRACE_S (workers.py) to bring it to rest and save its take.
        """
        loop = self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ending.set)
        log.info("starting", state=str(self.state), pid=os.getpid(), systemd=self._notifier.reason or "yes")
        survivor = self.sessions.survivor(await self.workers.survivors())
        for kind in await self.workers.reap_orphans(survivor):
            self.store.event("daemon", f"the last run of zk0d left a {kind}, which has ended now")
        settle(self.store, self.selection)
        self.sweeper.begin(self.datasets_folder, self.workers.work)
        self.sessions.note_cut(but=survivor)
        if survivor:
            self.sessions.take_over()
        self.store.event("daemon", "zk0d started")
        await self._control.start()
        self.board.start()
        await self.uplink.start()
        self.sessions.begin_adopting()
        self.arm.begin_letting_go()
        self.training.tick()
        training = asyncio.create_task(self.training.run(self._alive), name="training")
        reaching = asyncio.create_task(self._reach(), name="reach systemd")
        self._ready = True
        self._notifier.ready(self.training.decision.sentence)
        ending = asyncio.create_task(self.ending.wait())
        try:
            # The loop never ends by itself: if it does, that is a defect, and a restart is better than a dead daemon.
            await asyncio.wait({training, ending}, return_when=asyncio.FIRST_COMPLETED)
            if training.done() and not training.cancelled():
                training.result()
        finally:
            ending.cancel()
            reaching.cancel()
            await self._close(training)

    async def _close(self, training: asyncio.Task[None]) -> None:
        self._notifier.stopping("ending")
        log.info("ending")
        training.cancel()
        self.board.close()
        self._ready = False
        self.training.begin_close()
        self.arm.begin_close()
        await self.workers.stop_all()
        await asyncio.gather(self.arm.close(), self.training.close(), return_exceptions=True)
        await self.uplink.close()
        await self._control.close()
        self.sweeper.close()
        self.store.event("daemon", "zk0d ended")
        self.store.close()
        log.info("ended")

    async def _reach(self) -> None:
        """While systemd does not answer: ask it again, so that workers run as soon as it does."""
        while True:
            await asyncio.sleep(_REACH_S)
            if self.workers.trouble and await self.workers.reach():
                self.changed()

    def _alive(self) -> None:
        """Called by every turn of the training loop: only while that works is the watchdog fed."""
        self._notifier.watchdog()
        self.board.check()
        self.uplink.hold(self.training.transfers_held())
        if time.monotonic() - self._seen > _SEEN_S:
            self._seen = time.monotonic()
            self.store.put("seen", time.time())

    # -- changes -----------------------------------------------------------------------------------------------------

    def changed(self) -> None:
        """Something the arbiter looks at changed: decide at once, so that a trainer stops before a person starts."""
        if self._ready:
            self.training.tick()
            self.uplink.hold(self.training.transfers_held())

    def _halt(self) -> None:
        if self._ready:
            self.training.halt()

    def _own_pids(self) -> list[int]:
        return [os.getpid(), *self.workers.pids()]

    def _sensed(self) -> None:
        """A signal changed (in the board's thread)."""
        if self._loop is not None and not self.ending.is_set():
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                self._loop.call_soon_threadsafe(self.training.wake)

    def _on_decision(self, decision: Decision) -> None:
        self._notifier.status(decision.sentence)
        if decision.rule == "no task":
            self.uplink.work()

    def _may_ask(self) -> bool:
        """Whether a task could run now: a person is away, the runtime is there, and nothing is at hand."""
        return self._ready and self.training.decision.rule == "no task"

    def datasets_changed(self) -> None:
        """A dataset was recorded, added or removed: tell the hub, and look again whether a task fits."""
        self._misfits = (None, 0.0, ())
        self.uplink.kick()
        self.changed()

    # -- control socket ----------------------------------------------------------------------------------------------

    async def _handle(self, request: dict[str, Any], connection: ControlConnection) -> Any:
        name = request["op"]
        op = OPS.get(name) if isinstance(name, str) else None
        if op is None:
            raise UsageError(f"zk0d knows no operation {name!r}", f"it knows {', '.join(sorted(OPS))}")
        try:
            return await op(self, request, connection)
        except asyncio.CancelledError:
            if self.ending.is_set():
                raise LinkClosedError("zk0d ended", "start it again") from None
            raise

    def status(self) -> dict[str, Any]:
        """The status document (report.py)."""
        return status(self.store, self._live())

    def _live(self) -> LiveParts:
        decision = self.training.decision
        link = self.uplink.link
        live = self.arm.live
        state = link.state if link else None
        signals = self.training.signals()
        return LiveParts(
            pid=os.getpid(),
            started_at=self.started_at,
            state={
                "action": decision.action.value, "word": decision.state, "sentence": decision.sentence,
                "reason": decision.reason, "waits_for": decision.waits_for, "rule": decision.rule,
            },
            link=None if state is None else {
                "phase": state.phase, "reason": state.reason, "since": state.since, "next_attempt": state.next_attempt,
            },
            training={"trainer": self.training.trainer_state, "progress": self.training.progress},
            session=None if live is None else {
                "kind": live.kind, "by": live.by, "since": live.since, "dataset": live.dataset, "saved": live.saved,
                "goal": live.goal, "progress": live.progress,
            },
            transfers=[] if state is None else [t.row() for t in state.transfers],
            bytes_total=self.uplink.bytes,
            misfits=self._misfit_texts(),
            unable=signals.runtime_missing,
            unable_hint=signals.runtime_hint,
            no_link=self.uplink.trouble,
        )  # fmt: skip

    def _misfit_texts(self) -> tuple[str, ...]:
        """Datasets that do not fit a federation whose spec is here; looked at again at most every ten seconds."""
        specs = [(f.name, f.spec_digest) for f in self.store.federations() if f.spec_digest]
        here = [(name, digest) for name, digest in specs if self.uplink.blobs.has(digest)]
        if self._misfits[0] != here or time.monotonic() - self._misfits[1] > _MISFITS_S:
            found: list[str] = []
            for name, digest in here:
                with contextlib.suppress(Zk0Error):  # a damaged spec shows where it is used
                    found.extend(f"{r} (federation {name})" for r in self.uplink.fitting.of(digest)[1])
            self._misfits = (here, time.monotonic(), tuple(found))
        return self._misfits[2]

    def why(self) -> dict[str, Any]:
        """The decision, every signal, and which rule fired."""
        return {
            "decision": {**asdict(self.training.decision), "sentence": self.training.decision.sentence},
            "signals": asdict(self.training.signals()),
            "policy": {**asdict(self.training.policy), "parks_not": self.training.parking.reason},
            "events": self.store.events(10),
        }


def _listening_fd() -> int | None:
    """The listening descriptor that systemd handed over (sd_listen_fds(3)), if it did."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or int(os.environ.get("LISTEN_FDS", "0") or 0) < 1:
        return None
    os.set_inheritable(_FIRST_FD, False)
    return _FIRST_FD
