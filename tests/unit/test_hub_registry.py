"""Bounds on what strangers leave at a hub, renewals and keys that were replaced, quotas: the rules, without a network."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from zk0d.errors import RefusedError, UsageError
from zk0d.hub.invitations import ident_of
from zk0d.hub.quotas import Quotas
from zk0d.hub.registry import Bounds, Registry
from zk0d.hub.schema import MIGRATIONS
from zk0d.hub.store import Store
from zk0d.link.identity import Authority, NodeIdentity, fingerprint
from zk0d.link.lifetime import Lifetime


class Clock:
    def __init__(self) -> None:
        import time

        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class Case:
    def __init__(self, folder: Path) -> None:
        self.folder, self.clock, self.made = folder, Clock(), 0
        self.store = Store(folder / "hub.db", self.clock)
        bounds = Bounds(node_days=100, max_pending=6, max_pending_per_address=3, pending_days=2)
        self.registry = Registry(self.store, Authority.create(folder / "ca"), bounds)

    def identity(self) -> NodeIdentity:
        self.made += 1
        return NodeIdentity.create(self.folder / f"n{self.made}")

    def apply(self, address: str) -> str:
        reply = self.registry.enroll({"csr": self.identity().csr(), "address": address})
        return str(reply["node_id"])

    def enrolled(self) -> NodeIdentity:
        node = self.identity()
        reply = self.registry.enroll({"csr": node.csr(), "secret": self.registry.invite("", 1, "x")})
        node.install(reply["certificate"], reply["ca"], reply["node_id"])
        return node


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    made = Case(tmp_path)
    yield made
    made.store.close()


def test_open_applications_are_bounded_and_expire(case: Case) -> None:
    for i in range(3):
        case.apply(f"192.0.2.1:{i}")
    for address in ("192.0.2.1:99", "::ffff:192.0.2.1:7"):
        with pytest.raises(RefusedError, match="3 requests from your network wait") as refused:
            case.apply(address)
        assert refused.value.reason == "busy"
    case.apply("2001:db8::1:5")
    case.apply("2001:db8::2:5")
    case.apply("2001:db8::3:5")
    with pytest.raises(RefusedError, match="too many requests"):
        case.apply("198.51.100.1:1")
    node = case.identity()  # an invitation is not held up by them
    assert case.registry.enroll({"csr": node.csr(), "secret": case.registry.invite("a", 1, "x")})["state"] == "approved"
    case.clock.now += 2.1 * 86400
    case.apply("192.0.2.1:1")
    assert len(case.registry.nodes("pending")) == 1
    gone = case.store.all("SELECT * FROM audit WHERE action = 'application.expired'")
    assert len(gone) == 6
    assert [r["state"] for r in case.registry.nodes()].count("approved") == 1


def test_renewal(case: Case) -> None:
    node = case.enrolled()
    ident, first = node.node_id, node.certificate
    renew = case.registry.renew
    assert renew(ident, node.csr()) == first, "asked too early: nothing new"
    with pytest.raises(RefusedError, match="more than half of its life"):
        renew(ident, node.csr(new_key=True))
    case.clock.now = Lifetime.of(first).due_at + 1
    second = renew(ident, node.csr())
    assert second != first  # its dates are the real clock's: for the case's it is due again
    third = renew(ident, node.csr(new_key=True))
    for good in (first, second, third):
        assert case.registry.allowed(ident, fingerprint(good)), "an old one is good until it expires"
    data = b"what was signed before the switch"
    assert case.registry.certificates.signer(ident, data, node.sign(data)) in (first, second)
    other = case.enrolled()
    with pytest.raises(RefusedError, match="another's"):
        renew(other.node_id, node.csr())
    with pytest.raises(RefusedError, match="cannot be read"):
        renew(ident, b"junk")
    case.registry.revoke(ident, "sold", "admin:me")
    assert not any(case.registry.allowed(ident, fingerprint(c)) for c in (first, second, third))
    with pytest.raises(RefusedError, match="not approved"):
        renew(ident, node.csr())
    assert case.registry.certificates.signer(ident, data, node.sign(data)) == third, "no revoked key is believed"


def test_only_nodes_that_were_let_in_have_successors(case: Case) -> None:
    pending = case.apply("192.0.2.1:1")
    applicant = case.apply("192.0.2.2:1")
    for call in (
        lambda: case.registry.invite("", 1, "admin:me", replaces=pending),
        lambda: case.registry.approve(applicant, "admin:me", instead_of=pending),
    ):
        with pytest.raises(UsageError, match="is pending"):
            call()
    node, told = case.enrolled(), []
    case.registry.on_replaced = told.append
    case.registry.revoke(node.node_id, "stolen", "admin:me")
    row = case.registry.approve(applicant, "admin:me", instead_of=node.node_id)
    assert (row["node"], row["state"], told) == (node.node_id, "approved", [node.node_id])
    assert {r["node"] for r in case.registry.nodes()} == {pending, node.node_id}
    assert not case.registry.allowed(node.node_id, fingerprint(node.certificate))


def test_a_cancelled_invitation_lets_nobody_in(case: Case) -> None:
    registry, invitations = case.registry, case.registry.invitations
    leaked, used, late = (registry.invite(label, 1, "admin:me") for label in ("leaked", "used", "late"))
    here = case.identity()
    assert registry.enroll({"csr": here.csr(), "secret": used})["state"] == "approved"
    states = {r["label"]: invitations.state(r) for r in invitations.all()}
    assert states == {"leaked": "open", "used": "used", "late": "open"}
    ident = ident_of(leaked)
    invitations.cancel(ident, "admin:me")
    stranger = case.identity()
    with pytest.raises(RefusedError, match="the invitation was cancelled"):
        registry.enroll({"csr": stranger.csr(), "secret": leaked})
    assert len(registry.nodes()) == 1
    last = case.store.all("SELECT * FROM audit ORDER BY id")[-1]
    assert (last["actor"], last["action"], last["subject"]) == ("admin:me", "invitation.cancel", ident)
    with pytest.raises(UsageError, match="is cancelled already"):
        invitations.cancel(ident, "admin:me")
    with pytest.raises(UsageError, match=rf"let {registry.nodes()[0]['node']} in already") as caught:
        invitations.cancel(ident_of(used), "admin:me")
    assert f"nodes revoke {registry.nodes()[0]['node']}" in caught.value.hint
    case.clock.now += 2 * 3600
    with pytest.raises(UsageError, match="is expired already"):
        invitations.cancel(ident_of(late), "admin:me")
    for nothing in ("", "nobody", "late", leaked):  # an expired one has only its id
        with pytest.raises(UsageError, match="is none of the open invitations"):
            invitations.cancel(nothing, "admin:me")
    assert leaked not in str([tuple(r) for r in case.store.all("SELECT * FROM audit")])


def test_labels_are_cleaned_wherever_they_are_kept(case: Case) -> None:
    case.registry.invite("Åsa\x1b[31m\nbob" + "x" * 100, 1, "admin:me")
    kept = case.registry.invitations.all()[0]["label"]
    assert kept == ("Åsa[31mbob" + "x" * 100)[:80] == case.store.all("SELECT * FROM audit")[-1]["subject"]


def test_quotas(case: Case) -> None:
    def gave(at: float, size: int) -> None:
        with case.store.write() as db:
            db.execute("PRAGMA defer_foreign_keys = ON")
            db.execute(
                "INSERT INTO updates (digest, federation, task, node, base_version, payload, size, samples, statement,"
                " signature, state, offered_at) VALUES (?, 'f', ?, 'n', 0, 'p', ?, 1, x'', x'', 'merged', ?)",
                (f"d{at}", f"t{at}", size, at),
            )

    case.store._db.execute("PRAGMA foreign_keys = OFF")
    now = case.clock.now
    Quotas(case.store, 0, 0).check("n", 1 << 60)
    for hours, size in ((30, 900), (20, 300), (10, 300)):
        gave(now - hours * 3600, size)
    Quotas(case.store, 3, 1000).check("n", 400)  # the one of yesterday does not count
    with pytest.raises(RefusedError, match="quota of 2 updates a day until") as refused:
        Quotas(case.store, 2, 0).check("n", 1)
    assert refused.value.reason == "quota"
    with pytest.raises(RefusedError, match="quota of 1000 bytes a day until") as refused:
        Quotas(case.store, 0, 1000).check("n", 401)
    until = refused.value.message
    with pytest.raises(RefusedError) as refused:
        Quotas(case.store, 0, 1000).check("n", 701)
    assert refused.value.message > until, "two must have aged for this one"
    with pytest.raises(RefusedError, match="above this hub's quota"):
        Quotas(case.store, 0, 1000).check("n", 1001)
    Quotas(case.store, 1, 1).check("another", 1)


def test_certificates_of_an_older_hub_are_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority.create(tmp_path / "ca")
    monkeypatch.setattr("zk0d.hub.store.MIGRATIONS", MIGRATIONS[:3])
    Store(tmp_path / "hub.db").close()
    node = NodeIdentity.create(tmp_path / "n")
    made = authority.issue_node(node.csr(), "node-1")
    with sqlite3.connect(tmp_path / "hub.db") as db:
        for name, state in (("node-1", "approved"), ("node-2", "revoked")):
            db.execute(
                "INSERT INTO nodes VALUES (?, '', ?, ?, ?, ?, ?, '', 1.0, 2.0, '', NULL)",
                (name, state, f"key {name}", node.csr(), made, f"{fingerprint(made)}{name[5:-1]}{name[-1]}"),
            )
    db.close()
    monkeypatch.undo()
    store = Store(tmp_path / "hub.db")
    registry = Registry(store, authority)
    assert registry.allowed("node-1", f"{fingerprint(made)}1") and not registry.approved("node-2")
    store.close()
