"""The hub's public memory of what it confirmed: every receipt is a leaf of one Merkle log whose heads the hub signs.

Leaf i is the text of receipt i + 1 (table `receipts`); the hashes of complete subtrees lie in table `tree`, so a proof
reads a few rows however long the log is. The mathematics is zk0d/link/merkle.py.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from zk0d.durable import canonical_json
from zk0d.errors import RefusedError
from zk0d.hub.receipts import ReceiptKey, timestamp
from zk0d.hub.store import Store
from zk0d.link import merkle

HEAD_PREFIX = b"zk0 tree head v1\0"
MAX_ENTRIES = 64
"""Entries of one update in one answer; an update has two."""


class ReceiptLog:
    """Appends inside the ledger's transactions; signs heads and gives proofs of what is committed."""

    def __init__(self, store: Store, key: ReceiptKey) -> None:
        """Bring the tree up to the receipts that an older zk0-hub left without one."""
        self._store, self._key = store, key
        behind = store.all("SELECT id, receipt FROM receipts WHERE id > ? ORDER BY id", self.size)
        if behind:
            with store.write() as db:
                for row in behind:
                    self.append(db, row["id"], bytes(row["receipt"]))

    @property
    def size(self) -> int:
        """Entries whose hashes are durable."""
        row = self._store.one("SELECT coalesce(max(position) + 1, 0) AS n FROM tree WHERE level = 0")
        return 0 if row is None else int(row["n"])

    def append(self, db: sqlite3.Connection, number: int, receipt: bytes) -> None:
        """Hash the receipt with row id `number` into the tree; in the transaction that inserts it."""
        rows = merkle.append(number - 1, merkle.leaf_hash(receipt), self._get)
        for level, position, made in rows:
            db.execute("INSERT INTO tree (level, position, hash) VALUES (?, ?, ?)", (level, position, made))

    def _get(self, level: int, position: int) -> bytes:
        row = self._store.one("SELECT hash FROM tree WHERE level = ? AND position = ?", level, position)
        if row is None:
            raise AssertionError(f"the receipt log lacks node {level}/{position}")
        return bytes(row["hash"])

    def head(self, known: int) -> dict[str, Any]:
        """The signed head of now, and the proof that it continues the log of `known` entries.

        A node that knows more than there is gets the head all the same: it is to see for itself that the log shrank.
        """
        size = self.size
        root = merkle.root(size, self._get)
        head = canonical_json({"at": timestamp(self._store.now()), "root": f"sha256:{root.hex()}", "size": size})
        proof = merkle.consistency(known, size, self._get) if 0 <= known <= size else []
        return {"head": head, "head_signature": self._key.sign(HEAD_PREFIX + head), "consistency": proof}

    def prove(self, update: str, size: int) -> list[dict[str, Any]]:
        """The receipts of one update among the first `size` entries, each with its place and audit path."""
        if not 0 < size <= self.size:
            raise RefusedError(f"the log has {self.size} entries, not {size}", reason="not_found")
        rows = self._store.all(
            "SELECT id, receipt, signature FROM receipts WHERE digest = ? AND id <= ? ORDER BY id LIMIT ?",
            update, size, MAX_ENTRIES,
        )  # fmt: skip
        return [
            {"receipt": bytes(r["receipt"]), "signature": bytes(r["signature"]), "index": r["id"] - 1,
             "path": merkle.inclusion(r["id"] - 1, size, self._get)}
            for r in rows
        ]  # fmt: skip
