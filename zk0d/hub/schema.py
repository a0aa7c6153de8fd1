"""The tables of the hub's database, version by version. Not for queries (registry.py, ledger.py)."""

from __future__ import annotations

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE nodes (
        node TEXT PRIMARY KEY, label TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('pending','approved','refused','revoked')),
        key TEXT NOT NULL UNIQUE, csr BLOB NOT NULL, certificate BLOB, fingerprint TEXT,
        address TEXT NOT NULL,
        requested_at REAL NOT NULL, decided_at REAL, reason TEXT NOT NULL DEFAULT '', last_seen REAL
    ) STRICT;
    CREATE TABLE invitations (
        secret_hash TEXT PRIMARY KEY, label TEXT NOT NULL, created_at REAL NOT NULL, expires_at REAL NOT NULL,
        used_at REAL, used_by TEXT REFERENCES nodes
    ) STRICT;
    CREATE TABLE federations (
        name TEXT PRIMARY KEY, phase TEXT NOT NULL CHECK (phase IN ('gathering','open','finished')),
        config TEXT NOT NULL,
        draft_spec TEXT NOT NULL, base TEXT NOT NULL, exchange TEXT NOT NULL, spec TEXT,
        created_at REAL NOT NULL,
        opened_at REAL, finished_at REAL
    ) STRICT;
    CREATE TABLE members (
        federation TEXT NOT NULL REFERENCES federations, node TEXT NOT NULL REFERENCES nodes,
        stats TEXT NOT NULL,
        datasets TEXT NOT NULL, joined_at REAL NOT NULL, PRIMARY KEY (federation, node)
    ) STRICT;
    CREATE TABLE versions (
        federation TEXT NOT NULL REFERENCES federations, number INTEGER NOT NULL, digest TEXT NOT NULL,
        master TEXT NOT NULL,
        size INTEGER NOT NULL, created_at REAL NOT NULL, merge_s REAL NOT NULL, updates INTEGER NOT NULL,
        samples INTEGER NOT NULL,
        evaluation TEXT NOT NULL DEFAULT 'waiting' CHECK (evaluation IN ('waiting','done','failed')),
        attempts INTEGER NOT NULL DEFAULT 0, loss REAL, result TEXT NOT NULL DEFAULT '{}',
        PRIMARY KEY (federation, number)
    ) STRICT;
    CREATE TABLE tasks (
        task TEXT PRIMARY KEY, federation TEXT NOT NULL, node TEXT NOT NULL, version INTEGER NOT NULL,
        body TEXT NOT NULL,
        created_at REAL NOT NULL, answered INTEGER NOT NULL DEFAULT 0,
        FOREIGN KEY (federation, node) REFERENCES members, FOREIGN KEY (federation, version)
        REFERENCES versions
    ) STRICT;
    CREATE INDEX tasks_by_node ON tasks (federation, node);
    CREATE TABLE updates (
        digest TEXT PRIMARY KEY, federation TEXT NOT NULL, task TEXT NOT NULL UNIQUE REFERENCES tasks,
        node TEXT NOT NULL,
        base_version INTEGER NOT NULL, payload TEXT NOT NULL, size INTEGER NOT NULL, samples INTEGER NOT NULL,
        statement BLOB NOT NULL, signature BLOB NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('receiving','admitted','merged','refused')),
        reason TEXT NOT NULL DEFAULT '',
        norm REAL, offered_at REAL NOT NULL, decided_at REAL, new_version INTEGER, weight REAL,
        FOREIGN KEY (federation, node) REFERENCES members
    ) STRICT;
    CREATE INDEX updates_by_state ON updates (federation, state);
    CREATE TABLE merges (
        federation TEXT NOT NULL REFERENCES federations, version INTEGER NOT NULL, plan TEXT NOT NULL,
        begun_at REAL NOT NULL,
        PRIMARY KEY (federation, version)
    ) STRICT;
    CREATE TABLE receipts (
        id INTEGER PRIMARY KEY, digest TEXT NOT NULL REFERENCES updates, receipt BLOB NOT NULL,
        signature BLOB NOT NULL,
        created_at REAL NOT NULL
    ) STRICT;
    CREATE INDEX receipts_by_update ON receipts (digest);
    CREATE TABLE downloads (
        node TEXT NOT NULL REFERENCES nodes, digest TEXT NOT NULL, federation TEXT NOT NULL,
        size INTEGER NOT NULL, at REAL NOT NULL,
        PRIMARY KEY (node, digest)
    ) STRICT;
    CREATE TABLE audit (
        id INTEGER PRIMARY KEY, at REAL NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,
        subject TEXT NOT NULL, detail TEXT NOT NULL
    ) STRICT;
    CREATE TRIGGER audit_keeps BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
    CREATE TRIGGER audit_stays BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
    CREATE TRIGGER receipts_keep BEFORE UPDATE ON receipts BEGIN SELECT RAISE(ABORT, 'receipts are append-only'); END;
    CREATE TRIGGER receipts_stay BEFORE DELETE ON receipts BEGIN SELECT RAISE(ABORT, 'receipts are append-only'); END;
    """,
    """
    CREATE TABLE tree (
        level INTEGER NOT NULL, position INTEGER NOT NULL, hash BLOB NOT NULL, PRIMARY KEY (level, position)
    ) STRICT, WITHOUT ROWID;
    CREATE TRIGGER tree_keeps BEFORE UPDATE ON tree BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
    CREATE TRIGGER tree_stays BEFORE DELETE ON tree BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
    """,
    """
    ALTER TABLE versions ADD COLUMN moments TEXT NOT NULL DEFAULT '[]';
    ALTER TABLE versions ADD COLUMN origin TEXT NOT NULL DEFAULT '{}';
    ALTER TABLE federations ADD COLUMN hold TEXT NOT NULL DEFAULT '';
    ALTER TABLE federations ADD COLUMN floor INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE federations ADD COLUMN next_config TEXT NOT NULL DEFAULT '';
    """,
    """
    CREATE TABLE certificates (
        fingerprint TEXT PRIMARY KEY, node TEXT NOT NULL REFERENCES nodes, key TEXT NOT NULL, certificate BLOB NOT NULL,
        issued_at REAL NOT NULL, revoked_at REAL
    ) STRICT;
    CREATE INDEX certificates_by_node ON certificates (node);
    CREATE INDEX certificates_by_key ON certificates (key);
    INSERT INTO certificates (fingerprint, node, key, certificate, issued_at, revoked_at)
        SELECT fingerprint, node, key, certificate, coalesce(decided_at, requested_at),
        CASE state WHEN 'approved' THEN NULL ELSE coalesce(decided_at, requested_at) END
        FROM nodes WHERE certificate IS NOT NULL;
    ALTER TABLE invitations ADD COLUMN replaces TEXT NOT NULL DEFAULT '';
    CREATE INDEX updates_by_day ON updates (node, offered_at);
    """,
    """
    CREATE TABLE pushes (
        federation TEXT NOT NULL, version INTEGER NOT NULL, repo TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('done','failed')), attempts INTEGER NOT NULL, at REAL NOT NULL,
        detail TEXT NOT NULL, PRIMARY KEY (federation, version, repo),
        FOREIGN KEY (federation, version) REFERENCES versions
    ) STRICT;
    """,
    """
    ALTER TABLE tasks ADD COLUMN frames INTEGER;
    ALTER TABLE updates ADD COLUMN fault INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE members ADD COLUMN left_at REAL;
    CREATE INDEX IF NOT EXISTS updates_by_payload ON updates (payload);
    """,
    """
    CREATE INDEX updates_by_version ON updates (federation, new_version);
    CREATE INDEX versions_by_digest ON versions (digest);
    CREATE INDEX versions_by_master ON versions (master);
    CREATE INDEX downloads_by_time ON downloads (federation, at);
    CREATE INDEX tasks_at_hand ON tasks (federation, node, version) WHERE answered = 0;
    """,
    """
    ALTER TABLE versions ADD COLUMN retired_at REAL;
    CREATE INDEX versions_kept ON versions (federation, number) WHERE retired_at IS NULL;
    CREATE INDEX versions_by_loss ON versions (federation, loss, number) WHERE loss IS NOT NULL;
    CREATE INDEX versions_to_evaluate ON versions (created_at, number) WHERE evaluation = 'waiting';
    CREATE INDEX tasks_of_version ON tasks (federation, version) WHERE answered = 0;
    CREATE INDEX updates_at_fault ON updates (federation, decided_at) WHERE state = 'refused' AND fault;
    CREATE INDEX updates_that_count ON updates (federation, node, decided_at) WHERE state IN ('admitted','merged');
    DROP INDEX tasks_by_node;
    CREATE INDEX tasks_by_node ON tasks (federation, node, version);
    """,
    """
    CREATE INDEX versions_failed ON versions (federation, number) WHERE evaluation = 'failed';
    """,
    """
    CREATE INDEX audit_of_people ON audit (id) WHERE substr(actor, 1, 6) = 'admin:';
    """,
    """
    ALTER TABLE invitations ADD COLUMN cancelled_at REAL;
    """,
    """
    ALTER TABLE federations ADD COLUMN held_at REAL NOT NULL DEFAULT 0;
    UPDATE federations SET held_at = coalesce((SELECT max(at) FROM audit WHERE subject = name
        AND action IN ('federation.drain', 'federation.freeze')), 0) WHERE hold != '';
    """,
)
"""Each entry takes the schema one version forward. Never edit one that was released: append."""
