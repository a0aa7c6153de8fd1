"""The hub's ledger on a real database: what an update weighs, what is refused and by whom, and who is still a member."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zk0d.durable import canonical_json
from zk0d.errors import RefusedError
from zk0d.hub import intake
from zk0d.hub.aggregate import Merged
from zk0d.hub.custody import Custody
from zk0d.hub.ledger import Ledger
from zk0d.hub.receipts import ReceiptKey, Statement, read_statement
from zk0d.hub.rounds import Merge, Rules, shares
from zk0d.hub.store import Store
from zk0d.model.blobs import name_of

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
        self.ledger.members.join("fed", node, {}, [{"uuid": str(uuid.uuid4()), "episodes": 5, "frames": frames}])

    def task(self, node: str) -> dict[str, Any]:
        version = self.ledger.version("fed")
        assert version is not None
        return self.ledger.task("fed", node, version, TASK)

    def offer(self, node: str, **changes: Any) -> Statement:
        task = self.task(node)
        value = {"federation": "fed", "task": task["id"], "node": node, "base_version": task["version"],
                 "payload": name_of(task["id"].encode()), "size": 9, "samples": 40, "steps": 5, "loss_first": 1.0,
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


def test_a_rollback_refuses_aloud_and_blames_nobody(books: Books) -> None:
    told = []
    books.ledger.refusals.on_refused = lambda row: told.append((row["node"], row["fault"], row["reason"][:31]))
    a, b = books.give("a"), books.offer("b")
    source = books.ledger.version("fed")
    assert source is not None
    custody = Custody(books.store, books.ledger.refusals)
    custody.roll_back("fed", source, 1, "master 0", "admin:me")
    assert (books.state(a), books.state(b)) == ("refused", "refused")
    why = "the federation was rolled back "
    assert sorted(told) == [("a", 0, why), ("b", 0, why)]
    assert books.ledger.snapshot("fed").refusals == {}
    row = books.ledger.update(a.digest)
    assert row is not None and books.ledger.refusals.signed(row) == books.ledger.refusals.signed(row)
    with pytest.raises(sqlite3.IntegrityError):  # the number is taken: nothing of it happens, and nobody is told
        books.give("c")
        custody.roll_back("fed", source, 1, "master 0", "admin:me")
    assert len(told) == 2
    with books.store.write():
        pass
    assert len(told) == 2


def test_what_a_finished_federation_will_not_merge_is_refused(books: Books) -> None:
    a, b, c = books.give("a"), books.give("b"), books.offer("c")
    merge = Merge(1, shares(0, [g for g in books.ledger.snapshot("fed").buffer if g.node == "a"]))
    books.ledger.plans.begin("fed", merge)
    books.ledger.finish("fed", "admin:me")
    assert [books.state(s) for s in (a, b, c)] == ["admitted", "refused", "refused"]  # a is being merged
    books.ledger.commit_merge("fed", merge, Merged("m", "v", 1), 0.1, True, {}, 4)
    assert books.state(a) == "merged"


def test_a_merge_that_cannot_be_is_dropped_without_touching_what_was_decided(books: Books) -> None:
    a, b = books.give("a"), books.give("b")
    merge = Merge(1, shares(0, list(books.ledger.snapshot("fed").buffer)))
    books.ledger.plans.begin("fed", merge)
    books.ledger.refuse(b.digest, "first reason", fault=False)
    books.ledger.plans.drop("fed", 1, [a.digest, b.digest], "it could not be merged")
    rows = [books.ledger.update(s.digest) for s in (a, b)]
    assert [r and (r["state"], r["reason"], r["fault"]) for r in rows] == [
        ("refused", "it could not be merged", 1), ("refused", "first reason", 0)]  # fmt: skip
    assert books.ledger.snapshot("fed").refusals == {"a": (1, 1000.0)}


def test_an_offer_that_became_too_old_does_not_wait_for_ever(books: Books) -> None:
    late = books.offer("c")
    for number in (1, 2):
        books.give("a")
        merge = Merge(number, shares(number - 1, list(books.ledger.snapshot("fed").buffer)))
        books.ledger.plans.begin("fed", merge)
        books.ledger.commit_merge("fed", merge, Merged(f"m{number}", f"v{number}", 1), 0.1, False, {}, 1)
        assert books.state(late) == ("receiving" if number == 1 else "refused")
    row = books.ledger.update(late.digest)
    assert row is not None and row["reason"] == "it came too late: it starts from version 0, at least 1 is accepted"


def test_a_payload_counts_once_but_for_one_that_changes_nothing(books: Books) -> None:
    first = books.offer("a")
    assert books.ledger.payload_had(first.payload, "b") == "arriving"
    books.ledger.admit(first.digest, 1.5)
    assert books.ledger.payload_had(first.payload, "b") == books.ledger.payload_had(first.payload, "a") == "taken"
    still = books.offer("b")
    books.ledger.admit(still.digest, 0.0)
    assert books.ledger.payload_had(still.payload, "c") == "nothing"
    assert books.ledger.payload_had("blob:" + "0" * 64, "c") == ""


def test_a_node_that_left_is_waited_for_no_more_and_may_come_back(books: Books) -> None:
    told = []
    books.ledger.refusals.on_refused = lambda row: told.append((row["node"], row["fault"], row["reason"]))
    given, arriving, held = books.give("a"), books.offer("b"), books.task("c")
    assert [books.ledger.members.leave("fed", n) for n in "abca"] == [True, True, True, False]
    snapshot = books.ledger.snapshot("fed")
    assert snapshot.members == frozenset() and snapshot.tasks == {} and not snapshot.outstanding
    assert (books.state(given), books.state(arriving)) == ("admitted", "refused")
    assert told == [("b", 0, "its node has left the federation")]
    books.join("c")
    assert books.ledger.snapshot("fed").members == {"c"} and books.task("c") == held
    said = [
        (r["actor"], r["action"]) for r in books.store.all("SELECT * FROM audit WHERE action LIKE 'federation.%e%'")
    ]
    assert [s for s in said if s[1] == "federation.leave"] == [(n, "federation.leave") for n in "abc"]
    rejoined = books.store.all("SELECT actor FROM audit WHERE action = 'federation.join'")
    assert [r["actor"] for r in rejoined] == ["a", "b", "c", "c"]


def test_leaving_and_coming_back_gives_no_second_task_of_a_version(books: Books) -> None:
    first = books.task("a")
    for _ in range(3):
        assert books.ledger.members.leave("fed", "a")
        ended = books.ledger.task_row(first["id"])
        assert ended is not None and ended["answered"]
        books.join("a")
        assert books.task("a") == first
    held = books.ledger.task_row(first["id"])
    assert held is not None and not held["answered"] and books.ledger.snapshot("fed").tasks == {"a": 0}
    books.ledger.refuse(books.offer("a").digest, "bad", fault=True)  # one that was answered stays answered
    assert books.task("a")["id"] != first["id"]


def test_an_update_of_a_task_that_ended_is_not_taken(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "check_signature", lambda statement, signer: None)
    hub = SimpleNamespace(
        blobs=SimpleNamespace(has=lambda d: False), signer=lambda s: b"", check_quota=lambda n, size: None
    )
    spec = SimpleNamespace(payload_bytes=1000, exchange=())
    rules = Rules(2, 2, 1, 600.0, 0, 4)
    federation: Any = SimpleNamespace(name="fed", hub=hub, ledger=books.ledger, spec=spec, rules=rules)
    door = intake.Intake(federation, lambda: None)
    task = books.task("a")
    statement = read_statement(canonical_json(
        {"federation": "fed", "task": task["id"], "node": "a", "base_version": 0, "payload": name_of(b"p"), "size": 9,
         "samples": 40, "steps": 5, "loss_first": 1.0, "loss_last": 0.5}), bytes(64))  # fmt: skip
    books.ledger.members.leave("fed", "a")
    books.join("a")
    with pytest.raises(RefusedError, match="this task ended when its node left") as no:
        door._check_offer("a", statement)
    assert no.value.reason == "too_late"  # the node lets it go
    assert books.task("a")["id"] == task["id"]  # given again, it may be answered
    door._check_offer("a", statement)
