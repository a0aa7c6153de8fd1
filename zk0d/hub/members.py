"""Who is a member of a federation at the hub: joining, leaving, coming back. Queries over store.py.

A row stays for good, since tasks and updates name it; `left_at` says that its node is no member now. What a member may
do is in rounds.py.
"""

from __future__ import annotations

import json
from typing import Any

from zk0d.hub.refusals import Refusals
from zk0d.hub.store import Row, Store

_MEMBERS = """FROM members m JOIN nodes n ON n.node = m.node
    WHERE m.federation = ? AND m.left_at IS NULL AND n.state != 'revoked'"""


class Members:
    """The queries; each change is durable and audited when its method returns."""

    def __init__(self, store: Store, refusals: Refusals) -> None:
        self._store, self._refusals = store, refusals

    def join(self, name: str, node: str, stats: dict[str, Any], datasets: list[dict[str, Any]]) -> bool:
        """Add, renew or take up again a membership → whether the node was no member before."""
        new = not self.has(name, node)
        with self._store.write() as db:
            db.execute(
                "INSERT INTO members (federation, node, stats, datasets, joined_at) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (federation, node) DO UPDATE SET stats = excluded.stats, datasets = excluded.datasets,"
                " joined_at = CASE WHEN left_at IS NULL THEN joined_at ELSE excluded.joined_at END, left_at = NULL",
                (name, node, json.dumps(stats), json.dumps(datasets), self._store.now()),
            )
            if new:
                self._store.audit(db, node, "federation.join", name)
        return new

    def leave(self, name: str, node: str) -> bool:
        """The node is no member from now on → whether it was one. Its task is nobody's any more, what of it is still
        on its way is refused; what was admitted counts."""
        if not self.has(name, node):
            return False
        self._refusals.of_node(node, "its node has left the federation", node, name)
        with self._store.write() as db:
            db.execute("UPDATE members SET left_at = ? WHERE federation = ? AND node = ?",
                       (self._store.now(), name, node))  # fmt: skip
            db.execute("UPDATE tasks SET answered = 1 WHERE federation = ? AND node = ? AND answered = 0", (name, node))
            self._store.audit(db, node, "federation.leave", name)
        return True

    def of(self, name: str) -> list[Row]:
        """Those that joined, did not leave and were not revoked."""
        return self._store.all(f"SELECT m.* {_MEMBERS} ORDER BY m.node", name)

    def names(self, name: str) -> frozenset[str]:
        return frozenset(r["node"] for r in self._store.all(f"SELECT m.node {_MEMBERS}", name))

    def has(self, name: str, node: str) -> bool:
        return self._store.one(f"SELECT 1 {_MEMBERS} AND m.node = ?", name, node) is not None
