"""Refusing an update, whoever decides it and when: the one way from "receiving" or "admitted" to "refused".

The decision is a line in the caller's transaction, with its audit; when that is durable the update's transfer is ended,
its bytes go (to quarantine where they were at fault), and its node gets the signed no, which it may also ask for again.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

import structlog

from zk0d.hub.admission import quarantine
from zk0d.hub.receipts import ReceiptKey, read_statement
from zk0d.hub.store import Row, Store

if TYPE_CHECKING:
    from zk0d.hub.state import HubServices

log = structlog.get_logger("federation")

CODE = "bad_update"
"""What a refusal is called on the wire, whatever the reason: nodes of every age let the update go for it."""
_IDLE_S = 60.0
"""Parts that were written to since may be just between two links."""


class Refusals:
    """The decisions. `on_refused` is called with each refused row once the transaction that refused it is durable."""

    def __init__(self, store: Store, key: ReceiptKey) -> None:
        self._store, self._key = store, key
        self.on_refused: Callable[[Row], None] = lambda row: None

    def refuse(self, db: sqlite3.Connection, digest: str, reason: str, actor: str, *, fault: bool) -> None:
        """Inside a transaction: the update no longer counts. One that is merged or refused already stays as it is.

        `fault`: the update itself was bad, so it goes to quarantine, and its node waits the longer for a task the more
        of its updates were; else circumstances ended it (a rollback, the end of the federation).
        """
        changed = db.execute(
            "UPDATE updates SET state = 'refused', reason = ?, decided_at = ?, fault = ?"
            " WHERE digest = ? AND state IN ('receiving', 'admitted')",
            (reason, self._store.now(), int(fault), digest),
        )
        if changed.rowcount != 1:
            return
        row = self._store.one("SELECT * FROM updates WHERE digest = ?", digest)
        assert row is not None
        self._store.audit(db, actor, "update.refused", digest, node=row["node"], reason=reason)
        self._store.afterwards(lambda: self.on_refused(row))

    def everything(
        self, db: sqlite3.Connection, name: str, reason: str, actor: str, spared: Collection[str] = ()
    ) -> None:
        """Inside a transaction: what of a federation is on its way or waits for a merge no longer counts, for no fault
        of its nodes. `spared`: what a merge is being made of."""
        for row in self._store.all(
            "SELECT digest FROM updates WHERE federation = ? AND state IN ('receiving', 'admitted')"
            " ORDER BY node, digest", name,
        ):  # fmt: skip
            if row["digest"] not in spared:
                self.refuse(db, row["digest"], reason, actor, fault=False)

    def of_finished(self, db: sqlite3.Connection, name: str, actor: str, spared: Collection[str] = ()) -> None:
        """Inside a transaction: what the federation will not merge any more, if it has finished."""
        row = self._store.one("SELECT phase FROM federations WHERE name = ?", name)
        if row is not None and row["phase"] == "finished":
            why = "the federation has finished and makes no further version"
            self.everything(db, name, why, actor, spared)

    def overtaken(self, db: sqlite3.Connection, name: str, oldest: int) -> None:
        """Inside a transaction: what is still on its way from a version before `oldest` would be too late."""
        for row in self._store.all(
            "SELECT digest, base_version FROM updates WHERE federation = ? AND state = 'receiving'"
            " AND base_version < ?", name, oldest,
        ):  # fmt: skip
            why = f"it came too late: it starts from version {row['base_version']}, at least {oldest} is accepted"
            self.refuse(db, row["digest"], why, "hub", fault=False)

    def of_node(self, node: str, reason: str, actor: str, federation: str = "") -> None:
        """What a node has on its way (to one federation, or to all) is not taken."""
        with self._store.write() as db:
            for row in self._store.all(
                "SELECT digest FROM updates WHERE node = ? AND state = 'receiving' AND ? IN ('', federation)",
                node, federation,
            ):  # fmt: skip
                self.refuse(db, row["digest"], reason, actor, fault=False)

    def with_payload(self, payload: str) -> list[Row]:
        return self._store.all("SELECT * FROM updates WHERE payload = ? AND state = 'refused'", payload)

    def arriving(self) -> set[str]:
        """Payloads that are on their way."""
        return {r["payload"] for r in self._store.all("SELECT payload FROM updates WHERE state = 'receiving'")}

    def signed(self, row: Row) -> tuple[bytes, bytes]:
        """The refusal of a refused row and its signature: the same bytes whenever it is asked for."""
        return self._key.refuse(row, CODE, row["reason"], row["decided_at"] or 0.0)


class Aftermath:
    """What follows a refusal, on a running hub. What a kill leaves of it undone, `sweep` does at the next start."""

    def __init__(self, hub: HubServices, refusals: Refusals) -> None:
        self._hub, self._refusals = hub, refusals
        self._receiving: dict[str, asyncio.Task[Any]] = {}
        refusals.on_refused = lambda row: hub.spawn(self._settle(row), f"refused {row['digest']}")

    @contextlib.contextmanager
    def receiving(self, digest: str) -> Iterator[None]:
        """While this lasts the current task takes the update in; it is cancelled when the update is refused."""
        task = asyncio.current_task()
        assert task is not None
        self._receiving[digest] = task
        try:
            yield
        finally:
            del self._receiving[digest]

    def is_receiving(self, digest: str) -> bool:
        return digest in self._receiving

    async def _settle(self, row: Row) -> None:
        log.warning("update refused", federation=row["federation"], node=row["node"], update=row["digest"],
                    reason=row["reason"])  # fmt: skip
        task = self._receiving.get(row["digest"])
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.wait([task])
        await asyncio.to_thread(self._put_away, row)
        if not self._hub.ledger.blob_needed(row["payload"]):
            self._hub.discard(row["payload"])
        refusal, signature = self._refusals.signed(row)
        await self._hub.push(row["node"], "refusal", {"refusal": refusal, "signature": signature})

    def _put_away(self, row: Row) -> None:
        if not row["fault"]:
            return
        statement = read_statement(bytes(row["statement"]), bytes(row["signature"]))
        path = self._hub.blobs.path(row["payload"])
        try:
            quarantine(self._hub.directory / "quarantine", path, statement, row["reason"])
        except OSError as error:  # a full disk, which must not keep what fills it, nor the hub from starting
            log.warning("a refused payload is not kept for a look", update=row["digest"], error=str(error))

    def sweep(self) -> None:
        """At the start: delete what an interruption left, blobs and parts of blobs, and keep a look at what was bad."""
        ledger, blobs = self._hub.ledger, self._hub.blobs
        moments = ledger.retention.moments()
        for digest in list(blobs.digests()):
            if not (ledger.leftover(digest) or (digest in moments and not ledger.blob_needed(digest))):
                continue
            for row in self._refusals.with_payload(digest):
                self._put_away(row)
            self._hub.discard(digest)
            log.info("swept what an interruption left", digest=digest)
        self.forget_parts()

    def make_room(self) -> None:
        """The disk is full: parts of payloads that nobody has sent for a while go. Their nodes have the whole, and
        parts that fill the disk would keep any from becoming whole."""
        blobs, ledger = self._hub.blobs, self._hub.ledger
        busy = {row["payload"] for digest in self._receiving if (row := ledger.update(digest)) is not None}
        for part in blobs.partials.glob("*.part"):
            digest = f"blob:{part.stem}"
            with contextlib.suppress(OSError):  # it has just become whole
                if digest not in busy and not blobs.has(digest) and time.time() - part.stat().st_mtime > _IDLE_S:
                    blobs.delete(digest)
                    log.warning("parts of a payload are deleted: the disk is full", digest=digest)

    def forget_parts(self) -> None:
        """Delete the parts of payloads that nobody sends any more."""
        wanted = self._refusals.arriving()
        for digest in {f"blob:{p.stem}" for p in self._hub.blobs.partials.glob("*.*") if len(p.stem) == 64}:
            if digest not in wanted and not self._hub.blobs.has(digest):
                self._hub.blobs.delete(digest)
                log.info("deleted the parts of a payload that is not sent any more", digest=digest)
