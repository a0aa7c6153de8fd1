"""Opening a federation and merging its updates into versions; what a kill interrupts is begun again, same bytes.

When a merge is due is decided in rounds.py, how tensors are merged in aggregate.py.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import structlog

from zk0d.errors import ConfigError, PayloadError, WorkerError, Zk0Error
from zk0d.hub import admission, aggregate, lost, recipe, rounds, statistics
from zk0d.hub.coherence import unheld
from zk0d.hub.custody import take_settings
from zk0d.hub.state import FederationState
from zk0d.hub.store import Row
from zk0d.supervise import Worker

log = structlog.get_logger("federation")

_LOOKED_AT = 8
"""Versions before the newest in which a merge looks for what may go; a backup may have held some back."""
_CANNOT_BEGIN = "the next merge cannot be begun"
_MERGE_RETRY_S = 30.0
"""After a merge that failed for a reason of this machine (disk full)."""
_LOOK_S = 60.0
"""So often a deadline is looked at: a timer does not hear that the clock was set, or that the machine slept."""
_READS = 10
"""So often the file of an update is tried that is there and cannot be read, before the others go on without it."""


class Merging:
    """One federation's versions in the making."""

    def __init__(self, federation: FederationState) -> None:
        self._fed, self._hub, self._ledger = federation, federation.hub, federation.ledger
        self.busy = self._closed = False
        self._work = self._hub.directory / "work" / "merge" / federation.name
        self._timer: asyncio.TimerHandle | None = None
        self._unread = ("", 0)
        """The update whose file could not be read, and how often in a row."""
        self._looked_at: tuple[frozenset[str], str] = (frozenset(), "")
        """The updates whose files were found whole after a worker's error, and that error."""

    async def open_if_ready(self) -> None:
        """Fix the statistics and publish version 0 once enough nodes have joined."""
        if self._closed:  # it was removed meanwhile
            return
        row = self._fed.row
        if (
            row["phase"] != "gathering"
            or self.busy
            or rounds.gathering(self._fed.rules, self._ledger.snapshot(self._fed.name))
        ):
            return
        self.busy = True
        try:
            parts = [json.loads(m["stats"]) for m in self._ledger.members.of(self._fed.name)]
            spec = self._fed.spec.with_stats(statistics.merge(parts))
            blobs = self._hub.blobs
            exchange, base, out = blobs.path(row["exchange"]), blobs.path(row["base"]), self._work / "master"
            await asyncio.to_thread(shutil.rmtree, self._work, True)
            made = await asyncio.to_thread(aggregate.first_master, spec, exchange, base, out)
            await asyncio.to_thread(blobs.add_file, out, move=True)
            digest = blobs.add_bytes(spec.to_bytes())
            self._ledger.open(self._fed.name, digest, row["exchange"], made)
        except (Zk0Error, OSError, sqlite3.Error) as error:
            self._fed.problem = f"version 0 cannot be published: {error}"
            log.error("federation cannot open", federation=self._fed.name, error=str(error))
            if not self._hub.stopping():
                asyncio.get_running_loop().call_later(_MERGE_RETRY_S, self._open_again)
            return
        finally:
            self.end()
        self._fed.problem = ""
        log.info("federation open", federation=self._fed.name, nodes=len(parts), spec=digest)
        await self.announce(0)

    def _open_again(self) -> None:
        if not self._hub.stopping():
            self._hub.spawn(self.open_if_ready(), f"open {self._fed.name}")

    def end(self) -> None:
        """No version is in the making any more, however that ended: what was set meanwhile holds from now on."""
        self.busy = False
        try:
            self._fed.settle()
        except (Zk0Error, sqlite3.Error) as error:
            log.error("settings cannot be read", federation=self._fed.name, error=str(error))

    def consider(self) -> None:
        """Merge if a merge is due, or look again when it may be."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.busy or self._closed or self._hub.stopping():
            return
        try:
            due = self._due()
        except (Zk0Error, OSError, sqlite3.Error) as error:
            self._fed.problem = f"{_CANNOT_BEGIN}: {error or type(error).__name__}"
            log.error("merge cannot begin", federation=self._fed.name, error=str(error))
            self._look_again(_MERGE_RETRY_S)
            return
        if self._fed.problem.startswith(_CANNOT_BEGIN):
            self._fed.problem = ""
        if due is not None:
            self.busy = True
            self._hub.spawn(self._merge(due), f"merge {self._fed.name} {due.version}")

    def _due(self) -> rounds.Merge | None:
        """The merge to make now, which is then begun in the ledger; None where none is due, looked at again when one
        may be. ConfigError where none can."""
        self._require_privacy()
        begun = self._ledger.plans.unfinished(self._fed.name)
        if begun is not None:
            return begun
        found = rounds.merge_due(self._fed.rules, self._fed.snapshot(), self._hub.now())
        if isinstance(found, float):
            self._look_again(min(found - self._hub.now(), _LOOK_S))
            return None
        if found is None:
            return None
        planned = self._planned(found)
        self._ledger.plans.begin(self._fed.name, planned)
        return planned

    def _require_privacy(self) -> None:
        """ConfigError where the federation's settings ask for a privacy that no merge can hold. Newer ones hold at
        once: the version from which on they would never comes."""
        name, row = self._fed.name, self._fed.row
        if row["phase"] != "open" or not unheld(self._fed.config):
            return
        if (begun := self._ledger.plans.unfinished(name)) is not None:
            self._ledger.plans.drop(name, begun.version, [], "")
        with self._hub.store.write() as db:
            take_settings(self._hub.store, db, name, int(self._fed.snapshot().version) + 1)
        self._fed.settle()
        if told := unheld(self._fed.config):
            raise ConfigError(
                f"no merge can hold {told}, which an older zk0-hub took, and none is made with less privacy",
                f"`zk0-hub federation set {name}` finite ones",
            )

    def _planned(self, merge: rounds.Merge) -> rounds.Merge:
        """The merge with its recipe and clipping fixed, so that begun again it gives the same bytes."""
        made = recipe.from_config(self._fed.config, secrets.token_hex(32))
        rows = [self._ledger.update(s.update) for s in merge.shares]
        norms = [float(r["norm"] or 0.0) for r in rows if r is not None]
        past = self._ledger.past_norms(self._fed.name)
        shares = recipe.scaled(made, merge.shares, norms, past, self._fed.config["merge.clip"])
        return replace(merge, shares=shares, recipe=made.plan())

    def _look_again(self, delay: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(max(0.01, delay), self.consider)

    async def _merge(self, merge: rounds.Merge) -> None:
        last = rounds.ends(self._fed.rules, merge.version)
        try:
            made, seconds = await self._made(merge)
            receipts = self._ledger.commit_merge(
                self._fed.name,
                merge,
                made,
                seconds,
                last,
                recipe.Recipe(**merge.recipe).told(),
                self._fed.rules.max_staleness,
            )
        except admission.CancelledError:
            self.end()
            return
        except Exception as error:
            self._not_made(merge, error)
            return
        self.end()
        self._fed.problem = ""
        log.info("version", federation=self._fed.name, version=merge.version, updates=len(merge.shares),
                 digest=made.published, seconds=round(seconds, 3), finished=last)  # fmt: skip
        try:
            await self.announce(merge.version)
            for node, receipt, signature in receipts:
                await self._hub.push(node, "receipt", {"receipt": receipt, "signature": signature})
            self._prune(merge.version)
        finally:  # the version is out, whatever else fails: its federation goes on
            self.consider()

    def _not_made(self, merge: rounds.Merge, error: Exception) -> None:
        """What follows from a merge that failed: it is tried again, or made without the update that is to blame."""
        match error:
            case lost.UnreadableError():
                self._unreadable(merge, error)
            case PayloadError():
                self._give_up(merge, error)
            case WorkerError():  # Flower's: planned anew, so that another strategy can be set meanwhile
                self._ledger.plans.drop(self._fed.name, merge.version, [], "")
                self._failed(merge, error)
            case Zk0Error() | OSError() | sqlite3.Error():
                self._failed(merge, error)
            case _:  # a defect: told, and tried again, instead of a federation that stands still
                log.error("merge broke", federation=self._fed.name, version=merge.version, exc_info=error)
                self._failed(merge, error)

    def _failed(self, merge: rounds.Merge, error: Exception) -> None:
        self._fed.problem = f"version {merge.version} cannot be merged: {error or type(error).__name__}"
        log.error("merge failed", federation=self._fed.name, version=merge.version, error=str(error))
        self.end()
        self._look_again(_MERGE_RETRY_S)

    async def _made(self, merge: rounds.Merge) -> tuple[aggregate.Merged, float]:
        """The merge's files and its seconds. Where it fails for what the updates hold, their files are looked at: an
        update that this disk spoilt is to blame then, and no node. Once where a worker goes on failing in the same way:
        Flower may not be installed for days, and the files are gigabytes."""
        try:
            return await self._aggregate(merge)
        except lost.DamagedError:
            raise
        except (PayloadError, WorkerError) as error:
            looked_at = (frozenset(s.update for s in merge.shares), str(error))
            if isinstance(error, WorkerError) and looked_at == self._looked_at:
                raise
            blobs = self._hub.blobs
            previous = self._ledger.version(self._fed.name, merge.version - 1)
            own = [previous["master"], previous["digest"], *json.loads(previous["moments"])] if previous else []
            updates = [r["payload"] for s in merge.shares if (r := self._ledger.update(s.update)) is not None]
            of, merged_onto = ([(blobs.path(d), d) for d in ds] for ds in (updates, [d for d in own if blobs.has(d)]))
            await asyncio.to_thread(lost.check, of, merged_onto, self._hub.stopping)
            self._looked_at = looked_at
            raise

    async def _aggregate(self, merge: rounds.Merge) -> tuple[aggregate.Merged, float]:
        began, blobs = time.monotonic(), self._hub.blobs
        previous = self._ledger.version(self._fed.name, merge.version - 1)
        assert previous is not None
        updates = []
        for share in merge.shares:
            row = self._ledger.update(share.update)
            assert row is not None
            updates.append((blobs.path(row["payload"]), share.weight))
        how = recipe.Recipe(**merge.recipe)
        before = (blobs.path(previous["master"]), blobs.path(previous["digest"]))
        old = [blobs.path(d) for d in json.loads(previous["moments"]) if blobs.has(d)]
        if len(old) != how.moments:  # the optimiser is a new one, or begins
            old = []
        out = [self._work / n for n in ("master", "published", "moment1", "moment2")[: 2 + how.moments]]
        await asyncio.to_thread(shutil.rmtree, self._work, True)  # what a kill left unfinished
        blobs.require_space((2 + 2 * how.moments) * self._fed.spec.payload_bytes + previous["size"])
        if how.strategy.startswith("flower:"):
            made = await self._by_flower(merge, how.strategy.removeprefix("flower:"), previous, updates)
            for path in out:
                await asyncio.to_thread(blobs.add_file, path, move=True)
            return made, time.monotonic() - began
        made = await asyncio.to_thread(
            aggregate.merge, self._fed.spec, before, updates, out[0], out[1],
            self._hub.stopping, how, [s.scale for s in merge.shares], old, out[2:],
        )  # fmt: skip
        for path, digest in zip(out, (made.master, made.published, *made.moments), strict=True):
            if path.exists():  # a float32 version is its own master
                known = made.manifest if digest == made.published else None
                await asyncio.to_thread(blobs.place, path, digest, known)  # the writer has hashed and flushed it
        return made, time.monotonic() - began

    async def _by_flower(
        self, merge: rounds.Merge, name: str, previous: Row, updates: list[tuple[Path, float]]
    ) -> aggregate.Merged:
        """One merge by a Flower strategy, in a worker: the hub never imports flwr. Raises Zk0Error."""
        blobs, scales = self._hub.blobs, [s.scale for s in merge.shares]
        job = {
            "strategy": name, "version": merge.version, "spec": str(blobs.path(self._fed.row["spec"])),
            "master": str(blobs.path(previous["master"])), "published": str(blobs.path(previous["digest"])),
            "updates": [[str(p), w, s] for (p, w), s in zip(updates, scales, strict=True)],
            "out_master": str(self._work / "master"), "out_published": str(self._work / "published"),
        }  # fmt: skip
        worker = await Worker.start(self._hub.config["runtime.python"], "zk0d.hub.flower", job, self._work / "job",
                                    self._hub.directory / "log" / "flower.log")  # fmt: skip
        try:
            result = await worker.wait()
        finally:
            if worker.running:
                await worker.kill()
        if "spoilt" in result:
            raise PayloadError(f"Flower's {name} makes tensor {result['spoilt']!r} infinite of these updates")
        return aggregate.Merged(result["master"], result["published"], result["size"])

    def _give_up(self, merge: rounds.Merge, error: PayloadError) -> None:
        """The admitted updates cannot be merged together: refuse the one that is damaged, or else that of largest norm,
        and keep the others."""
        rows = [r for s in merge.shares if (r := self._ledger.update(s.update)) is not None]
        worst = max(rows, key=lambda r: (r["norm"] or 0.0, r["digest"]))
        if damaged := isinstance(error, lost.DamagedError):
            worst = next(r for r in rows if r["digest"] == merge.shares[error.number].update)
        log.error(
            "merge given up",
            federation=self._fed.name,
            version=merge.version,
            error=str(error),
            refused=worst["digest"],
        )
        self._ledger.plans.drop(
            self._fed.name, merge.version, [worst["digest"]], f"it could not be merged: {error.message}",
            fault=not damaged,
        )  # fmt: skip
        self._fed.problem = ""
        self.end()
        self.consider()

    def _unreadable(self, merge: rounds.Merge, error: lost.UnreadableError) -> None:
        """The file may be mended, so it is tried again; but not for ever, since the others' work waits."""
        share, (before, times) = merge.shares[error.number], self._unread
        self._unread = (share.update, times + 1 if share.update == before else 1)
        left = _READS - self._unread[1]
        if left <= 0:
            self._give_up(merge, lost.DamagedError(error.number, f"their file cannot be read: {error.message}"))
            return
        row = self._ledger.update(share.update)
        path = "" if row is None else f"{self._hub.blobs.path(row['payload'])}: "
        drop = f"`zk0-hub federation drop {self._fed.name} {share.update[7:19]}`"
        self._failed(merge, Zk0Error(
            f"the update of {share.node} cannot be read: {path}{error.message}",
            f"mend the file, or {drop} goes on without it; else it is refused in"
            f" {rounds.duration(left * _MERGE_RETRY_S)}",
        ))  # fmt: skip

    async def announce(self, number: int) -> None:
        version, row = self._ledger.version(self._fed.name, number), self._fed.row
        assert version is not None
        self._hub.version_made(self._fed.name)
        body = {"federation": self._fed.name, "number": number, "digest": version["digest"], "spec_digest": row["spec"],
                "base_digest": row["base"]}  # fmt: skip
        for member in sorted(self._ledger.members.names(self._fed.name)):
            await self._hub.push(member, "version.new", body)

    def _prune(self, newest: int) -> None:
        """Delete what no merge needs any more: payloads and masters from before the last merge. What a kill leaves of
        older ones goes at the next start (refusals.Aftermath.sweep)."""
        try:
            old = []
            for v in self._ledger.versions(self._fed.name, newest - _LOOKED_AT, newest):
                # A version that was rolled back to has no payloads of its own: those before it may still be here.
                old += [r["payload"] for r in self._ledger.merged_into(self._fed.name, v["number"])]
                old += [v["master"], *json.loads(v["moments"])]
            for digest in old:  # most are long gone: the database is asked about those that are there
                if self._hub.blobs.has(digest) and not self._ledger.blob_needed(digest):
                    self._hub.discard(digest)
        except (OSError, sqlite3.Error) as error:
            log.warning("what is needed no more stays for now", federation=self._fed.name, error=str(error))

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
