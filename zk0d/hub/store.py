"""The hub's memory: one SQLite file, opened, migrated and written in transactions that survive a power cut.

The queries by subject are in registry.py (nodes, invitations) and ledger.py (federations, updates, receipts).
Used from the event loop's thread only; a commit costs one fsync.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zk0d.errors import UnknownStateError
from zk0d.hub.schema import MIGRATIONS

Row = sqlite3.Row


class Store:
    """The open database. `write` is a transaction; `one` and `all` read."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Open or create `path` and bring its schema forward. Raises UnknownStateError when that cannot be done."""
        self.path = path
        self.now = clock
        self._afterwards: list[Callable[[], None]] = []
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
        except sqlite3.Error as error:
            raise UnknownStateError(f"{path} cannot be opened: {error}") from error
        try:
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.execute("PRAGMA busy_timeout = 5000")
            self._migrate()
        except sqlite3.Error as error:
            self._db.close()
            raise UnknownStateError(
                f"{path} cannot be used: {error}", "restore it from a copy, or move it away to begin anew"
            ) from error
        except BaseException:
            self._db.close()
            raise

    def _migrate(self) -> None:
        have = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if have > len(MIGRATIONS):
            raise UnknownStateError(
                f"{self.path} has schema {have}, this zk0-hub knows up to {len(MIGRATIONS)}",
                "a newer zk0-hub wrote it: install that version again",
            )
        for number, script in enumerate(MIGRATIONS[have:], have + 1):
            # executescript commits what is open, so the transaction is part of the script.
            self._db.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction: everything in it is durable when the block ends, nothing of it after an exception."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
        except BaseException:
            self._afterwards.clear()
            if self._db.in_transaction:  # SQLite ends it by itself when the disk is full
                self._db.execute("ROLLBACK")
            raise
        due, self._afterwards = self._afterwards, []
        for call in due:
            call()

    def afterwards(self, call: Callable[[], None]) -> None:
        """Inside a transaction: have `call` made when it is durable, and not at all if it fails."""
        self._afterwards.append(call)

    def one(self, sql: str, *values: Any) -> Row | None:
        """The first row, or None."""
        row: Row | None = self._db.execute(sql, values).fetchone()
        return row

    def all(self, sql: str, *values: Any) -> list[Row]:
        return self._db.execute(sql, values).fetchall()

    def audit(self, db: sqlite3.Connection, actor: str, action: str, subject: str, **detail: Any) -> None:
        """Note who did what to whom, inside the transaction that does it. `actor`: node id, "hub" or "admin:USER"."""
        db.execute(
            "INSERT INTO audit (at, actor, action, subject, detail) VALUES (?, ?, ?, ?, ?)",
            (self.now(), actor, action, subject, json.dumps(detail, ensure_ascii=False, sort_keys=True)),
        )
