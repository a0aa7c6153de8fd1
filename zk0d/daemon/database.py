"""The open state file: its connection, transactions, and the few statements all tables are read and written with.

Which tables there are is in schema.py; what is asked of them in store.py and receipt_tables.py.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any


class Database:
    """One SQLite file in WAL mode; a commit is durable."""

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        self.path = path
        self._db = _connect(path, readonly)
        self._db.row_factory = sqlite3.Row

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; durable when it returns."""
        if self._db.in_transaction:
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        with closing(self._db.execute(sql, values)) as cursor:
            return cursor.fetchall()

    def _row(self, sql: str, *values: Any) -> sqlite3.Row | None:
        rows = self._rows(sql, *values)
        return rows[0] if rows else None

    def _do(self, sql: str, *values: Any) -> int:
        """Run one statement; the number of the inserted row."""
        with closing(self._db.execute(sql, values)) as cursor:
            return int(cursor.lastrowid or 0)

    def _set(self, table: str, key: str, value: Any, fields: dict[str, Any]) -> None:
        names = ", ".join(f"{k}=?" for k in fields)
        self._do(f"UPDATE {table} SET {names} WHERE {key}=?", *fields.values(), value)


def _connect(path: Path, readonly: bool) -> sqlite3.Connection:
    if not readonly:
        db = sqlite3.connect(path, isolation_level=None, timeout=10)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA foreign_keys=ON")
        return db
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=1)
        db.execute("SELECT count(*) FROM sqlite_master")
        return db
    except sqlite3.OperationalError:
        # A write-ahead log in a folder that this user may not write to: read the file as it lies.
        uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=1)
