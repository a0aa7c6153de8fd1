"""How much one node may send in a day: updates and payload bytes, over the last 24 hours. Asked at each new offer.

What is refused for it is not lost: the node keeps its update and offers it again. Bandwidth is hub.toml's [link].
"""

from __future__ import annotations

from zk0d.errors import RefusedError
from zk0d.hub.receipts import timestamp
from zk0d.hub.store import Store

_DAY = 86400.0


class Quotas:
    """`updates`, `size` (bytes): per node and day; 0: no bound."""

    def __init__(self, store: Store, updates: int, size: int) -> None:
        self._store, self._updates, self._size = store, updates, size

    def check(self, node: str, size: int) -> None:
        """RefusedError `quota`, saying which bound and until when, if one more update of `size` bytes is too much."""
        rows = self._store.all(
            "SELECT offered_at, size FROM updates WHERE node = ? AND offered_at > ? ORDER BY offered_at",
            node, self._store.now() - _DAY,
        )  # fmt: skip
        over, total = len(rows) - self._updates, sum(r["size"] for r in rows)
        if self._updates and over >= 0:
            raise self._refusal(f"{self._updates} updates a day", rows[over]["offered_at"])
        if self._size and total + size > self._size:
            freed, at = total + size - self._size, None
            for row in rows:
                at = row["offered_at"]
                freed -= row["size"]
                if freed <= 0:
                    break
            if freed > 0:
                raise RefusedError(
                    f"an update of {size} bytes is above this hub's quota of {self._size} bytes a day and node",
                    "ask the maintainer ([quota] in hub.toml)", "quota"
                )  # fmt: skip
            raise self._refusal(f"{self._size} bytes a day", at or 0.0)

    def _refusal(self, what: str, since: float) -> RefusedError:
        return RefusedError(
            f"this node has used its quota of {what} until {timestamp(since + _DAY + 1)}",
            "the update stays at the node and is offered again", "quota"
        )  # fmt: skip
