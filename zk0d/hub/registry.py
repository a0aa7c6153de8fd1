"""Who may be a node: applications and their bounds, approval, refusal, revocation, a lost key's successor.

The certificates themselves are certificates.py's, the secrets that let a node in invitations.py's. Labels are the
maintainer's names for nodes and stay here; on the wire a node is only its random id.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zk0d.errors import ProtocolError, RefusedError, UsageError
from zk0d.hub.certificates import Certificates
from zk0d.hub.invitations import Invitations, clean
from zk0d.hub.store import Row, Store
from zk0d.link.identity import NODE_DAYS, Authority, csr_fingerprint, phrase
from zk0d.link.lifetime import Lifetime
from zk0d.link.place import place

_DAY = 86400.0


@dataclass(frozen=True)
class Bounds:
    """On what strangers may leave here, and how long certificates are good (days)."""

    node_days: float = NODE_DAYS
    max_pending: int = 1000
    """Applications that wait for approval; more are turned away, so that nobody fills the disk."""
    max_pending_per_address: int = 20
    pending_days: float = 14.0
    """An application older than this is forgotten; its node may apply again."""


class Registry:
    """The hub's list of nodes."""

    def __init__(self, store: Store, authority: Authority, bounds: Bounds | None = None) -> None:
        self._store = store
        self._authority = authority
        self.bounds = bounds or Bounds()
        self.invitations = Invitations(store)
        self.certificates = Certificates(store, authority, self.bounds.node_days)
        self.allowed = self.certificates.allowed
        self.on_replaced: Callable[[str], None] = lambda node: None
        """Called with a node whose certificates were revoked for a new key's: its live link is to end."""

    def approved(self, node: str) -> bool:
        """Whether the node may still contribute."""
        return self.certificates.known(node)

    def invite(self, label: str, hours: float, actor: str, replaces: str = "") -> str:
        """A new one-time secret; only its hash is kept. Raises UsageError for a silly duration.

        `replaces`: a node id that the one who uses it gets, with a new key; the node's old certificates end then.
        """
        if replaces:
            row = self._replaceable(replaces)
            replaces, label = row["node"], row["label"]
        return self.invitations.make(label, hours, actor, replaces)

    def enroll(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer an enrolment request {csr, secret?, label?, address}. Raises RefusedError with the reason.

        The same key asking again gets the same answer, so a lost reply costs nothing. The reply is
        {state: "approved", node_id, certificate, ca} or {state: "pending", node_id, phrase}.
        """
        csr = request.get("csr")
        if not isinstance(csr, bytes) or len(csr) > 8192:
            raise RefusedError("the request has no certificate request", reason="malformed")
        try:
            key = csr_fingerprint(csr)
        except ProtocolError as error:
            raise RefusedError(error.message, reason="malformed") from None
        secret = request.get("secret")
        row = self._store.one("SELECT * FROM nodes WHERE key = ?", key)
        former = self.certificates.owner(key) if row is None else None
        if former is not None:
            raise RefusedError(
                f"this key was node {former['node']}'s and has been replaced",
                "make a new one: zk0ctl enroll --new-key", "replaced_key"
            )  # fmt: skip
        if row is not None and row["state"] in ("refused", "revoked"):
            raise RefusedError(
                f"this node was {row['state']}: {row['reason'] or 'no reason given'}", reason=row["state"]
            )
        if row is not None and row["state"] == "approved":
            if Lifetime.of(bytes(row["certificate"])).due(self._store.now()):  # it was away when it was to be renewed
                self.certificates.renew(row, csr, row["node"])
                row = self.node(row["node"])
            return self._approved(row)
        if isinstance(secret, str) and secret:
            return self._with_secret(csr, key, secret, request, row)
        if row is None:
            row = self._add(csr, key, str(request.get("label", "")), str(request.get("address", "")))
        return {"state": "pending", "node_id": row["node"], "phrase": phrase(key)}

    def _with_secret(
        self, csr: bytes, key: str, secret: str, request: dict[str, Any], row: Row | None
    ) -> dict[str, Any]:
        invitation = self.invitations.good(secret)
        replaces = str(invitation["replaces"])
        with self._store.write() as db:
            if replaces:
                self._replace(db, self.node(replaces), row, csr, "invitation")
                row = self.node(replaces)
            elif row is None:
                row = self._insert(db, csr, key, invitation["label"], str(request.get("address", "")))
            self.invitations.use(db, invitation, row["node"])
            if not replaces:
                self._issue(db, row, "invitation")
        if replaces:
            self.on_replaced(replaces)
        return self._approved(self.node(row["node"]))

    def _add(self, csr: bytes, key: str, label: str, address: str) -> Row:
        self.forget_stale()
        waiting = [place(r["address"]) for r in self.nodes("pending")]
        if len(waiting) >= self.bounds.max_pending:
            raise RefusedError("too many requests wait for approval", "ask the maintainer to look at them", "busy")
        if address and waiting.count(place(address)) >= self.bounds.max_pending_per_address:
            raise RefusedError(
                f"{waiting.count(place(address))} requests from your network wait for approval already",
                "wait until the maintainer has looked at them, or ask for an invitation", "busy"
            )  # fmt: skip
        with self._store.write() as db:
            return self._insert(db, csr, key, label, address)

    def forget_stale(self) -> int:
        """Forget applications that nobody has looked at for too long → how many."""
        before = self._store.now() - self.bounds.pending_days * _DAY
        stale = self._store.all("SELECT node FROM nodes WHERE state = 'pending' AND requested_at < ?", before)
        if stale:
            with self._store.write() as db:
                for row in stale:
                    db.execute("DELETE FROM nodes WHERE node = ?", (row["node"],))
                    self._store.audit(db, "hub", "application.expired", row["node"], days=self.bounds.pending_days)
        return len(stale)

    def _insert(self, db: sqlite3.Connection, csr: bytes, key: str, label: str, address: str) -> Row:
        node = "node-" + secrets.token_hex(6)
        db.execute(
            "INSERT INTO nodes (node, label, state, key, csr, address, requested_at)"
            " VALUES (?, ?, 'pending', ?, ?, ?, ?)",
            (node, clean(label), key, csr, address[:80], self._store.now()),
        )
        self._store.audit(db, node, "enrol", node, address=address[:80])
        return self.node(node)

    def _issue(self, db: sqlite3.Connection, row: Row, actor: str) -> None:
        self.certificates.issue(db, row["node"], row["csr"], actor, "approve")
        self._approve(db, row["node"])

    def _approve(self, db: sqlite3.Connection, node: str) -> None:
        db.execute(
            "UPDATE nodes SET state = 'approved', decided_at = ?, reason = '' WHERE node = ?", (self._store.now(), node)
        )

    def _replaceable(self, node: str) -> Row:
        row = self.node(node)
        if row["state"] not in ("approved", "revoked"):
            raise UsageError(f"{row['node']} is {row['state']}", "only a node that was let in can have a new key")
        return row

    def _replace(self, db: sqlite3.Connection, old: Row, applicant: Row | None, csr: bytes, actor: str) -> None:
        """Give the node `old` to the key in `csr`; what its old key still had under way is to be offered anew."""
        node = old["node"]
        if applicant is not None:
            db.execute("DELETE FROM nodes WHERE node = ? AND state IN ('pending', 'refused')", (applicant["node"],))
        self.certificates.revoke(db, node)
        withdrawn = db.execute(
            "UPDATE tasks SET answered = 0 WHERE task IN (SELECT task FROM updates WHERE node = ?"
            " AND state = 'receiving')", (node,)
        ).rowcount  # fmt: skip
        db.execute("DELETE FROM updates WHERE node = ? AND state = 'receiving'", (node,))
        self._store.audit(db, actor, "rekey", node, withdrawn=withdrawn)
        self.certificates.issue(db, node, csr, actor, "approve")
        self._approve(db, node)

    def _approved(self, row: Row) -> dict[str, Any]:
        return {
            "state": "approved",
            "node_id": row["node"],
            "certificate": row["certificate"],
            "ca": self._authority.pem,
        }

    def node(self, node: str) -> Row:
        """One node by id, or by label where that names just one. Raises UsageError."""
        rows = self._store.all("SELECT * FROM nodes WHERE node = ?", node) or self._store.all(
            "SELECT * FROM nodes WHERE label = ?", node
        )
        if len(rows) != 1:
            what = "is not known" if not rows else "names several nodes"
            raise UsageError(f"node {node!r} {what}", "`zk0-hub nodes list` shows their ids")
        return rows[0]

    def nodes(self, state: str | None = None) -> list[Row]:
        """All nodes, or those in one state, oldest request first."""
        return self._store.all(
            "SELECT * FROM nodes WHERE ? IS NULL OR state = ? ORDER BY requested_at, node", state, state
        )

    def approve(self, node: str, actor: str, instead_of: str = "") -> Row:
        """Let a pending or refused node in; it gets its certificate when it asks again. Raises UsageError.

        `instead_of`: the node that it was before it lost its key; it becomes that one again, and the old key is out.
        """
        row = self.node(node)
        if row["state"] not in ("pending", "refused"):
            raise UsageError(f"{row['node']} is {row['state']}", "only pending and refused nodes can be approved")
        old = self._replaceable(instead_of) if instead_of else None
        with self._store.write() as db:
            if old is None:
                self._issue(db, row, actor)
            else:
                self._replace(db, old, row, row["csr"], actor)
        if old is None:
            return self.node(row["node"])
        self.on_replaced(old["node"])
        return self.node(old["node"])

    def renew(self, node: str, csr: bytes) -> bytes:
        """A fresh certificate for a node that asks over its own link → PEM. Raises RefusedError."""
        row = self._store.one("SELECT * FROM nodes WHERE node = ? AND state = 'approved'", node)
        if row is None:
            raise RefusedError(f"node {node} is not approved here", reason="revoked")
        return self.certificates.renew(row, csr, node)

    def refuse(self, node: str, reason: str, actor: str) -> Row:
        """Turn a pending node away. Raises UsageError."""
        row = self.node(node)
        if row["state"] != "pending":
            raise UsageError(f"{row['node']} is {row['state']}", "only pending nodes can be refused; revoke the others")
        return self._close(row, "refused", reason, actor)

    def revoke(self, node: str, reason: str, actor: str) -> Row:
        """Lock an approved node out; the caller closes its live link. Raises UsageError."""
        row = self.node(node)
        if row["state"] != "approved":
            raise UsageError(f"{row['node']} is {row['state']}", "only approved nodes can be revoked")
        return self._close(row, "revoked", reason, actor)

    def _close(self, row: Row, state: str, reason: str, actor: str) -> Row:
        with self._store.write() as db:
            self.certificates.revoke(db, row["node"])
            db.execute(
                "UPDATE nodes SET state = ?, reason = ?, decided_at = ? WHERE node = ?",
                (state, reason, self._store.now(), row["node"]),
            )
            self._store.audit(db, actor, state, row["node"], reason=reason)
        return self.node(row["node"])

    def seen(self, node: str) -> None:
        """Note that the node is here now."""
        with self._store.write() as db:
            db.execute("UPDATE nodes SET last_seen = ? WHERE node = ?", (self._store.now(), node))
