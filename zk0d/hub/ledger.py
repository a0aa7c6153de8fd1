"""What the hub knows of federations: members, versions, tasks, updates, merges, receipts. Queries over store.py.

Each method that changes something is one transaction; what must happen together is in one method. The rules are in
rounds.py, the bytes in the blob store.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from zk0d.errors import UsageError
from zk0d.hub.aggregate import Merged
from zk0d.hub.assessments import Assessments
from zk0d.hub.custody import take_settings
from zk0d.hub.members import Members
from zk0d.hub.plans import Plans
from zk0d.hub.receipt_log import ReceiptLog
from zk0d.hub.receipts import ReceiptKey, Statement, task_id
from zk0d.hub.refusals import Refusals
from zk0d.hub.retention import Retention
from zk0d.hub.rounds import Given, Merge, Phase, Snapshot, advance
from zk0d.hub.store import Row, Store

_REFUSALS_COUNT_S = 24 * 3600.0
"""Updates refused before that are forgotten: twenty in a day make a node wait for as long as it ever has to."""


class Ledger:
    """The queries. `key` signs receipts inside the transaction that makes them true."""

    def __init__(self, store: Store, key: ReceiptKey) -> None:
        self._store = store
        self._key = key
        self.log = ReceiptLog(store, key)
        self.refusals = Refusals(store, key)
        self.plans = Plans(store, self.refusals)
        self.assessments = Assessments(store)
        self.members = Members(store, self.refusals)
        self.retention = Retention(store)

    # -- federations -----------------------------------------------------------------------------------------------

    def create(self, name: str, config: str, draft_spec: str, base: str, exchange: str, actor: str) -> None:
        """A new federation that gathers; the three digests are blobs that are already durable."""
        with self._store.write() as db:
            db.execute(
                "INSERT INTO federations (name, phase, config, draft_spec, base, exchange, created_at)"
                " VALUES (?, 'gathering', ?, ?, ?, ?, ?)",
                (name, config, draft_spec, base, exchange, self._store.now()),
            )
            self._store.audit(db, actor, "federation.create", name, draft_spec=draft_spec, base=base)

    def federation(self, name: str) -> Row:
        """Raises UsageError when there is none of this name."""
        row = self._store.one("SELECT * FROM federations WHERE name = ?", name)
        if row is None:
            raise UsageError(f"there is no federation {name[:80]!r}", "`zk0-hub federation list` shows them")
        return row

    def federations(self) -> list[Row]:
        return self._store.all("SELECT * FROM federations ORDER BY created_at, name")

    def open(self, name: str, spec: str, version: str, made: Merged) -> None:
        """Fix the spec and publish version 0."""
        with self._store.write() as db:
            self._advance(db, name, "open", "opened_at")
            db.execute("UPDATE federations SET spec = ? WHERE name = ?", (spec, name))
            self._version(db, name, 0, version, made, 0.0, 0, 0)
            self._store.audit(db, "hub", "federation.open", name, spec=spec, version=version)
            take_settings(self._store, db, name, 0)

    def finish(self, name: str, actor: str) -> None:
        """No further tasks, updates or merges. Raises IllegalTransitionError where it is finished already."""
        with self._store.write() as db:
            self._advance(db, name, "finished", "finished_at")
            self._store.audit(db, actor, "federation.finish", name)
            merging = self.plans.unfinished(name)
            self.refusals.of_finished(db, name, actor, [s.update for s in merging.shares] if merging else [])

    def _advance(self, db: sqlite3.Connection, name: str, to: Phase, column: str) -> None:
        phase = advance(self.federation(name)["phase"], to)
        db.execute(f"UPDATE federations SET phase = ?, {column} = ? WHERE name = ?", (phase, self._store.now(), name))

    def snapshot(self, name: str) -> Snapshot:
        """The federation as rounds.py looks at it."""
        row, newest = self.federation(name), self.version(name)
        version = -1 if newest is None else int(newest["number"])
        receiving = self._store.all(
            "SELECT node FROM updates WHERE federation = ? AND state = 'receiving' AND base_version = ?", name, version
        )
        tasks = self._store.all(
            "SELECT node, version FROM tasks WHERE federation = ? AND version = ? AND answered = 0", name, version
        )
        return Snapshot(
            phase=row["phase"],
            version=version,
            members=self.members.names(name),
            buffer=tuple(
                Given(r["digest"], r["node"], r["base_version"], r["counted"], r["decided_at"])
                for r in self.updates(name, "admitted")
            ),
            receiving=frozenset(r["node"] for r in receiving),
            tasks={r["node"]: r["version"] for r in tasks},
            refusals=self._refusals(name),
            hold=row["hold"],
            held_at=row["held_at"],
            floor=row["floor"],
            opened_at=0.0 if newest is None else newest["created_at"],
        )

    def _refusals(self, name: str) -> dict[str, tuple[int, float]]:
        rows = self._store.all(
            "SELECT node, count(*) AS n, max(decided_at) AS last FROM updates u WHERE federation = ?"
            " AND state = 'refused' AND fault AND decided_at > ? AND NOT EXISTS"
            " (SELECT 1 FROM updates o WHERE o.federation = u.federation AND o.node = u.node"
            "  AND o.decided_at >= u.decided_at AND o.state IN ('admitted','merged')) GROUP BY node",
            name, self._store.now() - _REFUSALS_COUNT_S,
        )  # fmt: skip
        return {r["node"]: (r["n"], r["last"]) for r in rows}

    # -- tasks -----------------------------------------------------------------------------------------------------

    def task(self, name: str, node: str, version: Row, settings: dict[str, Any]) -> dict[str, Any]:
        """The node's task of this version: the one it holds, or held when it left, or a new one with these settings."""
        old = self._store.one(
            "SELECT task, body, answered FROM tasks t WHERE federation = ? AND node = ? AND version = ? AND NOT EXISTS"
            " (SELECT 1 FROM updates u WHERE u.task = t.task) ORDER BY answered LIMIT 1",
            name, node, version["number"],
        )  # fmt: skip
        if old is not None:
            if old["answered"]:
                with self._store.write() as db:
                    db.execute("UPDATE tasks SET answered = 0 WHERE task = ?", (old["task"],))
            return dict(json.loads(old["body"]))
        row = self._store.one(
            "SELECT count(*) AS n FROM tasks WHERE federation = ? AND node = ? AND version = ?",
            name, node, version["number"],
        )  # fmt: skip
        assert row is not None
        ident, seed = task_id(name, node, version["number"], version["digest"], row["n"])
        federation = self.federation(name)
        body = {
            "id": ident,
            "federation": name,
            "version": version["number"],
            "version_digest": version["digest"],
            "spec_digest": federation["spec"],
            "base_digest": federation["base"],
            "seed": seed,
            "state_base": True,
            **settings,
        }
        with self._store.write() as db:
            db.execute(
                "INSERT INTO tasks (task, federation, node, version, body, created_at, frames)"
                " SELECT ?, ?, ?, ?, ?, ?, (SELECT coalesce(sum(json_extract(d.value, '$.frames')), 0)"
                "  FROM members m, json_each(m.datasets) d WHERE m.federation = ? AND m.node = ?)",
                (ident, name, node, version["number"], json.dumps(body), self._store.now(), name, node),
            )
        return body

    def task_row(self, task: str) -> Row | None:
        return self._store.one("SELECT * FROM tasks WHERE task = ?", task)

    # -- updates ---------------------------------------------------------------------------------------------------

    def update(self, digest: str) -> Row | None:
        return self._store.one("SELECT * FROM updates WHERE digest = ?", digest)

    def update_of_task(self, task: str) -> Row | None:
        return self._store.one("SELECT * FROM updates WHERE task = ?", task)

    def payload_had(self, payload: str, node: str) -> str:
        """What another update that has this payload, and that counts or may or is another node's, makes of it: `taken`,
        `arriving`, `nothing` (a delta of norm 0 is the same from everybody, and no work); empty: there is none."""
        rows = self._store.all(
            "SELECT state, norm FROM updates WHERE payload = ? AND (state != 'refused' OR node != ?)", payload, node
        )
        if any(r["norm"] == 0 and r["state"] in ("admitted", "merged") for r in rows):
            return "nothing"
        return "" if not rows else "arriving" if all(r["state"] == "receiving" for r in rows) else "taken"

    def updates(self, name: str, state: str) -> list[Row]:
        """In node order; `counted`: the samples that are believed, for the weight. A node has not seen more than the
        frames it had declared when it got the task (which older hubs did not note)."""
        return self._store.all(
            "SELECT u.*, min(u.samples, coalesce(max(1, t.frames), u.samples)) AS counted FROM updates u"
            " JOIN tasks t ON t.task = u.task WHERE u.federation = ? AND state = ? ORDER BY u.node, digest",
            name, state,
        )  # fmt: skip

    def receiving(self, node: str) -> list[Row]:
        """What the node offered and the hub has not decided on, over all federations."""
        return self._store.all("SELECT * FROM updates WHERE node = ? AND state = 'receiving' ORDER BY offered_at", node)

    def blob_needed(self, digest: str) -> bool:
        """Whether any federation still needs this blob: published, part of its base, or of its next or last merge."""
        row = self._store.one(
            "SELECT EXISTS (SELECT 1 FROM federations WHERE ? IN (draft_spec, spec)"
            "  OR ? IN (base, exchange) AND (spec IS NOT NULL OR phase != 'finished'))"
            " OR EXISTS (SELECT 1 FROM versions WHERE digest = ? AND retired_at IS NULL)"
            " OR EXISTS (SELECT 1 FROM versions v WHERE master = ? AND number >="
            "  (SELECT max(number) FROM versions w WHERE w.federation = v.federation) - 1)"
            " OR EXISTS (SELECT 1 FROM federations f CROSS JOIN versions v ON v.federation = f.name AND v.number >="
            "  (SELECT max(number) FROM versions w WHERE w.federation = f.name) - 1 WHERE instr(v.moments, ?))"
            " OR EXISTS (SELECT 1 FROM updates u WHERE payload = ? AND (state IN ('receiving','admitted')"
            "  OR new_version = (SELECT max(number) FROM versions w WHERE w.federation = u.federation))) AS needed",
            *[digest] * 6,
        )  # fmt: skip
        return row is not None and bool(row["needed"])

    def published_in(self, digest: str) -> list[str]:
        """The federations whose members may download this blob now."""
        rows = self._store.all(
            "SELECT name FROM federations WHERE ? IN (spec, base) AND spec IS NOT NULL"
            " UNION SELECT federation FROM versions WHERE digest = ? AND retired_at IS NULL", digest, digest
        )  # fmt: skip
        return [r["name"] for r in rows]

    def leftover(self, digest: str) -> bool:
        """Whether a blob is a payload, an old master, a retired version or a federation's, and nothing needs it: what
        a crash left."""
        row = self._store.one(
            "SELECT EXISTS (SELECT 1 FROM updates WHERE payload = ?)"
            " OR EXISTS (SELECT 1 FROM versions WHERE master = ?)"
            " OR EXISTS (SELECT 1 FROM versions WHERE digest = ?)"
            " OR EXISTS (SELECT 1 FROM federations WHERE ? IN (base, exchange)) AS known",
            *[digest] * 4,
        )  # fmt: skip
        return row is not None and bool(row["known"]) and not self.blob_needed(digest)

    def offer(self, s: Statement) -> None:
        """Note an offered update, once; its task is answered by it."""
        with self._store.write() as db:
            db.execute(
                "INSERT INTO updates (digest, federation, task, node, base_version, payload, size, samples, statement,"
                " signature, state, offered_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'receiving', ?)",
                (s.digest, s.federation, s.task, s.node, s.base_version, s.payload, s.size, s.samples, s.raw,
                 s.signature, self._store.now()),
            )  # fmt: skip
            db.execute("UPDATE tasks SET answered = 1 WHERE task = ?", (s.task,))
            self._store.audit(db, s.node, "update.offer", s.digest, federation=s.federation, payload=s.payload)

    def admit(self, digest: str, norm: float) -> tuple[bytes, bytes]:
        """The update counts from now on → its receipt and signature."""
        now = self._store.now()
        with self._store.write() as db:
            db.execute("UPDATE updates SET norm = ? WHERE digest = ?", (norm, digest))
            changed = db.execute(
                "UPDATE updates SET state = 'admitted', decided_at = ? WHERE digest = ? AND state = 'receiving'",
                (now, digest),
            )
            if changed.rowcount != 1:
                raise AssertionError(f"update {digest} was decided before")
            row = self.update(digest)
            assert row is not None
            self._store.audit(db, "hub", "update.admitted", digest, node=row["node"], reason="")
            return self._receipt(db, row, now)

    def refuse(self, digest: str, reason: str, *, fault: bool) -> None:
        """The update will never count (refusals.py)."""
        with self._store.write() as db:
            self.refusals.refuse(db, digest, reason, "hub", fault=fault)

    def _receipt(
        self, db: sqlite3.Connection, row: Row, at: float, version: int | None = None, weight: float | None = None
    ) -> tuple[bytes, bytes]:
        task = self.task_row(row["task"])
        within = None if task is None else max(0.0, row["offered_at"] - task["created_at"])
        receipt, signature = self._key.make(row, at, version, weight, within)
        made = db.execute(
            "INSERT INTO receipts (digest, receipt, signature, created_at) VALUES (?, ?, ?, ?)",
            (row["digest"], receipt, signature, self._store.now()),
        )
        assert made.lastrowid is not None
        self.log.append(db, made.lastrowid, receipt)
        return receipt, signature

    def receipt(self, digest: str) -> tuple[bytes, bytes] | None:
        """The newest receipt of an update and its signature."""
        row = self._store.one(
            "SELECT receipt, signature FROM receipts WHERE digest = ? ORDER BY id DESC LIMIT 1", digest
        )
        return None if row is None else (bytes(row["receipt"]), bytes(row["signature"]))

    # -- merges and versions ---------------------------------------------------------------------------------------

    def past_norms(self, name: str) -> list[float]:
        """Norms of the updates merged so far, oldest first."""
        rows = self._store.all(
            "SELECT norm FROM updates WHERE federation = ? AND state = 'merged' ORDER BY new_version DESC, digest"
            " LIMIT 50", name,
        )  # fmt: skip
        return [float(r["norm"] or 0.0) for r in reversed(rows)]

    def commit_merge(
        self,
        name: str,
        merge: Merge,
        made: Merged,
        seconds: float,
        finish: bool,
        told: dict[str, Any],
        max_staleness: int | None = None,
    ) -> list[tuple[str, bytes, bytes]]:
        """The version exists from now on and its updates are merged → (node, receipt, signature) for each.

        `told`: the recipe as it is kept, without the noise's seed.
        """
        with self._store.write() as db:
            receipts, samples = [], 0
            weights = made.weights or [None] * len(merge.shares)
            for share, weight in zip(merge.shares, weights, strict=True):
                db.execute(
                    "UPDATE updates SET state = 'merged', new_version = ?, weight = ?"
                    " WHERE digest = ? AND state = 'admitted'",
                    (merge.version, weight, share.update),
                )
                row = self.update(share.update)
                assert row is not None and row["new_version"] == merge.version
                samples += row["samples"]
                receipts.append((row["node"], *self._receipt(db, row, row["decided_at"], merge.version, weight)))
            self._version(db, name, merge.version, made.published, made, seconds, len(merge.shares), samples)
            db.execute(
                "UPDATE versions SET moments = ?, origin = ? WHERE federation = ? AND number = ?",
                (json.dumps(made.moments), json.dumps(told), name, merge.version),
            )
            db.execute(
                "UPDATE merges SET plan = json_set(plan, '$.recipe', json(?)) WHERE federation = ? AND version = ?",
                (json.dumps(told), name, merge.version),
            )
            self._store.audit(db, "hub", "version", name, version=merge.version, digest=made.published)
            take_settings(self._store, db, name, merge.version)
            if finish and self.federation(name)["phase"] == "open":  # a maintainer may have finished it meanwhile
                self._advance(db, name, "finished", "finished_at")
            if max_staleness is not None:
                self.refusals.overtaken(db, name, merge.version - max_staleness)
            self.refusals.of_finished(db, name, "hub")
        return receipts

    def _version(
        self, db: sqlite3.Connection, name: str, number: int, digest: str, made: Merged, seconds: float, n: int, m: int
    ) -> None:
        db.execute(
            "INSERT INTO versions (federation, number, digest, master, size, created_at, merge_s, updates, samples)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (name, number, digest, made.master, made.size, self._store.now(), seconds, n, m),
        )

    def version(self, name: str, number: int | None = None) -> Row | None:
        """One version, or the newest."""
        if number is None:
            return self._store.one("SELECT * FROM versions WHERE federation = ? ORDER BY number DESC LIMIT 1", name)
        return self._store.one("SELECT * FROM versions WHERE federation = ? AND number = ?", name, number)

    def versions(self, name: str, first: int = 0, before: int = 1 << 62) -> list[Row]:
        return self._store.all(
            "SELECT * FROM versions WHERE federation = ? AND number >= ? AND number < ? ORDER BY number",
            name, first, before,
        )  # fmt: skip

    def merged_into(self, name: str, number: int) -> list[Row]:
        """The updates a version was made of, in node order."""
        return self._store.all(
            "SELECT * FROM updates WHERE federation = ? AND new_version = ? ORDER BY node", name, number
        )
