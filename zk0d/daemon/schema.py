"""The tables of `zk0d.db`. A change appends a migration; not for queries, which are in store.py."""

from __future__ import annotations

_FIRST: tuple[str, ...] = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE hubs (name TEXT PRIMARY KEY, host TEXT NOT NULL, port INTEGER NOT NULL, node_id TEXT NOT NULL,"
    " receipt_key BLOB NOT NULL, enrolled_at REAL NOT NULL)",
    "CREATE TABLE federations (name TEXT PRIMARY KEY, state TEXT NOT NULL, spec_digest TEXT NOT NULL,"
    " version INTEGER, reason TEXT NOT NULL, joined_at REAL NOT NULL)",
    "CREATE TABLE datasets (name TEXT PRIMARY KEY, root TEXT NOT NULL, episodes INTEGER NOT NULL,"
    " frames INTEGER NOT NULL, fps INTEGER NOT NULL, features TEXT NOT NULL, tasks TEXT NOT NULL, units TEXT NOT NULL,"
    " rename TEXT NOT NULL, train INTEGER NOT NULL, added_at REAL NOT NULL)",
    "CREATE TABLE wire_ids (dataset TEXT NOT NULL, federation TEXT NOT NULL, uuid TEXT NOT NULL UNIQUE,"
    " PRIMARY KEY (dataset, federation))",
    "CREATE TABLE tasks (id TEXT PRIMARY KEY, federation TEXT NOT NULL, body TEXT NOT NULL, state TEXT NOT NULL,"
    " deaths INTEGER NOT NULL, retry_at REAL NOT NULL, step INTEGER NOT NULL, reason TEXT NOT NULL,"
    " created_at REAL NOT NULL)",
    "CREATE TABLE updates (digest TEXT PRIMARY KEY, task TEXT NOT NULL UNIQUE, federation TEXT NOT NULL,"
    " statement BLOB NOT NULL, signature BLOB NOT NULL, payload TEXT NOT NULL, size INTEGER NOT NULL,"
    " state TEXT NOT NULL, reason TEXT NOT NULL, created_at REAL NOT NULL)",
    "CREATE TABLE receipts (update_digest TEXT PRIMARY KEY, federation TEXT NOT NULL, receipt BLOB NOT NULL,"
    " signature BLOB NOT NULL, stored_at REAL NOT NULL)",
    "CREATE TABLE versions (federation TEXT NOT NULL, number INTEGER NOT NULL, digest TEXT NOT NULL,"
    " spec_digest TEXT NOT NULL, base_digest TEXT NOT NULL, metrics TEXT NOT NULL, at REAL NOT NULL,"
    " fetched INTEGER NOT NULL, PRIMARY KEY (federation, number))",
    "CREATE TABLE sessions (id INTEGER PRIMARY KEY, dataset TEXT NOT NULL, task TEXT NOT NULL, by TEXT NOT NULL,"
    " goal INTEGER NOT NULL, saved INTEGER NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL,"
    " started_at REAL NOT NULL, ended_at REAL)",
    "CREATE TABLE events (id INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL)",
)

_RECEIPT_LOG: tuple[str, ...] = (
    "CREATE TABLE log_entries (leaf TEXT PRIMARY KEY, update_digest TEXT NOT NULL, receipt BLOB NOT NULL,"
    " signature BLOB NOT NULL, stored_at REAL NOT NULL, position INTEGER, size INTEGER, path BLOB)",
    "CREATE INDEX log_entries_by_update ON log_entries (update_digest)",
    "CREATE TABLE log_heads (size INTEGER PRIMARY KEY, head BLOB NOT NULL, signature BLOB NOT NULL,"
    " consistency BLOB NOT NULL, stored_at REAL NOT NULL)",
)

_REFUSALS: tuple[str, ...] = (
    "CREATE TABLE refusals (update_digest TEXT PRIMARY KEY, refusal BLOB NOT NULL, signature BLOB NOT NULL,"
    " stored_at REAL NOT NULL)",
    "CREATE TABLE log_heads_past (accepted_at REAL NOT NULL, size INTEGER NOT NULL, head BLOB NOT NULL,"
    " signature BLOB NOT NULL, consistency BLOB NOT NULL, stored_at REAL NOT NULL)",
    "ALTER TABLE log_entries ADD COLUMN set_aside REAL",
)

_LOST: tuple[str, ...] = (
    "CREATE TABLE updates_new (digest TEXT PRIMARY KEY, task TEXT UNIQUE, federation TEXT NOT NULL,"
    " statement BLOB NOT NULL, signature BLOB NOT NULL, payload TEXT NOT NULL, size INTEGER NOT NULL,"
    " state TEXT NOT NULL, reason TEXT NOT NULL, created_at REAL NOT NULL)",
    "INSERT INTO updates_new SELECT * FROM updates",
    "DROP TABLE updates",
    "ALTER TABLE updates_new RENAME TO updates",
)
"""An update may answer no task any more: SQLite takes a NOT NULL away by a new table only."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST, _RECEIPT_LOG, _REFUSALS, _LOST)
"""Each entry takes the schema one version forward. Never edit one that was released: append."""
VERSION = len(MIGRATIONS)
