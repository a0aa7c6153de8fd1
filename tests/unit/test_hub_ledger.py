"""The hub's ledger on a real database: what an update weighs, what is refused and by whom, and who is still a member."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zk0d.durable import canonical_json
from zk0d.hub.aggregate import Merged
from zk0d.hub.ledger import Ledger
from zk0d.hub.receipts import ReceiptKey, Statement, read_statement
from zk0d.hub.store import Store
from zk0d.model.blobs import digest_of

TASK = {"local_steps": 5, "batch_size": 8}


class Books:
    """A ledger with one open federation `fed` and the nodes a, b, c, each with a dataset of 100 frames."""

    def __init__(self, folder: Path) -> None:
        self.clock = 1000.0
        self.store = Store(folder / "hub.db", lambda: self.clock)
        self.ledger = Ledger(self.store, ReceiptKey.create(folder / "keys"))
        with self.store.write() as db:
            for node in "abc":
                db.execute(
                    "INSERT INTO nodes (node, label, state, key, csr, address, requested_at)"
                    " VALUES (?, ?, 'approved', ?, x'', '', 0)", (node, node, f"key {node}")
                )  # fmt: skip
        self.ledger.create("fed", "", "draft", "base", "exchange", "admin:me")
        for node in "abc":
            self.join(node)
        self.ledger.open("fed", "spec", "version 0", Merged("master 0", "version 0", 9))

    def join(self, node: str, frames: int = 100) -> None:
        self.ledger.join("fed", node, {}, [{"uuid": str(uuid.uuid4()), "episodes": 5, "frames": frames}])

    def task(self, node: str) -> dict[str, Any]:
        version = self.ledger.version("fed")
        assert version is not None
        return self.ledger.task("fed", node, version, TASK)

    def offer(self, node: str, **changes: Any) -> Statement:
        task = self.task(node)
        value = {"federation": "fed", "task": task["id"], "node": node, "base_version": task["version"],
                 "payload": digest_of(task["id"].encode()), "size": 9, "samples": 40, "steps": 5, "loss_first": 1.0,
                 "loss_last": 0.5, **changes}  # fmt: skip
        statement = read_statement(canonical_json(value), bytes(64))
        self.ledger.offer(statement)
        return statement

    def give(self, node: str, **changes: Any) -> Statement:
        statement = self.offer(node, **changes)
        self.ledger.admit(statement.digest, 1.0)
        return statement

    def state(self, statement: Statement) -> str:
        row = self.ledger.update(statement.digest)
        assert row is not None
        return str(row["state"])


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    made = Books(tmp_path)
    yield made
    made.store.close()


def test_an_update_weighs_no_more_than_its_node_had_frames(books: Books) -> None:
    books.join("b", frames=7)
    books.give("a")
    b = books.give("b")
    books.join("b", frames=100_000)  # too late: it had 7 when it got the task
    counted = {g.node: g.samples for g in books.ledger.snapshot("fed").buffer}
    assert counted == {"a": 40, "b": 7}
    receipt = books.ledger.receipt(b.digest)
    assert receipt is not None and json.loads(receipt[0])["claimed"] == {"samples": 40, "steps": 5}
