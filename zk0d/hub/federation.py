"""One federation's life on the hub: members, tasks, updates, merges, versions. The runner around rounds.py.

Everything decided is in the ledger before it is said; what a kill interrupts is taken up again by `resume`. Not for TLS
(link), not for evaluating (evaluation.py), not for the maintainer's commands (admin.py).
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol

import structlog

from zk0d.errors import LinkClosedError, LinkLostError, PayloadError, ProtocolError, RefusedError, Zk0Error
from zk0d.hub import admission, aggregate, rounds, statistics
from zk0d.hub.config import Config
from zk0d.hub.ledger import Ledger
from zk0d.hub.receipts import Statement, check_signature, read_statement
from zk0d.hub.store import Row
from zk0d.model.blobs import BlobStore
from zk0d.model.spec import ModelSpec

log = structlog.get_logger("federation")

MAX_DATASETS = 256
_MERGE_RETRY_S = 30.0
"""After a merge that failed for a reason of this machine (disk full)."""


class HubServices(Protocol):
    """What a federation needs of the hub around it."""

    directory: Path
    ledger: Ledger
    blobs: BlobStore

    def now(self) -> float: ...
    def stopping(self) -> bool: ...
    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None: ...
    def certificate(self, node: str) -> bytes: ...
    async def push(self, node: str, kind: str, body: dict[str, Any]) -> None: ...
    async def fetch(self, node: str, digest: str, limit: int) -> Path: ...
    def version_made(self, federation: str) -> None: ...


class FederationRunner:
    """Answers the nodes' requests about one federation and runs its merges."""

    def __init__(self, name: str, config: Config, hub: HubServices) -> None:
        self.name = name
        self.config = config
        self.problem = ""
        """Why it does not go on, for status; "" when it does."""
        self._hub, self._ledger = hub, hub.ledger
        self._rules = rounds.Rules(
            *(
                config[f"rounds.{k}"]
                for k in ("min_nodes", "target", "quorum", "deadline_s", "versions", "max_staleness")
            )
        )
        self._work = hub.directory / "work" / "merge" / name
        self._busy: set[str] = set()
        self._merging = False
        self._timer: asyncio.TimerHandle | None = None
        self._spec: ModelSpec | None = None

    # -- what status and others ask --------------------------------------------------------------------------------

    @property
    def row(self) -> Row:
        return self._ledger.federation(self.name)

    @property
    def spec(self) -> ModelSpec:
        """The fixed spec, or the draft without statistics while it gathers."""
        if self._spec is None or self._spec.stats is None:
            row = self.row
            self._spec = ModelSpec.load(self._hub.blobs.path(row["spec"] or row["draft_spec"]))
        return self._spec

    def public_digests(self) -> set[str]:
        """Blobs that members may download now."""
        row = self.row
        versions = self._ledger.versions(self.name)
        return {row["spec"], row["base"], *(v["digest"] for v in versions)} - {None} if versions else set()

    def headline(self) -> str:
        """State, reason and next event in one sentence."""
        snapshot, now = self._ledger.snapshot(self.name), self._hub.now()
        if snapshot.phase == "gathering":
            return f"gathering: {rounds.gathering(self._rules, snapshot)} more nodes must join"
        if snapshot.phase == "finished":
            return f"finished with version {snapshot.version}"
        given = len({g.node for g in snapshot.buffer})
        if self._merging:
            return f"version {snapshot.version} is out; version {snapshot.version + 1} is being merged"
        at = rounds.deadline(self._rules, snapshot)
        late = "" if at is None else f", deadline {'passed' if at <= now else 'in ' + rounds.duration(at - now)}"
        return f"version {snapshot.version} is out; {given} of {self._rules.target} updates for the next{late}"

    # -- requests of nodes -----------------------------------------------------------------------------------------

    def join(self, node: str, body: dict[str, Any]) -> dict[str, Any]:
        """`federation.join`. Statistics count until the federation opens."""
        datasets = body["datasets"]
        if len(datasets) > MAX_DATASETS or any(len(d["uuid"]) > 64 for d in datasets):
            raise RefusedError(f"{len(datasets)} datasets, at most {MAX_DATASETS}", reason="malformed")
        row = self.row
        needed = row["phase"] == "gathering" or body["stats"]
        stats = statistics.check(body["stats"], self.spec) if needed else {}
        kept = [{k: d[k] for k in ("uuid", "episodes", "frames")} for d in datasets]
        if self._ledger.join(self.name, node, stats, kept):
            log.info("a node joined", federation=self.name, node=node, datasets=len(kept))
        self._hub.spawn(self.open_if_ready(), f"open {self.name}")
        return {"state": row["phase"], "spec_digest": row["spec"]}

    def task(self, node: str) -> dict[str, Any]:
        """`task.request`."""
        answer = rounds.task_for(self._rules, self._ledger.snapshot(self.name), node, self._hub.now())
        if isinstance(answer, rounds.Wait):
            return {"task": None, "reason": answer.reason, "retry_s": round(answer.retry_s, 1)}
        version = self._ledger.version(self.name)
        assert version is not None
        settings = {**self.config.table("training"), "deadline_s": self._rules.deadline_s}
        task = self._ledger.task(self.name, node, version, settings)
        log.info(
            "task", federation=self.name, node=node, version=version["number"], task=task["id"], again=answer.again
        )
        return {"task": task, "reason": "", "retry_s": 0}

    def latest(self) -> dict[str, Any]:
        """`version.latest`."""
        version = self._ledger.version(self.name)
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

    def offer(self, node: str, raw: bytes, signature: bytes) -> dict[str, Any]:
        """`update.offer`: note the update and begin to take it, or say what has become of it."""
        try:
            statement = read_statement(raw, signature)
        except ProtocolError as error:
            raise RefusedError(error.message, reason="bad_statement") from None
        known = self._ledger.update(statement.digest)
        if known is None or known["node"] != node:
            self._check_offer(node, statement)
            self._ledger.offer(statement)
            log.info("update offered", federation=self.name, node=node, update=statement.digest, size=statement.size)
        answer = self.standing(node, statement.digest)
        if answer.get("state") == "receiving":
            self._hub.spawn(self.receive(statement), f"receive {statement.digest}")
        return answer

    def _check_offer(self, node: str, s: Statement) -> None:
        """Everything that can be judged before a byte of the payload moves. Raises RefusedError."""
        task = self._ledger.task_row(s.task)
        if s.node != node or task is None or (task["node"], task["federation"]) != (node, self.name):
            raise RefusedError("the update answers no task of this node", reason="no_task")
        if s.base_version != task["version"]:
            raise RefusedError(f"the task was for version {task['version']}, not {s.base_version}", reason="no_task")
        if self._ledger.update_of_task(s.task) is not None:
            raise RefusedError("this task has been answered by another update", reason="task_answered")
        if why := rounds.unacceptable(self._rules, self._ledger.snapshot(self.name), node, s.base_version):
            raise RefusedError(f"the update is not accepted: {why}", reason="too_late")
        limit = admission.size_limit(self.spec)
        if s.size > limit:
            raise RefusedError(
                f"a payload of {s.size} bytes; this federation's have at most {limit}", reason="too_large"
            )
        if s.payload in self.public_digests():
            raise RefusedError("the payload is a published version, not a delta", reason="bad_payload")
        try:
            check_signature(s, self._hub.certificate(node))
        except ProtocolError as error:
            raise RefusedError(error.message, reason="bad_signature") from None

    def standing(self, node: str, digest: str) -> dict[str, Any]:
        """What has become of a node's update: its receipt, or `receiving`. RefusedError: it was refused, or unknown."""
        row = self._ledger.update(digest)
        if row is None or row["node"] != node:
            raise RefusedError("the hub does not know this update: offer it", reason="not_found")
        if row["state"] == "refused":
            raise RefusedError(f"the update is refused: {row['reason']}", reason="bad_update")
        receipt = self._ledger.receipt(digest)
        if receipt is None:
            return {"state": "receiving"}
        return {"state": row["state"], "receipt": receipt[0], "receipt_signature": receipt[1]}

    # -- receiving and admission -----------------------------------------------------------------------------------

    def node_is_here(self, node: str) -> None:
        """Take up what the node offered before its link or this hub went away."""
        for row in self._ledger.receiving(node):
            if row["federation"] == self.name:
                statement = read_statement(bytes(row["statement"]), bytes(row["signature"]))
                self._hub.spawn(self.receive(statement), f"receive {statement.digest}")

    async def receive(self, s: Statement) -> None:
        """Fetch an offered payload, judge it, and let it count or refuse it. Does nothing while that is under way."""
        if s.digest in self._busy:
            return
        self._busy.add(s.digest)
        try:
            await self._receive(s)
        except (LinkLostError, LinkClosedError) as error:
            log.info("update not received yet; waits for the node", node=s.node, update=s.digest, why=str(error))
        except RefusedError as error:
            log.info("the node does not hand its update out yet", node=s.node, update=s.digest, why=str(error))
        except (PayloadError, ProtocolError) as error:
            await self._refuse(s, error.message)
        except admission.CancelledError:
            pass
        except Zk0Error as error:
            self.problem = error.message
            log.error("update cannot be received", node=s.node, update=s.digest, error=str(error))
        finally:
            self._busy.discard(s.digest)

    async def _receive(self, s: Statement) -> None:
        limit = min(s.size, admission.size_limit(self.spec))
        if self._hub.blobs.has(s.payload):
            path = self._hub.blobs.path(s.payload)
        else:
            path = await self._hub.fetch(s.node, s.payload, limit)
        certificate, max_norm = self._hub.certificate(s.node), self.config["admission.max_norm"]
        norm = await asyncio.to_thread(admission.inspect, path, s, certificate, self.spec, max_norm, self._hub.stopping)
        snapshot = self._ledger.snapshot(self.name)
        if why := rounds.unacceptable(self._rules, snapshot, s.node, s.base_version):
            raise PayloadError(f"the update came too late: {why}")
        row = self._ledger.update(s.digest)
        if row is None or row["state"] != "receiving":
            return
        receipt, signature = self._ledger.admit(s.digest, norm)
        self.problem = ""
        log.info("update admitted", federation=self.name, node=s.node, update=s.digest, norm=round(norm, 4))
        await self._hub.push(s.node, "receipt", {"receipt": receipt, "signature": signature})
        self.consider()

    async def _refuse(self, s: Statement, reason: str) -> None:
        row = self._ledger.update(s.digest)
        if row is None or row["state"] != "receiving":
            return
        log.warning("update refused", federation=self.name, node=s.node, update=s.digest, reason=reason)
        path = self._hub.blobs.path(s.payload)
        await asyncio.to_thread(admission.quarantine, self._hub.directory / "quarantine", path, s, reason)
        self._ledger.refuse(s.digest, reason)
        if not self._ledger.blob_needed(s.payload):
            self._hub.blobs.delete(s.payload)

    # -- opening and merging ---------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Take up what a stop or a kill interrupted."""
        self._hub.spawn(self.open_if_ready(), f"open {self.name}")
        self.consider()

    async def open_if_ready(self) -> None:
        """Fix the statistics and publish version 0 once enough nodes have joined."""
        row = self.row
        if (
            row["phase"] != "gathering"
            or self._merging
            or rounds.gathering(self._rules, self._ledger.snapshot(self.name))
        ):
            return
        self._merging = True
        try:
            parts = [json.loads(m["stats"]) for m in self._ledger.members(self.name)]
            spec = self.spec.with_stats(statistics.merge(parts))
            blobs = self._hub.blobs
            exchange, base, out = blobs.path(row["exchange"]), blobs.path(row["base"]), self._work / "master"
            await asyncio.to_thread(shutil.rmtree, self._work, True)
            made = await asyncio.to_thread(aggregate.first_master, spec, exchange, base, out)
            await asyncio.to_thread(blobs.add_file, out, move=True)
            digest = blobs.add_bytes(spec.to_bytes())
            self._ledger.open(self.name, digest, row["exchange"], made)
        except (Zk0Error, OSError) as error:
            self.problem = f"version 0 cannot be published: {error}"
            log.error("federation cannot open", federation=self.name, error=str(error))
            return
        finally:
            self._merging = False
        log.info("federation open", federation=self.name, nodes=len(parts), spec=digest)
        await self._announce(0)

    def consider(self) -> None:
        """Merge if a merge is due, or look again when it may be."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._merging or self._hub.stopping():
            return
        due = self._ledger.unfinished_merge(self.name)
        if due is None:
            found = rounds.merge_due(self._rules, self._ledger.snapshot(self.name), self._hub.now())
            if isinstance(found, float):
                self._look_again(found - self._hub.now())
                return
            if found is None:
                return
            self._ledger.begin_merge(self.name, found)
            due = found
        self._merging = True
        self._hub.spawn(self._merge(due), f"merge {self.name} {due.version}")

    def _look_again(self, delay: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(max(0.01, delay), self.consider)

    async def _merge(self, merge: rounds.Merge) -> None:
        last = rounds.ends(self._rules, merge.version)
        try:
            try:
                made, seconds = await self._aggregate(merge)
            except PayloadError as error:
                self._give_up(merge, error)
                return
            receipts = self._ledger.commit_merge(self.name, merge, made, seconds, last)
        except admission.CancelledError:
            self._merging = False
            return
        except (Zk0Error, OSError, sqlite3.Error) as error:
            self.problem = f"version {merge.version} cannot be merged: {error}"
            log.error("merge failed", federation=self.name, version=merge.version, error=str(error))
            self._merging = False
            self._look_again(_MERGE_RETRY_S)
            return
        self._merging = False
        self.problem = ""
        log.info("version", federation=self.name, version=merge.version, updates=len(merge.shares),
                 digest=made.published, seconds=round(seconds, 3), finished=last)  # fmt: skip
        await self._announce(merge.version)
        for node, receipt, signature in receipts:
            await self._hub.push(node, "receipt", {"receipt": receipt, "signature": signature})
        self._prune(merge.version)
        self.consider()

    async def _aggregate(self, merge: rounds.Merge) -> tuple[aggregate.Merged, float]:
        began, blobs = time.monotonic(), self._hub.blobs
        previous = self._ledger.version(self.name, merge.version - 1)
        assert previous is not None
        updates = []
        for share in merge.shares:
            row = self._ledger.update(share.update)
            assert row is not None
            updates.append((blobs.path(row["payload"]), share.weight))
        master, published = self._work / "master", self._work / "published"
        await asyncio.to_thread(shutil.rmtree, self._work, True)  # what a kill left unfinished
        blobs.require_space(2 * self.spec.payload_bytes + previous["size"])
        made = await asyncio.to_thread(
            aggregate.merge, self.spec, blobs.path(previous["master"]), updates, master, published, self._hub.stopping
        )
        for path in (master, published):
            await asyncio.to_thread(blobs.add_file, path, move=True)
        return made, time.monotonic() - began

    def _give_up(self, merge: rounds.Merge, error: PayloadError) -> None:
        """The admitted updates cannot be merged together: refuse the one of largest norm, keep the others."""
        rows = [r for s in merge.shares if (r := self._ledger.update(s.update)) is not None]
        worst = max(rows, key=lambda r: (r["norm"] or 0.0, r["digest"]))
        log.error(
            "merge given up", federation=self.name, version=merge.version, error=str(error), refused=worst["digest"]
        )
        self._ledger.drop_merge(self.name, merge.version, [worst["digest"]], f"it could not be merged: {error.message}")
        self._merging = False
        self.consider()

    async def _announce(self, number: int) -> None:
        version, row = self._ledger.version(self.name, number), self.row
        assert version is not None
        self._hub.version_made(self.name)
        body = {"federation": self.name, "number": number, "digest": version["digest"], "spec_digest": row["spec"],
                "base_digest": row["base"]}  # fmt: skip
        for member in self._ledger.members(self.name):
            await self._hub.push(member["node"], "version.new", body)

    def _prune(self, newest: int) -> None:
        """Delete what no merge needs any more: payloads and masters from before the last merge."""
        old = [v["master"] for v in self._ledger.versions(self.name) if v["number"] < newest - 1]
        old += [r["payload"] for r in self._ledger.merged_into(self.name, newest - 1)]
        for digest in old:
            if not self._ledger.blob_needed(digest):
                self._hub.blobs.delete(digest)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
