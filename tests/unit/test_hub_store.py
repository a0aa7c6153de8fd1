"""The hub's memory: schema, append-only records, transactions; and who gets in."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from zk0d.errors import RefusedError, UnknownStateError, UsageError
from zk0d.hub.registry import Registry
from zk0d.hub.schema import MIGRATIONS
from zk0d.hub.setup import initialise
from zk0d.hub.store import Store
from zk0d.link.identity import Authority, NodeIdentity, fingerprint


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_settings_of_the_database(tmp_path: Path) -> None:
    store = Store(tmp_path / "hub.db")
    assert [store.one(f"PRAGMA {p}")[0] for p in ("journal_mode", "synchronous", "foreign_keys", "user_version")] == [  # type: ignore[index]
        "wal", 2, 1, len(MIGRATIONS)]  # fmt: skip
    store.close()
    Store(tmp_path / "hub.db").close()


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    Store(tmp_path / "hub.db").close()
    with sqlite3.connect(tmp_path / "hub.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(UnknownStateError, match="schema 99, this zk0-hub knows up to"):
        Store(tmp_path / "hub.db")
    (tmp_path / "garbage.db").write_bytes(b"not a database" * 100)
    with pytest.raises(UnknownStateError, match="cannot be used"):
        Store(tmp_path / "garbage.db")


def test_migration_goes_forward_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(tmp_path / "hub.db").close()
    monkeypatch.setattr("zk0d.hub.store.MIGRATIONS", (*MIGRATIONS, "CREATE TABLE more (x); CREATE TABLE nodes (y);"))
    with pytest.raises(UnknownStateError, match="already exists"):
        Store(tmp_path / "hub.db")
    monkeypatch.setattr("zk0d.hub.store.MIGRATIONS", (*MIGRATIONS, "CREATE TABLE more (x);"))
    store = Store(tmp_path / "hub.db")  # nothing of the broken one was left
    assert store.one("PRAGMA user_version")[0] == len(MIGRATIONS) + 1  # type: ignore[index]
    store.close()


def test_transactions_and_the_audit(tmp_path: Path) -> None:
    store = Store(tmp_path / "hub.db")
    with pytest.raises(RuntimeError), store.write() as db:
        store.audit(db, "hub", "x", "y")
        raise RuntimeError
    assert store.all("SELECT * FROM audit") == []
    with store.write() as db:
        store.audit(db, "hub", "x", "y", detail="z")
    for statement in ("DELETE FROM audit", "UPDATE audit SET actor = 'me'"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"), store.write() as db:
            db.execute(statement)
    assert len(store.all("SELECT * FROM audit")) == 1
    store.close()


def test_a_transaction_that_sqlite_ended_tells_the_true_reason(tmp_path: Path) -> None:
    store = Store(tmp_path / "hub.db")
    with pytest.raises(RuntimeError, match="disk"), store.write() as db:
        db.execute("ROLLBACK")  # as SQLite does by itself when the disk is full
        raise RuntimeError("disk")
    with store.write() as db:
        store.audit(db, "hub", "x", "y")
    store.close()


@pytest.fixture
def registry(tmp_path: Path):  # type: ignore[no-untyped-def]
    clock = Clock()
    store = Store(tmp_path / "hub.db", clock)
    made = Registry(store, Authority.create(tmp_path / "ca"))
    made.clock = clock  # type: ignore[attr-defined]
    yield made
    store.close()


def node(tmp_path: Path, name: str = "n") -> NodeIdentity:
    return NodeIdentity.create(tmp_path / name)


def test_an_invitation_is_good_once_and_for_a_time(tmp_path: Path, registry: Registry) -> None:
    secret = registry.invite("alice", 1, "admin:me")
    first = node(tmp_path)
    reply = registry.enroll({"csr": first.csr(), "secret": secret, "address": "1.2.3.4:5"})
    assert reply["state"] == "approved" and reply["node_id"].startswith("node-") and len(reply["node_id"]) == 17
    first.install(reply["certificate"], reply["ca"], reply["node_id"])
    assert registry.allowed(reply["node_id"], fingerprint(reply["certificate"]))
    assert not registry.allowed(reply["node_id"], "sha256:other") and not registry.allowed("node-x", "")
    # The reply was lost: the same key asks again and gets the same.
    assert registry.enroll({"csr": first.csr(), "secret": secret}) == reply
    with pytest.raises(RefusedError, match="has been used"):
        registry.enroll({"csr": node(tmp_path, "m").csr(), "secret": secret})
    late = registry.invite("bob", 1, "admin:me")
    registry.clock.now += 3600.0  # type: ignore[attr-defined]
    with pytest.raises(RefusedError, match="expired"):
        registry.enroll({"csr": node(tmp_path, "o").csr(), "secret": late})
    with pytest.raises(RefusedError, match="not known"):
        registry.enroll({"csr": node(tmp_path, "p").csr(), "secret": "guess"})
    assert [r["label"] for r in registry.nodes()] == ["alice"]
    with pytest.raises(UsageError, match="cannot last"):
        registry.invite("x", -1, "admin:me")
    with sqlite3.connect(tmp_path / "hub.db") as db:
        assert secret not in "\n".join(db.iterdump())
    db.close()


def test_approval_refusal_revocation(tmp_path: Path, registry: Registry) -> None:
    request = {"csr": node(tmp_path).csr(), "label": "Carol\n\x1b[31m"}
    reply = registry.enroll(request)
    assert reply["state"] == "pending" and registry.enroll(request) == reply
    ident = reply["node_id"]
    assert registry.node(ident)["label"] == "Carol[31m"
    registry.refuse(ident, "who are you", "admin:me")
    with pytest.raises(RefusedError, match="refused: who are you"):
        registry.enroll(request)
    registry.approve(ident, "admin:me")
    approved = registry.enroll(request)
    assert approved["node_id"] == ident and registry.allowed(ident, fingerprint(approved["certificate"]))
    for bad in (registry.approve, lambda n, a: registry.refuse(n, "", a)):
        with pytest.raises(UsageError, match="is approved"):
            bad(ident, "admin:me")
    registry.revoke(ident, "lost", "admin:me")
    assert not registry.allowed(ident, fingerprint(approved["certificate"]))
    with pytest.raises(RefusedError, match="revoked: lost"):
        registry.enroll(request)
    with pytest.raises(UsageError, match="is not known"):
        registry.revoke("node-0", "", "admin:me")


@pytest.mark.parametrize("csr", [None, b"", b"x" * 100, b"x" * 10_000, "text"])
def test_requests_that_are_none(registry: Registry, csr: object) -> None:
    with pytest.raises(RefusedError):
        registry.enroll({"csr": csr})


def test_approval_survives_a_restart(tmp_path: Path, registry: Registry) -> None:
    reply = registry.enroll({"csr": node(tmp_path).csr(), "secret": registry.invite("", 1, "x")})
    again = Store(tmp_path / "hub.db")
    other = Registry(again, Authority.load(tmp_path / "ca"))
    assert other.allowed(reply["node_id"], fingerprint(reply["certificate"]))
    again.close()


def test_init_makes_a_hub_once(tmp_path: Path) -> None:
    from zk0d.errors import ConfigError

    print(initialise(tmp_path / "h", "127.0.0.1:0", 'a "hub"'))
    assert (tmp_path / "h").stat().st_mode & 0o777 == 0o700
    for name in ("ca/ca.key", "keys/server.key", "keys/receipt.key"):
        assert (tmp_path / "h" / name).stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="already"):
        initialise(tmp_path / "h", "127.0.0.1:0", "b")
    with pytest.raises(UsageError, match="no address"):
        initialise(tmp_path / "i", "nowhere", "b")
    # Cut off before hub.toml: the authority that was made is kept.
    before = (tmp_path / "h" / "ca" / "ca.pem").read_bytes()
    (tmp_path / "h" / "hub.toml").unlink()
    initialise(tmp_path / "h", "127.0.0.1:0", "b")
    assert (tmp_path / "h" / "ca" / "ca.pem").read_bytes() == before


def test_no_question_asked_at_every_merge_reads_a_whole_history(tmp_path: Path) -> None:
    """After years there are a hundred thousand updates: what is looked up in them is found by an index."""
    store = Store(tmp_path / "hub.db")
    for table, where in (
        ("updates", "federation = 'f' AND new_version = 7"),
        ("updates", "payload = 'sha256:1'"),
        ("versions", "digest = 'sha256:1'"),
        ("versions", "master = 'sha256:1'"),
        ("tasks", "federation = 'f' AND answered = 0"),
        ("downloads", "federation = 'f' AND at > 1 AND at <= 2"),
    ):
        plan = [str(row[3]) for row in store.all(f"EXPLAIN QUERY PLAN SELECT * FROM {table} WHERE {where}")]
        assert all(step.startswith("SEARCH") for step in plan), (table, where, plan)
    store.close()
