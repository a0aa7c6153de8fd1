"""Versions once they are out: their evaluations, and the bytes that nodes took of them. Queries over store.py.

How versions come about is in ledger.py; evaluating itself in evaluation.py.
"""

from __future__ import annotations

import json
from typing import Any

from zk0d.durable import canonical_json
from zk0d.hub.store import Row, Store


class Assessments:
    """The queries; each change is durable when its method returns."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def to_evaluate(self) -> Row | None:
        """The oldest version of any federation that waits for its evaluation."""
        return self._store.one(
            "SELECT * FROM versions WHERE evaluation = 'waiting' ORDER BY created_at, number LIMIT 1"
        )

    def evaluated(self, name: str, number: int, loss: float | None, result: dict[str, Any]) -> None:
        with self._store.write() as db:
            db.execute(
                "UPDATE versions SET evaluation = 'done', loss = ?, result = ?, attempts = attempts + 1"
                " WHERE federation = ? AND number = ?",
                (loss, canonical_json(result).decode(), name, number),
            )
            self._store.audit(db, "hub", "evaluation", name, version=number, loss=loss)

    def evaluation_failed(self, name: str, number: int, reason: str, limit: int) -> bool:
        """Count a failed attempt → whether that was the last one."""
        with self._store.write() as db:
            db.execute(
                "UPDATE versions SET attempts = attempts + 1, result = ?,"
                " evaluation = CASE WHEN attempts + 1 >= ? THEN 'failed' ELSE 'waiting' END,"
                " loss = CASE WHEN attempts + 1 >= ? THEN NULL ELSE loss END"  # of an earlier evaluation
                " WHERE federation = ? AND number = ?",
                (json.dumps({"error": reason}, ensure_ascii=False), limit, limit, name, number),
            )
            self._store.audit(db, "hub", "evaluation.failed", name, version=number, reason=reason)
        row = self._store.one("SELECT evaluation FROM versions WHERE federation = ? AND number = ?", name, number)
        return row is not None and row["evaluation"] == "failed"

    def last_failed(self, name: str) -> int | None:
        """The newest version that is kept and whose evaluation was given up, where none after it was evaluated."""
        row = self._store.one(
            "SELECT max(number) AS number FROM versions WHERE federation = ? AND evaluation = 'failed'"
            " AND retired_at IS NULL", name
        )  # fmt: skip
        number = None if row is None else row["number"]
        later = "SELECT 1 FROM versions WHERE federation = ? AND number > ? AND evaluation = 'done' LIMIT 1"
        return None if self._store.one(later, name, number) is not None else number

    def again(self, name: str, numbers: list[int], actor: str) -> None:
        """They wait for their evaluation as if they were new; a loss that is known of one counts until then."""
        with self._store.write() as db:
            for number in numbers:
                db.execute(
                    "UPDATE versions SET evaluation = 'waiting', attempts = 0 WHERE federation = ? AND number = ?",
                    (name, number),
                )
            self._store.audit(db, actor, "evaluation.again", name, versions=numbers)

    def waits(self, name: str, newest: int) -> bool:
        """Whether any version up to `newest` waits for its evaluation."""
        rows = self._store.all("SELECT federation, number FROM versions WHERE evaluation = 'waiting'")  # by its index
        return any(r["federation"] == name and r["number"] <= newest for r in rows)

    def kept(self, name: str) -> list[Row]:
        """Number, evaluation and digest of the versions that were not let go, oldest first."""
        return self._store.all(
            "SELECT number, evaluation, digest FROM versions WHERE federation = ? AND retired_at IS NULL"
            " ORDER BY number", name
        )  # fmt: skip

    def downloaded(self, node: str, digest: str, federation: str, size: int) -> None:
        """Note that a node takes a blob; once per node and blob."""
        with self._store.write() as db:
            db.execute(
                "INSERT OR IGNORE INTO downloads (node, digest, federation, size, at) VALUES (?, ?, ?, ?, ?)",
                (node, digest, federation, size, self._store.now()),
            )

    def took(self, node: str, digest: str) -> bool:
        """Whether that was noted already."""
        return self._store.one("SELECT 1 FROM downloads WHERE node = ? AND digest = ?", node, digest) is not None

    def bytes_down(self, name: str, after: float, until: float) -> int:
        """Bytes of blobs that nodes took in a span of time."""
        row = self._store.one(
            "SELECT coalesce(sum(size), 0) AS n FROM downloads WHERE federation = ? AND at > ? AND at <= ?",
            name, after, until,
        )  # fmt: skip
        return 0 if row is None else int(row["n"])
