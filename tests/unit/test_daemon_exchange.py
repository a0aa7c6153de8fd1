"""What the hub says of an update after it has given its receipt: a signed refusal is kept, and asked for when missed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zk0d.daemon.evidence import HEAD_PREFIX
from zk0d.daemon.exchange import UPDATE_PREFIX, Exchange
from zk0d.daemon.receipt_tables import Head
from zk0d.daemon.report import health
from zk0d.daemon.store import Hub, Store, Update, Version
from zk0d.durable import canonical_json
from zk0d.errors import ProtocolError, RefusedError, UsageError
from zk0d.hub.receipts import ReceiptKey, Statement, read_statement
from zk0d.link.identity import Authority, NodeIdentity
from zk0d.link.merkle import EMPTY, leaf_hash
from zk0d.model.blobs import BlobStore, name_of


class Wire:
    """A link whose other end answers what the test says. The only part that is not real."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answer: dict[str, Any] = {}
        self.refuse: RefusedError | None = None
        self.gone: set[str] = set()
        self.meanwhile: Callable[[str], None] = lambda kind: None

    async def request(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((kind, body))
        self.meanwhile(kind)
        if body.get("federation") in self.gone:
            raise RefusedError("there is none here", reason="no_federation")
        if self.refuse is not None:
            raise self.refuse
        return self.answer

    def share(self, digest: str) -> None: ...

    def unshare(self, digest: str) -> None: ...


class Bench:
    """A node `node-1` with one update that has its first receipt."""

    def __init__(self, folder: Path) -> None:
        self.key = ReceiptKey.create(folder / "keys")
        self.store, self.wire = Store(folder / "zk0d.db"), Wire()
        identity = NodeIdentity.create(folder / "node")
        authority = Authority.create(folder / "ca")
        identity.install(authority.issue_node(identity.csr(), "node-1"), authority.pem, "node-1")
        blobs = BlobStore(folder / "blobs", reserve=0)
        self.exchange = Exchange(self.store, blobs, 2, lambda: None)
        hub = Hub("test", "127.0.0.1", 1, "node-1", self.key.public, 0.0)
        self.exchange.open(self.wire, identity, hub)  # type: ignore[arg-type]
        payload = blobs.add_bytes(b"trained")
        raw = canonical_json({"federation": "fed", "task": "t", "node": "node-1", "base_version": 0, "payload": payload,
                              "size": 7, "samples": 3, "steps": 5, "loss_first": 1.0, "loss_last": 0.5})  # fmt: skip
        self.statement: Statement = read_statement(raw, identity.sign(UPDATE_PREFIX + raw))
        s = self.statement
        self.store.join("fed")
        self.store.set_federation("fed", state="open", version=0)
        self.store.add_update(Update(s.digest, "t", "fed", raw, s.signature, payload, 7, "waiting", "", 1.0))
        self.exchange.take_receipt(*self.receipt())
        assert self.state() == "receipted" and not blobs.has(payload)

    def receipt(self, version: int | None = None) -> tuple[bytes, bytes]:
        s = self.statement
        row = {"federation": "fed", "node": "node-1", "digest": s.digest, "payload": s.payload, "base_version": 0,
               "samples": 3, "statement": s.raw, "size": 7, "norm": 1.0}  # fmt: skip
        return self.key.make(row, 2.0, version, None if version is None else 1.0)

    def refusal(self) -> tuple[bytes, bytes]:
        return self.key.refuse(self.statement, "bad_update", "the federation was rolled back to version 0", 3.0)

    def state(self) -> str:
        return self.store.updates()[0].state


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.store.close()


def test_a_refusal_after_the_receipt_is_kept_beside_it(bench: Bench) -> None:
    refusal, signature = bench.refusal()
    with pytest.raises(ProtocolError):
        bench.exchange.take_refusal(refusal, bytes(64))
    assert bench.state() == "receipted"
    bench.exchange.take_refusal(refusal, signature)
    bench.exchange.take_refusal(refusal, signature)
    assert bench.state() == "refused" and "rolled back" in bench.store.updates()[0].reason
    assert [r["refusal"] for r in bench.store.refusals()] == [refusal] and len(bench.store.entries()) == 1
    assert sum("refused the update" in e["text"] for e in bench.store.events(50)) == 1
    with pytest.raises(ProtocolError, match="no update of ours"):
        bench.exchange.take_refusal(json.dumps({"update": "sha256:0"}).encode(), signature)


def test_a_refusal_that_was_missed_is_asked_for_once_a_version(bench: Bench) -> None:
    receipt, signature = bench.receipt()
    bench.wire.answer = {"state": "admitted", "receipt": receipt, "receipt_signature": signature}
    for _ in range(3):
        asyncio.run(bench.exchange.ask_again())
    assert len(bench.wire.asked) == 1 and bench.state() == "receipted"
    bench.store.set_federation("fed", version=1)
    refusal, signature = bench.refusal()
    bench.wire.answer = {"state": "refused", "reason": "x", "refusal": refusal, "refusal_signature": signature}
    for _ in range(3):
        asyncio.run(bench.exchange.ask_again())
    assert len(bench.wire.asked) == 2 and bench.state() == "refused"


def test_no_refusal_of_what_was_merged(bench: Bench) -> None:
    bench.exchange.take_receipt(*bench.receipt(1))
    with pytest.raises(ProtocolError, match="whose merge it has signed"):
        bench.exchange.take_refusal(*bench.refusal())
    asyncio.run(bench.exchange.ask_again())
    assert bench.wire.asked == [] and bench.state() == "receipted"


def test_the_base_is_stated_to_a_hub_that_reads_it(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"trained again")
    digest = name_of(b"trained again")
    result = {"payload": str(tmp_path / "out"), "digest": digest, "samples": 1, "steps": 1, "loss_first": 1.0,
              "loss_last": 1.0}  # fmt: skip
    for ident, more in (("new", {"state_base": True}), ("old", {})):
        body = {"id": ident, "federation": "fed", "version": 1, "version_digest": digest, "local_steps": 1, **more}
        bench.store.add_task(body)
        task = bench.store.task(ident)
        assert task is not None
        update = asyncio.run(bench.exchange.keep(task, result))
        statement = read_statement(update.statement, update.signature)
        assert statement.base == (digest if more else "")


def test_versions_of_a_restored_hub(bench: Bench) -> None:
    """On the operator's word the versions that the hub has lost are forgotten, so that it can make them anew."""
    for number in range(4):
        bench.store.put_version(Version("fed", number, name_of(b"%d" % number), "", "", {}, 1.0, False))
    bench.store.put("log", {"state": "refused", "text": "", "at": 1.0})
    head = canonical_json({"at": "2026-01-01T00:00:00Z", "root": "sha256:" + EMPTY.hex(), "size": 0})
    bench.wire.answer = {"head": head, "head_signature": bench.key.sign(HEAD_PREFIX + head), "consistency": [],
                         "number": 2, "digest": name_of(b"another")}  # fmt: skip
    assert asyncio.run(bench.exchange.accept_head()) == {"kept": 0, "accepted": 0, "versions": 2}
    assert [v.number for v in bench.store.versions("fed")] == [0, 1]


def test_a_task_whose_update_the_hub_has_lost_is_trained_anew(bench: Bench, tmp_path: Path) -> None:
    """A hub restored from an older backup gives the same task again, and may well get the same bytes again."""
    store, body = bench.store, {"id": "t", "federation": "fed", "version": 0, "version_digest": "v", "local_steps": 1}
    store.add_task(body)
    store.set_task("t", state="trained")
    task = store.task("t")
    assert task is not None
    bench.wire.answer = {"state": "receiving"}
    assert not asyncio.run(bench.exchange.lost_by_hub(task))  # an answer that crossed ours on the way
    bench.wire.refuse = RefusedError("another", reason="busy")
    assert not asyncio.run(bench.exchange.lost_by_hub(task))
    bench.wire.refuse = RefusedError("offer it", reason="not_found")
    assert asyncio.run(bench.exchange.lost_by_hub(task)) and asyncio.run(bench.exchange.lost_by_hub(task))
    assert [u.state for u in store.updates()] == ["receipted"] and len(store.entries()) == 1
    store.add_task(body)
    for payload in (b"trained", b"trained otherwise"):
        again = store.updates()[0]
        if payload != b"trained":
            store.forget_task_of(again.digest)
            again = replace(again, digest="sha256:other")
        for _ in range(2):  # once more after a kill
            store.add_update(replace(again, task="t", state="waiting"))
        found = store.task("t")
        assert found is not None and found.state == "trained"
        assert [u.digest for u in store.updates("waiting") if u.task == "t"] == [again.digest]
        store.set_update(again.digest, state="receipted")


def test_what_the_hub_refused_is_not_trained_anew(bench: Bench) -> None:
    """Refused at the offer it is no row at the hub, which gives its task again: the same bytes would be refused again."""
    bench.store.add_task({"id": "t", "federation": "fed", "version": 0})
    bench.store.set_task("t", state="trained")
    bench.store.set_update(bench.statement.digest, state="refused", reason="loss_last of 1e31")
    bench.wire.refuse = RefusedError("offer it", reason="not_found")
    task = bench.store.task("t")
    assert task is not None
    assert not asyncio.run(bench.exchange.lost_by_hub(task)) and bench.store.updates()[0].task == "t"
    assert bench.exchange.answer(task) == "the hub refused the update to version 0: loss_last of 1e31"


def test_a_hub_that_loses_what_it_has_confirmed_again_and_again(bench: Bench) -> None:
    """Once is a restored hub. From the second time on the operator is told."""
    store, body = bench.store, {"id": "t", "federation": "fed", "version": 0}
    for times in range(1, 4):
        store.add_task(body)
        store.add_update(replace(store.updates()[0], task="t", state="receipted"))
        task = store.task("t")
        assert task is not None
        bench.wire.refuse = RefusedError("offer it", reason="not_found")
        assert asyncio.run(bench.exchange.lost_by_hub(task))
        assert store.updates()[0].task is None
        told = [p["message"] for p in health(store, None) if p["code"] == "update"]
        assert bool(told) == (times > 1) == ("times by now" in store.events(1)[0]["text"])
    assert told == ["the hub has confirmed and then lost the update to version 0 of fed 3 times: it is trained anew each"
                    " time"]  # fmt: skip
    store.add_task({"id": "t1", "federation": "fed", "version": 1})
    assert health(store, None) == []


def test_a_receipt_is_proved_though_the_log_had_lost_its_update_before(bench: Bench) -> None:
    settled = bench.exchange._evidence._settled
    settled[bench.statement.digest] = -1  # the log said that it has nothing of it
    bench.exchange.take_receipt(*bench.receipt(1))
    assert bench.statement.digest not in settled


def test_the_task_of_a_lost_version_is_dropped(bench: Bench) -> None:
    for number in range(4):
        bench.store.put_version(Version("fed", number, name_of(b"%d" % number), "", "", {}, 1.0, False))
    bench.store.add_task({"id": "t3", "federation": "fed", "version": 3})
    bench.store.put("log", {"state": "refused", "text": "", "at": 1.0})
    head = canonical_json({"at": "2026-01-01T00:00:00Z", "root": "sha256:" + EMPTY.hex(), "size": 0})
    bench.wire.answer = {"head": head, "head_signature": bench.key.sign(HEAD_PREFIX + head), "consistency": [],
                         "number": 1, "digest": name_of(b"1")}  # fmt: skip
    assert asyncio.run(bench.exchange.accept_head())["versions"] == 2
    assert bench.store.task_at_hand() is None  # its trainer would look for what is deleted


def test_a_federation_that_a_restored_hub_has_not_got_keeps_no_other(bench: Bench) -> None:
    """The operator's word is the only way out, for each federation: also beside one that was made after the backup."""
    bench.wire.gone = {"before"}
    for name in ("before", "fed"):
        bench.store.join(name)
        bench.store.set_federation(name, state="open", version=3)
        for number in range(4):
            bench.store.put_version(Version(name, number, name_of(b"%d" % number), "", "", {}, 1.0, False))
    bench.store.put_version(Version("left", 0, name_of(b"left"), "", "", {}, 1.0, False))  # of another hub, perhaps
    bench.store.put("log", {"state": "refused", "text": "", "at": 1.0})
    head = canonical_json({"at": "2026-01-01T00:00:00Z", "root": "sha256:" + EMPTY.hex(), "size": 0})
    bench.wire.answer = {"head": head, "head_signature": bench.key.sign(HEAD_PREFIX + head), "consistency": [],
                         "number": 2, "digest": name_of(b"2")}  # fmt: skip
    assert asyncio.run(bench.exchange.accept_head())["versions"] == 5
    kept = [(v.federation, v.number) for v in bench.store.versions()]
    assert kept == [("fed", 0), ("fed", 1), ("fed", 2), ("left", 0)]


def test_versions_that_a_restored_hub_has_made_anew_before_the_operator_acts(bench: Bench) -> None:
    """Their numbers tell nothing any more: what was seen after the last log that both have is not the federation's."""
    roots = [leaf_hash(b"first"), leaf_hash(b"second")]
    heads = [canonical_json({"at": "2026-01-01T00:00:00Z", "root": "sha256:" + root.hex(), "size": size})
             for size, root in enumerate(roots, 1)]  # fmt: skip
    for size, head in enumerate(heads, 1):
        bench.store.add_head(Head(size, head, bench.key.sign(HEAD_PREFIX + head), (), 2.0 * size))
    for number, at in enumerate((1.0, 1.0, 3.0, 5.0, 5.0)):
        bench.store.put_version(Version("fed", number, name_of(b"%d" % number), "", "", {}, at, False))
    bench.store.put("log", {"state": "refused", "text": "", "at": 1.0})
    bench.wire.answer = {"head": heads[0], "head_signature": bench.key.sign(HEAD_PREFIX + heads[0]), "consistency": [],
                         "number": 4, "digest": name_of(b"4")}  # fmt: skip
    assert asyncio.run(bench.exchange.accept_head()) == {"kept": 2, "accepted": 1, "versions": 2}
    assert [v.number for v in bench.store.versions("fed")] == [0, 1, 4]


def test_a_version_that_is_published_while_the_operator_accepts_stays(bench: Bench) -> None:
    for number in range(2):
        bench.store.put_version(Version("fed", number, name_of(b"%d" % number), "", "", {}, 1.0, False))
    bench.store.put("log", {"state": "refused", "text": "", "at": 1.0})
    head = canonical_json({"at": "2026-01-01T00:00:00Z", "root": "sha256:" + EMPTY.hex(), "size": 0})
    bench.wire.answer = {"head": head, "head_signature": bench.key.sign(HEAD_PREFIX + head), "consistency": [],
                         "number": 0, "digest": name_of(b"0")}  # fmt: skip

    def publish(kind: str) -> None:
        if any(k == "version.latest" for k, _ in bench.wire.asked) and kind == "log.head":
            bench.store.put_version(Version("fed", 2, name_of(b"2"), "", "", {}, 9e9, False))

    bench.wire.meanwhile = publish
    assert asyncio.run(bench.exchange.accept_head())["versions"] == 1
    assert [v.number for v in bench.store.versions("fed")] == [0, 2]


def test_a_long_history_is_asked_for_a_few_at_a_time(bench: Bench) -> None:
    """After `accept-head` no receipt is believed to be in the log: all of them at once would hold up everything else."""
    first = bench.store.updates()[0]
    for number in range(40):
        one = replace(first, digest=f"sha256:{number}", task=f"t{number}", state="receipted", created_at=2.0 + number)
        bench.store.add_update(one)
    bench.wire.refuse = RefusedError("offer it", reason="not_found")
    turns = []
    for _ in range(4):
        before = len(bench.wire.asked)
        asyncio.run(bench.exchange.ask_again())
        turns.append([body["update"] for _, body in bench.wire.asked[before:]])
    assert [len(t) for t in turns] == [16, 16, 9, 0] and turns[0][0] == "sha256:39"
    bench.store.set_federation("fed", version=1)  # nothing that the hub does not know is asked for again
    asyncio.run(bench.exchange.ask_again())
    assert len(bench.wire.asked) == 41
    bench.wire.refuse = None
    bench.wire.answer = {"state": "admitted"}
    bench.exchange.take_receipt(*bench.receipt())  # given once more
    asyncio.run(bench.exchange.ask_again())
    assert [body["update"] for _, body in bench.wire.asked[41:]] == [first.digest]


def test_versions_that_a_restored_hub_lost_after_this_node_looked_at_its_log(bench: Bench) -> None:
    """Of the log this node knows nothing that the hub had lost: the operator's word is good for the versions alone."""
    bench.store._do("DELETE FROM log_entries")
    for number in range(4):
        bench.store.put_version(Version("fed", number, name_of(b"%d" % number), "", "", {}, 1.0, False))
    head = canonical_json({"at": "2026-01-01T00:00:00Z", "root": "sha256:" + EMPTY.hex(), "size": 0})
    bench.wire.answer = {"head": head, "head_signature": bench.key.sign(HEAD_PREFIX + head), "consistency": [],
                         "entries": [], "number": 2, "digest": name_of(b"2")}  # fmt: skip
    assert asyncio.run(bench.exchange.accept_head()) == {"versions": 1}
    assert [v.number for v in bench.store.versions("fed")] == [0, 1, 2]
    with pytest.raises(UsageError, match="nothing to accept"):
        asyncio.run(bench.exchange.accept_head())


def test_the_hubs_log_is_looked_at_on_every_new_link(bench: Bench) -> None:
    head = canonical_json({"at": "2026-01-01T00:00:00Z", "root": "sha256:" + EMPTY.hex(), "size": 0})
    bench.wire.answer = {"head": head, "head_signature": bench.key.sign(HEAD_PREFIX + head), "consistency": [],
                         "entries": []}  # fmt: skip

    def looks() -> int:
        asyncio.run(bench.exchange.prove())
        return sum(kind == "log.head" for kind, _ in bench.wire.asked)

    bench.store._do("DELETE FROM log_entries")  # nothing of ours is new
    assert looks() == 1 and looks() == 1
    bench.exchange.look_again()
    assert looks() == 2 and looks() == 2
