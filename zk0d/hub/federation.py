"""One federation's life on the hub: members, tasks, updates, merges, versions. The runner around rounds.py.

Everything decided is in the ledger before it is said; what a kill interrupts is taken up again by `resume`. Not for TLS
(link), not for evaluating (evaluation.py), not for the maintainer's commands (admin.py).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from zk0d.errors import RefusedError, UsageError
from zk0d.hub import rounds, schedules, statistics
from zk0d.hub.custody import Custody
from zk0d.hub.intake import Intake
from zk0d.hub.merging import Merging
from zk0d.hub.state import FederationState, HubServices
from zk0d.link.rates import Pace

log = structlog.get_logger("federation")

MAX_DATASETS = 256
LEAVES, LEAVE_S = 10, 300.0
"""How often a node may leave at once, and then once in so many seconds: to leave and to join are lines of an audit that
is never cut."""
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
"""Version 4, random (RFC 9562): one that is made of an address or a time is not."""


class FederationRunner(FederationState):
    """Answers the nodes' requests about one federation and runs its merges."""

    def __init__(self, name: str, hub: HubServices) -> None:
        super().__init__(name, hub)
        self.custody = Custody(hub.store, hub.ledger.refusals)
        self._merging = Merging(self)
        self._leaving: dict[str, Pace] = {}
        self._intake = Intake(self, self._merging.consider)
        self.offer, self.standing = self._intake.offer, self._intake.standing
        self.node_is_here, self.receive = self._intake.node_is_here, self._intake.receive
        self.open_if_ready, self.consider = self._merging.open_if_ready, self._merging.consider
        self.close, self.announce = self._merging.close, self._merging.announce

    @contextmanager
    def merging(self) -> Iterator[None]:
        """Keep merges away for the time of the block. Raises UsageError while one is under way; one that was planned
        and failed (it is tried again now and then) is not, or nobody could roll back from what made it fail."""
        if self._merging.busy:
            raise UsageError(f"federation {self.name} is merging", "try again in a moment")
        self._merging.busy = True
        try:
            yield
        finally:
            self._merging.end()

    @property
    def is_merging(self) -> bool:
        """Whether a version is in the making."""
        return self._merging.busy

    # -- what status and others ask --------------------------------------------------------------------------------

    def headline(self) -> str:
        """State, reason and next event in one sentence."""
        snapshot, now = self.snapshot(), self.hub.now()
        if snapshot.phase == "gathering":
            return f"gathering: {rounds.counted(rounds.gathering(self.rules, snapshot), 'more node')} must join"
        if snapshot.phase == "finished":
            return rounds.finished(snapshot)
        if snapshot.hold == "frozen":
            waiting = rounds.counted(len(snapshot.buffer), "update")
            return f"frozen at version {snapshot.version} with {waiting}: `thaw` goes on"
        awaited = rounds.awaited(self.rules, snapshot, now)
        if snapshot.hold and not snapshot.buffer and not awaited:
            without = f" without {_names(snapshot.outstanding)}, who gave nothing" if snapshot.outstanding else ""
            return f"drained at version {snapshot.version}{without}: `thaw` goes on"
        given = len({g.node for g in snapshot.buffer})
        if self._merging.busy:
            return f"version {snapshot.version} is out; version {snapshot.version + 1} is being merged"
        at = rounds.deadline(self.rules, snapshot)
        late = "" if at is None else f", deadline {'passed' if at <= now else 'in ' + rounds.duration(at - now)}"
        held = ", draining" if snapshot.hold else ""
        if (ends := rounds.drain_ends(self.rules, snapshot)) is not None and awaited:
            held += f": waits for {_names(awaited)}, at most {rounds.duration(ends - now)} more"
        if (few := len(snapshot.members)) < self.rules.quorum:
            held += (
                f"; the quorum is {self.rules.quorum}, {rounds.counted(few, 'node')} left: `zk0-hub federation set` a"
                " smaller one"
            )
        return f"version {snapshot.version} is out; {given} of {self.rules.target} updates for the next{late}{held}"

    # -- requests of nodes -----------------------------------------------------------------------------------------

    def join(self, node: str, body: dict[str, Any]) -> dict[str, Any]:
        """`federation.join`. Statistics count until the federation opens."""
        datasets = body["datasets"]
        frames = _frames(datasets)
        row = self.row
        needed = row["phase"] == "gathering" or body["stats"]
        stats = statistics.check(body["stats"], self.spec, frames) if needed else {}
        kept = [{k: d[k] for k in ("uuid", "episodes", "frames")} for d in datasets]
        if self.ledger.members.join(self.name, node, stats, kept):
            log.info("a node joined", federation=self.name, node=node, datasets=len(kept))
        self.hub.spawn(self.open_if_ready(), f"open {self.name}")
        return {"state": row["phase"], "spec_digest": row["spec"]}

    def leave(self, node: str) -> dict[str, Any]:
        """`federation.leave`. Nothing waits for the node from now on; to leave twice is to have left."""
        if self.ledger.members.has(self.name, node):
            pace = self._leaving.setdefault(node, Pace(1 / LEAVE_S, LEAVES))
            if not pace.go(time.monotonic()):
                raise RefusedError("you have left and joined too often: say it again later", reason="busy")
        if self.ledger.members.leave(self.name, node):
            log.info("a node left", federation=self.name, node=node)
            self.consider()  # a drain may have waited for it
        return {"state": "left"}

    def task(self, node: str) -> dict[str, Any]:
        """`task.request`."""
        answer = rounds.task_for(self.rules, self.snapshot(), node, self.hub.now())
        if isinstance(answer, rounds.Wait):
            return {"task": None, "reason": answer.reason, "retry_s": round(answer.retry_s, 1)}
        version = self.ledger.version(self.name)
        assert version is not None
        training, schedule = self.config.table("training"), self.config.table("schedule")
        # All there ever were, so only where the schedule looks at them.
        heldout = self.custody.losses(self.name) if schedule["kind"] == "plateau" or schedule["adaptive_mu"] else []
        own = self.custody.own_losses(self.name, node) if schedule["node_lr"] else []
        now = schedules.settings(training, schedule, version["number"], heldout, own)
        settings = {**training, **now, "deadline_s": self.rules.deadline_s}
        task = self.ledger.task(self.name, node, version, settings)
        log.info(
            "task", federation=self.name, node=node, version=version["number"], task=task["id"], again=answer.again
        )
        due = rounds.due_in(self.rules, self.snapshot(), self.hub.now())
        if due is not None:
            task = {**task, "due_s": round(due, 1)}
        return {"task": task, "reason": "", "retry_s": 0}

    def latest(self) -> dict[str, Any]:
        """`version.latest`."""
        version = self.ledger.version(self.name)
        if version is None:
            return {"number": None, "reason": self.headline()}
        row = self.row
        return {
            "number": version["number"],
            "digest": version["digest"],
            "spec_digest": row["spec"],
            "base_digest": row["base"],
            "metrics": {"updates": version["updates"], "samples": version["samples"], "heldout_loss": version["loss"]},
        }

    def resume(self) -> None:
        """Take up what a stop or a kill interrupted."""
        self.hub.spawn(self.open_if_ready(), f"open {self.name}")
        self.consider()


def _names(nodes: frozenset[str]) -> str:
    """A few of them by name."""
    few = sorted(nodes)[:3]
    return ", ".join(few) + (f" and {len(nodes) - len(few)} more" if len(nodes) > len(few) else "")


def _frames(datasets: list[dict[str, Any]]) -> int:
    """The frames that a node's datasets have together, by its word. Raises RefusedError when that cannot be."""
    if len(datasets) > MAX_DATASETS:
        raise RefusedError(f"{len(datasets)} datasets, at most {MAX_DATASETS}", reason="malformed")
    if any(not _UUID.fullmatch(d["uuid"]) for d in datasets) or len({d["uuid"] for d in datasets}) < len(datasets):
        raise RefusedError("a dataset is known here by a random UUID of its own only", reason="malformed")
    frames = sum(d["frames"] for d in datasets)
    if any(not 0 <= d["episodes"] <= statistics.MAX_FRAMES or d["frames"] < 0 for d in datasets):
        raise RefusedError("a dataset with a number of episodes or frames that none can have", reason="malformed")
    if frames > statistics.MAX_FRAMES:
        raise RefusedError(f"{frames} frames, at most {statistics.MAX_FRAMES}", reason="malformed")
    return int(frames)
