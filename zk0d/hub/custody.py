"""What a maintainer decides about a running federation: hold, settings, rollback, and the losses schedules look at.

Each change is one transaction with its line in the audit log. The queries of everyday rounds are in ledger.py.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from zk0d.hub.refusals import Refusals
from zk0d.hub.store import Row, Store


def take_settings(store: Store, db: sqlite3.Connection, name: str, version: int) -> None:
    """Inside the transaction that publishes `version`: settings a maintainer gave since the last one hold from now."""
    row = store.one("SELECT next_config FROM federations WHERE name = ?", name)
    if row is not None and row["next_config"]:
        db.execute("UPDATE federations SET config = next_config, next_config = '' WHERE name = ?", (name,))
        store.audit(db, "hub", "federation.settings.applied", name, version=version)


class Custody:
    """The decisions, each durable and audited when the method returns."""

    def __init__(self, store: Store, refusals: Refusals) -> None:
        self._store, self._refusals = store, refusals

    def hold(self, name: str, hold: str, actor: str) -> None:
        """`hold`: "", "frozen" or "draining"."""
        with self._store.write() as db:
            db.execute("UPDATE federations SET hold = ?, held_at = ? WHERE name = ?", (hold, self._store.now(), name))
            action = {"": "thaw", "frozen": "freeze", "draining": "drain"}[hold]
            self._store.audit(db, actor, f"federation.{action}", name)

    def settings(self, name: str, toml: str, changed: dict[str, Any], at_once: list[str], actor: str) -> None:
        """New settings: in force when all that changes holds `at_once`, else waiting for the next version. `changed`:
        key → [old, new], for the audit."""
        whole = len(at_once) == len(changed)
        with self._store.write() as db:
            db.execute(
                "UPDATE federations SET config = iif(?, ?, config), next_config = iif(?, '', ?) WHERE name = ?",
                (whole, toml, whole, toml, name),
            )
            self._store.audit(db, actor, "federation.settings", name, changed=changed, at_once=at_once)

    def remove(self, name: str, actor: str) -> None:
        """There is no such federation any more; no version, task or update names it."""
        with self._store.write() as db:
            db.execute("DELETE FROM members WHERE federation = ?", (name,))
            db.execute("DELETE FROM federations WHERE name = ?", (name,))
            self._store.audit(db, actor, "federation.remove", name)

    def roll_back(self, name: str, source: Row, number: int, master: str, actor: str) -> None:
        """Version `number` exists and is `source` again; updates from before it no longer count, each with a reason."""
        why = f"the federation was rolled back to version {source['number']}, which is now version {number}"
        with self._store.write() as db:
            db.execute(
                "INSERT INTO versions (federation, number, digest, master, size, created_at, merge_s, updates, samples,"
                " moments, origin) VALUES (?, ?, ?, ?, ?, ?, 0, 0, 0, ?, ?)",
                (name, number, source["digest"], master, source["size"], self._store.now(), source["moments"],
                 json.dumps({"rolled_back_to": source["number"]})),
            )  # fmt: skip
            db.execute("UPDATE federations SET floor = ? WHERE name = ?", (number, name))
            # A merge that was planned but could not be made: its number is this version's now.
            if db.execute("DELETE FROM merges WHERE federation = ? AND version = ?", (name, number)).rowcount:
                self._store.audit(db, actor, "merge.drop", name, version=number)
            self._refusals.everything(db, name, why, actor)
            self._store.audit(db, actor, "federation.rollback", name, to=source["number"], version=number)

    def losses(self, name: str) -> list[float]:
        """Held-out losses of the versions that have one, oldest first."""
        rows = self._store.all(
            "SELECT loss FROM versions WHERE federation = ? AND loss IS NOT NULL ORDER BY number", name
        )
        return [float(r["loss"]) for r in rows]

    def own_losses(self, name: str, node: str) -> list[float]:
        """The last training loss each of a node's counted updates states, oldest first."""
        rows = self._store.all(
            "SELECT statement FROM updates WHERE federation = ? AND node = ? AND state IN ('admitted', 'merged')"
            " ORDER BY base_version, decided_at", name, node,
        )  # fmt: skip
        return [float(json.loads(r["statement"])["loss_last"]) for r in rows]

    def private_versions(self, name: str) -> list[float]:
        """Noise multipliers of the merged versions, 0 for one without noise; a version rolled back to is no merge."""
        rows = self._store.all("SELECT origin FROM versions WHERE federation = ? ORDER BY number", name)
        return [float(origin["noise"]) for r in rows if "noise" in (origin := json.loads(r["origin"]))]
