"""Merges that are planned and not made yet: fixed when one begins, so that begun again after a kill it gives the same
bytes. Queries over store.py; when one is due is in rounds.py, how a version comes of it in ledger.py."""

from __future__ import annotations

import json
from collections.abc import Iterable

from zk0d.hub.custody import take_settings
from zk0d.hub.refusals import Refusals
from zk0d.hub.rounds import Merge, Share
from zk0d.hub.store import Store


class Plans:
    """Each is durable and audited when the method returns."""

    def __init__(self, store: Store, refusals: Refusals) -> None:
        self._store, self._refusals = store, refusals

    def begin(self, name: str, merge: Merge) -> None:
        """Fix which updates the version is made of, and how."""
        shares = [[s.update, s.node, s.staleness, s.weight, s.scale] for s in merge.shares]
        plan = {"shares": shares, "recipe": dict(merge.recipe)}
        with self._store.write() as db:
            db.execute(
                "INSERT INTO merges (federation, version, plan, begun_at) VALUES (?, ?, ?, ?)",
                (name, merge.version, json.dumps(plan), self._store.now()),
            )
            self._store.audit(db, "hub", "merge.begin", name, version=merge.version)

    def unfinished(self, name: str) -> Merge | None:
        """The merge that was begun and whose version is not there yet."""
        row = self._store.one(
            "SELECT * FROM merges m WHERE federation = ? AND NOT EXISTS (SELECT 1 FROM versions v"
            " WHERE v.federation = m.federation AND v.number = m.version)",
            name,
        )
        if row is None:
            return None
        plan = json.loads(row["plan"])
        if isinstance(plan, list):  # as hubs before 0.2 wrote it
            plan = {"shares": plan, "recipe": {}}
        return Merge(row["version"], tuple(Share(*s) for s in plan["shares"]), plan["recipe"])

    def drop(
        self, name: str, version: int, updates: Iterable[str], reason: str, actor: str = "hub", *, fault: bool = True
    ) -> None:
        """Give a merge up where it is planned, and refuse the updates that made it impossible; the others stay for the
        next."""
        with self._store.write() as db:
            if db.execute("DELETE FROM merges WHERE federation = ? AND version = ?", (name, version)).rowcount:
                self._store.audit(db, actor, "merge.drop", name, version=version)
                take_settings(self._store, db, name, version)
            for digest in updates:
                self._refusals.refuse(db, digest, reason, actor, fault=fault)
            self._refusals.of_finished(db, name, "hub")  # no merge will follow
