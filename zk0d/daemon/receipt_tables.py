"""The part of the node's state file that is evidence: receipts, the log entries they are, the tree heads accepted.

A part of Store (store.py). What the numbers mean is checked in evidence.py.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from zk0d.daemon.database import Database
from zk0d.link.merkle import leaf_hash


@dataclass(frozen=True)
class Entry:
    """A receipt as an entry of the hub's log. `position`, `size` and `path` are None until it is proved."""

    leaf: str
    update: str
    receipt: bytes
    signature: bytes
    stored_at: float
    position: int | None = None
    size: int | None = None
    path: tuple[bytes, ...] = ()
    set_aside: float | None = None
    """When the operator accepted that the hub's log lost it (a restored hub); its signature stands."""


@dataclass(frozen=True)
class Head:
    """A tree head that was accepted, with the proof that it continues the one stored before it."""

    size: int
    head: bytes
    signature: bytes
    consistency: tuple[bytes, ...]
    stored_at: float

    @property
    def root(self) -> bytes:
        return bytes.fromhex(str(json.loads(self.head)["root"]).removeprefix("sha256:"))


class ReceiptTables(Database):
    """Queries over `receipts`, `refusals`, `log_entries` and `log_heads`."""

    def add_receipt(self, update: str, federation: str, receipt: bytes, signature: bytes) -> None:
        """Store a verified receipt (or its newer edition) and release the update, in one step."""
        with self.transaction():
            self._do(
                "INSERT OR REPLACE INTO receipts VALUES (?,?,?,?,?)",
                update, federation, receipt, signature, time.time(),
            )  # fmt: skip
            self.add_entry(update, receipt, signature)
            self._do("UPDATE updates SET state='receipted', reason='' WHERE digest=?", update)

    def receipts(self) -> list[dict[str, Any]]:
        """The newest edition of each, oldest first; `receipt` parsed, `update`, `stored_at`."""
        rows = self._rows("SELECT * FROM receipts ORDER BY stored_at")
        return [{"update": r["update_digest"], "stored_at": r["stored_at"], **json.loads(r["receipt"])} for r in rows]

    def add_entry(self, update: str, receipt: bytes, signature: bytes) -> None:
        """Note a verified receipt as an entry that the log must have."""
        self._do(
            "INSERT OR IGNORE INTO log_entries (leaf, update_digest, receipt, signature, stored_at) VALUES (?,?,?,?,?)",
            leaf_hash(receipt).hex(), update, receipt, signature, time.time(),
        )  # fmt: skip

    def enter_old_receipts(self) -> None:
        """Make entries of the receipts that an older zk0d stored."""
        rows = self._rows("SELECT * FROM receipts WHERE update_digest NOT IN (SELECT update_digest FROM log_entries)")
        for r in rows:
            self.add_entry(r["update_digest"], bytes(r["receipt"]), bytes(r["signature"]))

    def entries(self) -> list[Entry]:
        """All receipts in all editions, oldest first."""
        rows = self._rows("SELECT * FROM log_entries ORDER BY stored_at, leaf")
        aside = "set_aside" in (rows[0].keys() if rows else ())  # zk0ctl may read a file that an older zk0d left
        return [
            Entry(r["leaf"], r["update_digest"], bytes(r["receipt"]), bytes(r["signature"]), r["stored_at"],
                  r["position"], r["size"], split_hashes(r["path"]), r["set_aside"] if aside else None)
            for r in rows
        ]  # fmt: skip

    def set_proof(self, leaf: str, position: int, size: int, path: tuple[bytes, ...]) -> None:
        """The entry is proved to be in the log of `size` entries at `position`; the first proof stays."""
        self._do(
            "UPDATE log_entries SET position=?, size=?, path=? WHERE leaf=? AND position IS NULL",
            position, size, b"".join(path), leaf,
        )  # fmt: skip

    def heads(self) -> list[Head]:
        """The accepted tree heads, smallest first."""
        rows = self._rows("SELECT * FROM log_heads ORDER BY size")
        return [
            Head(r["size"], bytes(r["head"]), bytes(r["signature"]), split_hashes(r["consistency"]), r["stored_at"])
            for r in rows
        ]

    def add_head(self, head: Head) -> None:
        self._do(
            "INSERT OR IGNORE INTO log_heads VALUES (?,?,?,?,?)",
            head.size, head.head, head.signature, b"".join(head.consistency), head.stored_at,
        )  # fmt: skip

    def accept_shorter(self, head: Head, at: float) -> int:
        """Begin the log anew at `head`, which does not continue the kept one: entries are to be proved again, those
        that the hub lost are set aside when it cannot → how many heads were put with the past ones (and kept)."""
        with self.transaction():
            count = len(self.heads())
            names = "size, head, signature, consistency, stored_at"
            self._do(f"INSERT INTO log_heads_past SELECT ?, {names} FROM log_heads", at)
            self._do("DELETE FROM log_heads")
            self._do("UPDATE log_entries SET position=NULL, size=NULL, path=NULL, set_aside=?", at)
            if head.size:
                self.add_head(head)
        return count

    def found_again(self, leaf: str) -> None:
        """The entry that was set aside is in the log after all."""
        self._do("UPDATE log_entries SET set_aside=NULL WHERE leaf=?", leaf)

    def add_refusal(self, update: str, refusal: bytes, signature: bytes) -> None:
        """Keep the hub's signed no to an update."""
        self._do("INSERT OR REPLACE INTO refusals VALUES (?,?,?,?)", update, refusal, signature, time.time())

    def refusals(self) -> list[dict[str, Any]]:
        """Oldest first: `update`, `refusal` (bytes), `signature`, `stored_at`."""
        if not self._rows("SELECT 1 FROM sqlite_master WHERE name='refusals'"):
            return []  # zk0ctl reads a file that an older zk0d left
        rows = self._rows("SELECT * FROM refusals ORDER BY stored_at")
        return [{"update": r["update_digest"], "refusal": bytes(r["refusal"]), "signature": bytes(r["signature"]),
                 "stored_at": r["stored_at"]} for r in rows]  # fmt: skip


def split_hashes(joined: bytes | None) -> tuple[bytes, ...]:
    """32-byte hashes from their concatenation."""
    data = bytes(joined or b"")
    return tuple(data[i : i + 32] for i in range(0, len(data), 32))
