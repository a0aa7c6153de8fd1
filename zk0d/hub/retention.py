"""Which published versions the hub goes on keeping, folders and blobs alike, and letting go of the others.

[publish] keep_last and keep_every, and always version 0, the best, the newest two, those not evaluated yet and those
that somebody trains on or downloads. The rule is outputs.superfluous; LeRobot folders are deleted by evaluation.py.
"""

from __future__ import annotations

from collections.abc import Collection

import structlog

from zk0d.errors import RefusedError
from zk0d.hub import outputs
from zk0d.hub.config import Config
from zk0d.hub.store import Store

log = structlog.get_logger("federation")

AT_ONCE = 16
"""Versions let go at a time, each a file that is deleted between two messages; the others at the next versions."""


class Retention:
    """The queries over versions that are kept: their number, not that of all there ever were."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def best(self, name: str) -> int | None:
        """The version of lowest held-out loss, the older of equals."""
        row = self._store.one(
            "SELECT number FROM versions WHERE federation = ? AND loss IS NOT NULL ORDER BY loss, number LIMIT 1", name
        )
        return None if row is None else int(row["number"])

    def since_best(self, name: str, limit: int) -> int:
        """How many evaluated versions came after the best; counted up to `limit`."""
        best = self.best(name)
        rows = self._store.all(
            "SELECT 1 FROM versions WHERE federation = ? AND number > ? AND loss IS NOT NULL LIMIT ?", name, best, limit
        )
        return 0 if best is None else len(rows)

    def retire(self, name: str, config: Config, moving: Collection[str], at_once: int = AT_ONCE) -> list[str]:
        """Let go of what the rule gives up → digests that may be deleted. `moving`: those being downloaded now."""
        if config["publish.keep_last"] == 0:
            return []
        kept = self._store.all(
            "SELECT number, digest, evaluation FROM versions WHERE federation = ? AND retired_at IS NULL"
            " ORDER BY number",
            name,
        )
        numbers = [int(r["number"]) for r in kept]
        given_up = outputs.superfluous(
            numbers, config["publish.keep_last"], config["publish.keep_every"], self.best(name)
        )
        newest = max(numbers, default=0)
        held = {
            int(r["version"])
            for r in self._store.all(
                "SELECT DISTINCT version FROM tasks WHERE federation = ? AND answered = 0 AND version >= ?",
                name, newest - config["rounds.max_staleness"],
            )
        }  # fmt: skip
        old = [
            r for r in kept
            if r["number"] in given_up and 0 < r["number"] < newest - 1 and r["evaluation"] != "waiting"
            and r["number"] not in held and r["digest"] not in moving
        ][:at_once]  # fmt: skip
        if old:
            with self._store.write() as db:
                for row in old:
                    db.execute("UPDATE versions SET retired_at = ? WHERE federation = ? AND number = ?",
                               (self._store.now(), name, row["number"]))  # fmt: skip
                told = [int(r["number"]) for r in old]
                self._store.audit(db, "hub", "versions.retire", name, versions=told)
            log.info("versions retired", federation=name, versions=told)
        return [str(r["digest"]) for r in old]

    def moments(self) -> set[str]:
        """The optimiser moments of every version there ever was."""
        return {r["digest"] for r in self._store.all("SELECT DISTINCT j.value AS digest FROM versions,"
                                                     " json_each(versions.moments) j")}  # fmt: skip

    def kept(self, name: str) -> list[int]:
        rows = self._store.all(
            "SELECT number FROM versions WHERE federation = ? AND retired_at IS NULL ORDER BY number", name
        )
        return [int(r["number"]) for r in rows]

    def refuse_retired(self, node: str, digest: str) -> None:
        """Raise RefusedError, saying what it was, when a member asks for a version that was let go."""
        row = self._store.one(
            "SELECT v.federation, number FROM versions v JOIN members m ON m.federation = v.federation AND m.node = ?"
            " AND m.left_at IS NULL WHERE v.digest = ? AND retired_at IS NOT NULL", node, digest
        )  # fmt: skip
        if row is not None:
            raise RefusedError(
                f"version {row['number']} of {row['federation']} is not kept any more: ask for the newest",
                reason="not_found",
            )
