"""The certificates that nodes hold: which may link now, who signed what, issuing, renewing and revoking them.

A node may have several good ones: an old one stays good until it expires after its renewal. Who may have one at all
is decided in registry.py; certificates are made in zk0d/link/identity.py.
"""

from __future__ import annotations

import sqlite3

import structlog

from zk0d.errors import ProtocolError, RefusedError
from zk0d.hub.store import Row, Store
from zk0d.link.identity import NODE_DAYS, Authority, csr_fingerprint, fingerprint, verify
from zk0d.link.lifetime import Lifetime

log = structlog.get_logger("certificates")


class Certificates:
    """Queries over table `certificates`. `allowed` may be asked from any thread."""

    def __init__(self, store: Store, authority: Authority, days: float = NODE_DAYS) -> None:
        self._store, self._authority, self._days = store, authority, days
        self._allowed: dict[str, frozenset[str]] = {}
        for row in store.all("SELECT node FROM nodes WHERE state = 'approved'"):
            self._refresh(row["node"])

    def allowed(self, node: str, certificate_fingerprint: str) -> bool:
        """Whether this certificate of this node may link now; its dates are TLS's business."""
        return certificate_fingerprint in self._allowed.get(node, ())

    def known(self, node: str) -> bool:
        """Whether the node has a certificate that is not revoked."""
        return bool(self._allowed.get(node))

    def _refresh(self, node: str) -> None:
        rows = self._store.all("SELECT fingerprint FROM certificates WHERE node = ? AND revoked_at IS NULL", node)
        self._allowed[node] = frozenset(r["fingerprint"] for r in rows)

    def owner(self, key: str) -> Row | None:
        """The newest certificate ever given to a key: {node, revoked_at, …}, or None."""
        return self._store.one(
            "SELECT * FROM certificates WHERE key = ? ORDER BY revoked_at IS NOT NULL, issued_at DESC LIMIT 1", key
        )

    def issue(self, db: sqlite3.Connection, node: str, csr: bytes, actor: str, action: str) -> bytes:
        """A certificate for the key in `csr`, now the node's newest; inside the caller's transaction."""
        certificate = self._authority.issue_node(csr, node, self._days)
        mark, key, now = fingerprint(certificate), csr_fingerprint(csr), self._store.now()
        db.execute(
            "INSERT INTO certificates (fingerprint, node, key, certificate, issued_at) VALUES (?, ?, ?, ?, ?)",
            (mark, node, key, certificate, now),
        )
        db.execute(
            "UPDATE nodes SET key = ?, csr = ?, certificate = ?, fingerprint = ? WHERE node = ?",
            (key, csr, certificate, mark, node),
        )
        self._store.audit(db, actor, action, node, fingerprint=mark, until=int(Lifetime.of(certificate).end))
        self._refresh(node)
        return certificate

    def renew(self, node: Row, csr: bytes, actor: str) -> bytes:
        """A fresh certificate for the key in `csr`, the node's own or a new one → PEM. Raises RefusedError.

        Asking again for the same key gets the same certificate until that is due. The old one stays good.
        """
        try:
            key = csr_fingerprint(csr)
        except ProtocolError as error:
            raise RefusedError(error.message, reason="malformed") from None
        newest, now = bytes(node["certificate"]), self._store.now()
        life = Lifetime.of(newest)
        if key == node["key"] and not life.due(now):
            return newest
        if key != node["key"] and not life.halfway(now):
            raise RefusedError(
                "the certificate has more than half of its life before it",
                "renew it later; a new key before that is the maintainer's to allow (zk0-hub nodes reenrol)", "not_due"
            )  # fmt: skip
        other = self.owner(key)
        if other is not None and (other["node"] != node["node"] or other["revoked_at"] is not None):
            raise RefusedError("this key has been another's or was revoked", "make a new one", "bad_key")
        if self._store.one("SELECT 1 FROM nodes WHERE key = ? AND node <> ?", key, node["node"]):
            raise RefusedError("another application was made with this key", "make a new one", "bad_key")
        with self._store.write() as db:
            made = self.issue(db, node["node"], csr, actor, "certificate.renew")
        log.info("certificate renewed", node=node["node"], key="the same" if key == node["key"] else "a new one")
        return made

    def revoke(self, db: sqlite3.Connection, node: str) -> None:
        """None of the node's certificates is good any more, from before the transaction ends."""
        db.execute(
            "UPDATE certificates SET revoked_at = ? WHERE node = ? AND revoked_at IS NULL", (self._store.now(), node)
        )
        self._allowed.pop(node, None)

    def signer(self, node: str, data: bytes, signature: bytes) -> bytes:
        """The node's unrevoked certificate whose key made the signature; its newest where none did.

        Also an expired one: what a node signed while it was good waits at the node for as long as it must.
        """
        rows = self._store.all(
            "SELECT certificate FROM certificates WHERE node = ? AND revoked_at IS NULL ORDER BY issued_at DESC", node
        )
        for row in rows:
            try:
                verify(bytes(row["certificate"]), data, signature)
            except ProtocolError:
                continue
            return bytes(row["certificate"])
        newest = rows[0] if rows else self._store.one("SELECT certificate FROM nodes WHERE node = ?", node)
        return b"" if newest is None else bytes(newest["certificate"] or b"")
