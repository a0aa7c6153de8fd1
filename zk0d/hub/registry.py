"""Who may be a node: invitations, enrolment requests, approval, refusal, revocation.

The certificate authority itself is zk0d/link/identity.py. Labels are the maintainer's names for nodes and stay here; on
the wire a node is only its random id.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
from typing import Any

from zk0d.errors import ProtocolError, RefusedError, UsageError
from zk0d.hub.store import Row, Store
from zk0d.link.identity import Authority, csr_fingerprint, fingerprint, phrase

MAX_PENDING = 1000
"""Requests that wait for approval; more are turned away, so that nobody fills the disk."""
MAX_LABEL = 80


class Registry:
    """The hub's list of nodes. `allowed` may be asked from any thread."""

    def __init__(self, store: Store, authority: Authority) -> None:
        self._store = store
        self._authority = authority
        rows = store.all("SELECT node, fingerprint FROM nodes WHERE state = 'approved'")
        self._allowed: dict[str, str] = {r["node"]: r["fingerprint"] for r in rows}

    def allowed(self, node: str, certificate_fingerprint: str) -> bool:
        """Whether this certificate of this node may link now."""
        return self._allowed.get(node) == certificate_fingerprint

    def approved(self, node: str) -> bool:
        """Whether the node may still contribute."""
        return node in self._allowed

    def invite(self, label: str, hours: float, actor: str) -> str:
        """A new one-time secret; only its hash is kept. Raises UsageError for a silly duration."""
        if not 0 < hours <= 24 * 365:
            raise UsageError(f"an invitation cannot last {hours:g} hours", "give more than 0 and at most 8760")
        secret, now = secrets.token_urlsafe(24), self._store.now()
        with self._store.write() as db:
            db.execute(
                "INSERT INTO invitations (secret_hash, label, created_at, expires_at) VALUES (?, ?, ?, ?)",
                (_hash(secret), label[:MAX_LABEL], now, now + hours * 3600),
            )
            self._store.audit(db, actor, "invite", label[:MAX_LABEL], hours=hours)
        return secret

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
        if row is not None and row["state"] in ("refused", "revoked"):
            raise RefusedError(
                f"this node was {row['state']}: {row['reason'] or 'no reason given'}", reason=row["state"]
            )
        if row is not None and row["state"] == "approved":
            return self._approved(row)
        if isinstance(secret, str) and secret:
            return self._with_secret(csr, key, secret, request, row)
        if row is None:
            row = self._add(csr, key, str(request.get("label", "")), str(request.get("address", "")))
        return {"state": "pending", "node_id": row["node"], "phrase": phrase(key)}

    def _with_secret(
        self, csr: bytes, key: str, secret: str, request: dict[str, Any], row: Row | None
    ) -> dict[str, Any]:
        invitation = self._store.one("SELECT * FROM invitations WHERE secret_hash = ?", _hash(secret))
        if invitation is None:
            raise RefusedError("the invitation is not known here", "ask the maintainer for one", "bad_invitation")
        if invitation["used_at"] is not None:
            raise RefusedError(
                "the invitation has been used", "each is good once: ask the maintainer for another", "used_invitation"
            )
        if invitation["expires_at"] <= self._store.now():
            raise RefusedError("the invitation has expired", "ask the maintainer for another", "expired_invitation")
        with self._store.write() as db:
            if row is None:
                row = self._insert(db, csr, key, invitation["label"], str(request.get("address", "")))
            db.execute(
                "UPDATE invitations SET used_at = ?, used_by = ? WHERE secret_hash = ?",
                (self._store.now(), row["node"], _hash(secret)),
            )
            self._issue(db, row, "invitation")
        return self._approved(self.node(row["node"]))

    def _add(self, csr: bytes, key: str, label: str, address: str) -> Row:
        waiting = self._store.one("SELECT count(*) AS n FROM nodes WHERE state = 'pending'")
        if waiting is not None and waiting["n"] >= MAX_PENDING:
            raise RefusedError("too many requests wait for approval", "ask the maintainer to look at them", "busy")
        with self._store.write() as db:
            return self._insert(db, csr, key, label, address)

    def _insert(self, db: sqlite3.Connection, csr: bytes, key: str, label: str, address: str) -> Row:
        node = "node-" + secrets.token_hex(6)
        db.execute(
            "INSERT INTO nodes (node, label, state, key, csr, address, requested_at)"
            " VALUES (?, ?, 'pending', ?, ?, ?, ?)",
            (node, _clean(label), key, csr, address[:80], self._store.now()),
        )
        self._store.audit(db, node, "enrol", node, address=address[:80])
        return self.node(node)

    def _issue(self, db: sqlite3.Connection, row: Row, actor: str) -> None:
        certificate = self._authority.issue_node(row["csr"], row["node"])
        mark = fingerprint(certificate)
        db.execute(
            "UPDATE nodes SET state = 'approved', certificate = ?, fingerprint = ?, decided_at = ?, reason = ''"
            " WHERE node = ?",
            (certificate, mark, self._store.now(), row["node"]),
        )
        self._store.audit(db, actor, "approve", row["node"], fingerprint=mark)
        self._allowed[row["node"]] = mark

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

    def certificate(self, node: str) -> bytes:
        """The certificate an approved node signs with."""
        return bytes(self.node(node)["certificate"])

    def approve(self, node: str, actor: str) -> Row:
        """Let a pending or refused node in; it gets its certificate when it asks again. Raises UsageError."""
        row = self.node(node)
        if row["state"] not in ("pending", "refused"):
            raise UsageError(f"{row['node']} is {row['state']}", "only pending and refused nodes can be approved")
        with self._store.write() as db:
            self._issue(db, row, actor)
        return self.node(row["node"])

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
        self._allowed.pop(row["node"], None)
        return self._close(row, "revoked", reason, actor)

    def _close(self, row: Row, state: str, reason: str, actor: str) -> Row:
        with self._store.write() as db:
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


def _hash(secret: str) -> str:
    # 192 random bits need no slow hash.
    return hashlib.sha256(b"zk0 invitation v1\0" + secret.encode()).hexdigest()


def _clean(label: str) -> str:
    return "".join(c for c in label if c.isprintable())[:MAX_LABEL]
