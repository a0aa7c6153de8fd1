"""One-time secrets that let a node in: made, listed, cancelled, and looked at when one is used.

Only a secret's hash is kept; the beginning of the hash is the invitation's id. What a used one leads to is in
registry.py.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3

from zk0d.errors import RefusedError, UsageError
from zk0d.hub.store import Row, Store

MAX_LABEL = 80
MAX_HOURS = 24 * 365
_ID = 12
"""Hex digits of the hash that name an invitation."""
_ANOTHER = "ask the maintainer for another"


class Invitations:
    """The hub's list of them. Each change is one transaction with its line in the audit."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def make(self, label: str, hours: float, actor: str, replaces: str = "") -> str:
        """A new secret, good for `hours`; `replaces`: the node whose successor uses it. Raises UsageError."""
        if not 0 < hours <= MAX_HOURS:
            raise UsageError(f"an invitation cannot last {hours:g} hours", f"give more than 0 and at most {MAX_HOURS}")
        secret, now, label = secrets.token_urlsafe(24), self._store.now(), clean(label)
        digest = _hash(secret)
        with self._store.write() as db:
            db.execute(
                "INSERT INTO invitations (secret_hash, label, created_at, expires_at, replaces) VALUES (?, ?, ?, ?, ?)",
                (digest, label, now, now + hours * 3600, replaces),
            )
            what = ("reenrol", replaces) if replaces else ("invite", label)
            self._store.audit(db, actor, *what, hours=hours, invitation=digest[:_ID])
        return secret

    def good(self, secret: str) -> Row:
        """The invitation of a secret that may be used now. Raises RefusedError saying why it may not."""
        row = self._store.one("SELECT * FROM invitations WHERE secret_hash = ?", _hash(secret))
        if row is None:
            raise RefusedError("the invitation is not known here", "ask the maintainer for one", "bad_invitation")
        state = self.state(row)
        if state == "used":
            raise RefusedError("the invitation has been used", f"each is good once: {_ANOTHER}", "used_invitation")
        if state != "open":  # one reason for both on the wire: it is not good any more
            was = "was cancelled" if state == "cancelled" else "has expired"
            raise RefusedError(f"the invitation {was}", _ANOTHER, "expired_invitation")
        return row

    def use(self, db: sqlite3.Connection, row: Row, node: str) -> None:
        """Inside the transaction that lets `node` in."""
        db.execute(
            "UPDATE invitations SET used_at = ?, used_by = ? WHERE secret_hash = ?",
            (self._store.now(), node, row["secret_hash"]),
        )

    def state(self, row: Row) -> str:
        """`open`, `used`, `cancelled` or `expired`."""
        if row["used_at"] is not None:
            return "used"
        if row["cancelled_at"] is not None:
            return "cancelled"
        return "open" if row["expires_at"] > self._store.now() else "expired"

    def all(self) -> list[Row]:
        """Oldest first."""
        return self._store.all("SELECT * FROM invitations ORDER BY created_at, secret_hash")

    def cancel(self, which: str, actor: str) -> Row:
        """Nobody gets in with it from now on. `which`: its id, or its label where just one open one has that.

        Raises UsageError when there is none to cancel.
        """
        rows = [r for r in self.all() if ident(r) == which]
        rows = rows or [r for r in self.all() if r["label"] == which and which and self.state(r) == "open"]
        if len(rows) != 1:
            what = "is none of the open invitations" if not rows else "is the label of several open invitations"
            raise UsageError(f"{which[:80]!r} {what}", "`zk0-hub invitations list` shows their ids")
        state = self.state(rows[0])
        if state == "used":
            node = rows[0]["used_by"]
            raise UsageError(f"invitation {which} let {node} in already", f"`zk0-hub nodes revoke {node}` locks it out")
        if state != "open":
            raise UsageError(f"invitation {which} is {state} already", "nobody gets in with it")
        with self._store.write() as db:
            digest = rows[0]["secret_hash"]
            db.execute("UPDATE invitations SET cancelled_at = ? WHERE secret_hash = ?", (self._store.now(), digest))
            self._store.audit(db, actor, "invitation.cancel", ident(rows[0]), label=rows[0]["label"])
        return rows[0]


def ident(row: Row) -> str:
    """What an invitation is called where its secret must not be shown."""
    return str(row["secret_hash"])[:_ID]


def ident_of(secret: str) -> str:
    """The same of a secret."""
    return _hash(secret)[:_ID]


def clean(label: str) -> str:
    """A label without what a terminal would obey, and not too long."""
    return "".join(c for c in label if c.isprintable())[:MAX_LABEL]


def _hash(secret: str) -> str:
    # 192 random bits need no slow hash.
    return hashlib.sha256(b"zk0 invitation v1\0" + secret.encode()).hexdigest()
