"""The node's side of the federation: joins, takes tasks, offers signed updates, keeps receipts, fetches versions.

Runs on zk0d.link.NodeLink, which connects and transfers by itself. What it says is only what docs/protocol.md lists:
no task text, no name of a file, user or host. Not for training itself (training.py) nor enrolment (enrolment.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from zk0d.daemon.arbiter import LinkSignal
from zk0d.daemon.config import Config
from zk0d.daemon.exchange import Exchange
from zk0d.daemon.fitting import Fitting
from zk0d.daemon.membership import Membership
from zk0d.daemon.pace import in_turn
from zk0d.daemon.quality import Rules, Selection
from zk0d.daemon.renewal import Renewal
from zk0d.daemon.store import Store, Task
from zk0d.daemon.task_body import checked, due_at
from zk0d.errors import (
    ConfigError,
    LinkClosedError,
    LinkLostError,
    PayloadError,
    ProtocolError,
    RefusedError,
    Zk0Error,
)
from zk0d.link.node import NodeLink
from zk0d.link.node_identity import NodeIdentity
from zk0d.link.state import LinkLimits, LinkState
from zk0d.model.blobs import BlobStore

log = structlog.get_logger("uplink")

_TURN_S = 15.0


class Uplink:
    """One hub, any number of federations, at most one task at hand."""

    def __init__(
        self,
        store: Store,
        state: Path,
        config: Config,
        on_change: Callable[[], None],
        may_ask: Callable[[], bool],
    ) -> None:
        """`on_change`: something the arbiter or a person would see changed; `may_ask`: whether a task could run now."""
        self.blobs = BlobStore(state / "blobs")
        self.link: NodeLink | None = None
        self.held = ""
        """Why nothing large is moved now."""
        self._store, self._state, self._config = store, state, config
        self._on_change, self._may_ask = on_change, may_ask
        self.selection = Selection(store, Rules.of(config))
        self.fitting = Fitting(store, self.blobs, self.selection)
        self._loops: list[asyncio.Task[None]] = []
        self._wake = asyncio.Event()
        self._work = asyncio.Event()
        self._blocked: dict[str, tuple[str, str]] = {}
        self._no_task: dict[str, tuple[str, float]] = {}
        self._membership = Membership(store, on_change)
        self.trouble = ""
        """Why there is no link at all, for a person; "" when there is one."""
        self._bytes: tuple[int, int] = tuple(store.get("bytes", [0, 0]))
        self.exchange = Exchange(store, self.blobs, config["models", "keep"], on_change)

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the link if the node is enrolled, and keep working on it."""
        hub = self._store.hub()
        if hub is None or self.link is not None:
            return
        try:
            identity = NodeIdentity.load(self._state / "keys")
            if identity.node_id != hub.node_id:
                raise ConfigError(f"the certificate is {identity.node_id}'s, this node is {hub.node_id}")
        except Zk0Error as error:  # recording goes on without a hub
            self.trouble = f"this node's key or certificate cannot be used: {error.message}"
            log.error("no link", reason=error.message)
            self._store.event("enrol", self.trouble)
            return
        self.trouble = ""
        self.link = NodeLink(
            host=hub.host,
            port=hub.port,
            identity=identity,
            blobs=self.blobs,
            run_dir=self._state / "run",
            on_push=self._on_push,
            limits=LinkLimits(
                max_upload=self._config["link", "max_upload"], max_download=self._config["link", "max_download"]
            ),
        )
        self.link.on_state.append(self._on_state)
        self.exchange.open(self.link, identity, hub)
        await self.link.start()
        new_key = self._config["link", "renew_key"] == "new"
        self._loops = [
            asyncio.create_task(self._forever(self._exchange_turn, self._wake), name="exchange"),
            asyncio.create_task(self._forever(self._work_turn, self._work), name="work"),
            asyncio.create_task(Renewal(self._store, self.link, identity, hub, new_key=new_key).run(), name="renewal"),
        ]

    async def close(self) -> None:
        for loop in self._loops:
            loop.cancel()
        if self._loops:
            await asyncio.wait(self._loops, timeout=1.0)
        self._loops = []
        if self.link is not None:
            self._store.put("bytes", list(self.bytes))
            self._bytes = self.bytes
            link, self.link = self.link, None
            await link.close()

    @property
    def bytes(self) -> tuple[int, int]:
        """Ciphertext bytes sent and received, over all runs."""
        if self.link is None:
            return self._bytes
        return self._bytes[0] + self.link.state.bytes_up, self._bytes[1] + self.link.state.bytes_down

    def kick(self) -> None:
        """Something changed here (datasets, membership, a person asked): look at everything again now."""
        self._no_task.clear()
        if self.link is not None:
            self.link.retry_now()
        self._wake.set()
        self._work.set()

    async def hear(self, seconds: float = 2.0) -> None:
        """Have the hub tell anew what federations it has; what is known stays where it does not within `seconds`."""
        before, deadline = self._membership.heard, time.monotonic() + seconds
        self._wake.set()
        while self._linked() and self._membership.heard == before and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    def _linked(self) -> bool:
        return self.link is not None and self.link.state.phase == "connected"

    def hold(self, why: str) -> None:
        """Move no model and no update while there is a reason (a recording, a metered network)."""
        if why != self.held:
            self.held = why
            log.info("transfers are held" if why else "transfers go on", why=why)
        if self.link is not None:
            self.link.hold(bool(why))

    def work(self) -> None:
        """A task could run now: look for one soon."""
        self._work.set()

    def _on_state(self, state: LinkState) -> None:
        if state.phase == "connected":
            self._membership.forget()
            self.exchange.look_again()
            self._wake.set()
            self._work.set()
        self._on_change()

    def _on_push(self, kind: str, body: dict[str, Any]) -> None:
        try:
            if kind == "receipt":
                self.exchange.take_receipt(bytes(body["receipt"]), bytes(body["signature"]))
            elif kind == "refusal":
                self.exchange.take_refusal(bytes(body["refusal"]), bytes(body["signature"]))
            elif kind == "version.new":
                name = str(body["federation"])
                self._no_task.pop(name, None)
        except Zk0Error as error:
            log.warning("a push from the hub is not accepted", type=kind, error=str(error))
            self._store.event("link", f"a {kind} from the hub is not accepted: {error.message}")
        self._wake.set()
        self._work.set()

    async def _forever(self, turn: Callable[[], Any], wake: asyncio.Event) -> None:
        """Take turns while the link is up, until cancelled. What the hub or the link refuse is said and tried again."""
        assert self.link is not None
        while True:
            pause = _TURN_S
            try:
                await self.link.wait_connected(_TURN_S)
                pause = await turn()
            except LinkClosedError:
                return
            except (LinkLostError, RefusedError, ProtocolError) as error:
                log.info("the hub did not serve a request", error=str(error))
                pause = 2.0
            except Zk0Error as error:
                log.warning("a turn failed", error=str(error))
                self._store.event("link", error.message)
            except Exception:
                log.exception("a turn failed")  # a defect here must not end the federation for this node
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), pause)
            wake.clear()

    # -- membership and exchange -------------------------------------------------------------------------------------

    async def _exchange_turn(self) -> float:
        """Say hello, (re)join, deliver updates, learn of versions. Gives seconds until the next turn."""
        assert self.link is not None
        await self._membership.tell(self.link)
        pending = await self.exchange.deliver()
        await self._membership.part(self.link)
        for federation in self._store.federations():
            if federation.state in ("open", "finished"):
                try:
                    await self.exchange.latest(federation.name)
                except (RefusedError, ProtocolError) as error:  # the other federations are not to wait for this one
                    log.warning("no version is had", federation=federation.name, why=str(error))
                    self._no_task[federation.name] = (error.message[:500], time.time() + _TURN_S)
                self._work.set()
        await self.exchange.prove()
        await self.exchange.ask_again()
        self._store.put("bytes", list(self.bytes))
        return 3.0 if pending else _TURN_S

    # -- tasks -------------------------------------------------------------------------------------------------------

    async def _work_turn(self) -> float:
        """Get a task when one could run, and everything it needs. Gives seconds until the next turn."""
        task = self._store.task_at_hand()
        if task is None and self._may_ask():
            task = await self._ask()
            self._on_change()
        if task is None:
            waits = [at - time.time() for _, at in self._no_task.values()]
            return min([_TURN_S, *(max(0.5, w) for w in waits)])
        if task.state == "fetching":
            await self._prepare(task)
            self._on_change()
        return _TURN_S if self._store.task_at_hand() else 0.5

    async def _ask(self) -> Task | None:
        assert self.link is not None
        # Fair among several: who has had the least training time comes first.
        turns = in_turn((f.name for f in self._store.federations()), self._store.get("trained_s", {}))
        for federation in sorted(self._store.federations(), key=lambda f: turns.index(f.name)):
            until = self._no_task.get(federation.name, ("", 0.0))[1]
            if federation.state != "open" or until > time.time():
                continue
            last = self._store.last_task(federation.name)
            if last and last.state == "given_up" and last.version == federation.version:
                reason = (
                    f"the task of version {last.version} was given up ({last.reason}); `zk0ctl train now` tries again"
                )
                self._no_task[federation.name] = (reason, time.time() + 3600)
                continue
            try:
                reply = await self.link.request("task.request", {"federation": federation.name})
            except RefusedError as error:
                self._no_task[federation.name] = (error.message[:500], time.time() + 30.0)
                continue
            body = reply.get("task")
            if body is None:
                wait = reply.get("retry_s")
                wait = float(wait) if isinstance(wait, int | float) else 30.0
                self._no_task[federation.name] = (str(reply.get("reason", ""))[:500], time.time() + min(wait, 600.0))
                continue
            known = self._store.task(checked(body, federation.name)["id"])
            if known is not None and known.state == "trained" and not await self.exchange.lost_by_hub(known):
                self._no_task[federation.name] = (self.exchange.answer(known), time.time() + 10)
                continue
            self._no_task.pop(federation.name, None)
            self._store.add_task({**body, "due_at": due_at(body, time.time())})
            self._store.event("task", f"took a task of federation {federation.name}, version {body['version']}",
                              federation=federation.name, version=body["version"], task=body["id"])  # fmt: skip
            return self._store.task(body["id"])
        return None

    async def _prepare(self, task: Task) -> None:
        """Fetch what the task needs and check the datasets against its spec; then it is ready."""
        assert self.link is not None
        try:
            for key, what in (("spec_digest", "the spec"), ("base_digest", "the base"), ("version_digest", "version")):
                what = f"version {task.version}" if what == "version" else what
                self._block(task, f"fetching {what} of federation {task.federation}", "trains when it is here")
                await self.link.fetch(task.body[key], self.exchange.relatives(task.federation, task.body[key]))
        except (RefusedError, PayloadError) as error:
            self._store.set_task(task.id, state="given_up", reason=error.message)
            self._store.event("task", f"task {task.id} given up: {error.message}", federation=task.federation,
                              version=task.version, task=task.id)  # fmt: skip
            return
        fits, reasons = self.fitting.of(task.body["spec_digest"])
        for text in reasons:
            log.warning("a dataset does not fit the federation", federation=task.federation, why=text)
        if not fits:
            why = "; ".join(reasons) or "no dataset to train on"
            self._block(task, f"no dataset fits federation {task.federation}: {why}", "waits for that to be changed")
            return
        self._blocked.pop(task.id, None)
        now = self._store.task(task.id)
        if now is not None and now.state == "fetching":  # not when the federation was left meanwhile
            self._store.set_task(task.id, state="ready")

    def _block(self, task: Task, reason: str, waits_for: str) -> None:
        self._blocked[task.id] = (reason, waits_for)
        self._on_change()

    # -- what the training loop asks (TaskSource) --------------------------------------------------------------------

    def job(self, task: Task) -> dict[str, Any]:
        """The trainer's job for `task`, all but where it writes."""
        return self.fitting.job(task)

    def blocked(self, task: Task) -> tuple[str, str]:
        """Why `task` cannot run yet and what it waits for; empty when it can."""
        if task.state == "ready":
            return "", ""
        if self.held and task.state == "fetching":
            return f"fetching version {task.version} of federation {task.federation} waits: {self.held}", "then trains"
        default = (f"version {task.version} of federation {task.federation} is not here yet", "waits for the hub")
        return self._blocked.get(task.id, default)

    async def trained(self, task: Task, result: dict[str, Any]) -> None:
        """Keep the finished training as a signed update, then see it delivered."""
        await self.exchange.keep(task, result)
        self._wake.set()

    def given_up(self, task: Task, reason: str) -> None:
        self._no_task.pop(task.federation, None)

    def put_off(self, task: Task, reason: str, until: float) -> None:
        """A task that is not begun: the other federations have their turn, this one is asked again at `until`."""
        self._store.set_task(task.id, state="dropped", reason=reason)
        self._store.event("task", f"version {task.version} of {task.federation} is not begun: {reason}")
        self._no_task[task.federation] = (reason, until)
        self._work.set()

    def forgive(self) -> None:
        """A person wants training now: ask again, also for what was given up."""
        for federation in self._store.federations():
            last = self._store.last_task(federation.name)
            if last is not None and last.state == "given_up":
                self._store.set_task(last.id, state="dropped")
        self.kick()

    def link_signal(self) -> LinkSignal:
        if self.link is None:
            return LinkSignal("closed", self.trouble or "not enrolled")
        state = self.link.state
        return LinkSignal(state.phase, state.reason, state.next_attempt)

    def no_task(self) -> tuple[str, float | None]:
        """The most useful reason why there is no task, and when it is asked for again."""
        for federation in self._store.federations():
            if federation.state in ("joining", "gathering"):
                why = federation.reason or (
                    "waits for more nodes" if federation.state == "gathering" else "the hub has not answered yet"
                )
                return f"federation {federation.name} is {federation.state}: {why}", None
            if federation.name in self._no_task:
                return self._no_task[federation.name]
            if federation.state == "finished":
                return f"federation {federation.name} is finished", None
        return "", None
