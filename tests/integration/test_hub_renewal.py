"""Certificates over real TLS: renewed by themselves; a lost key's successor; revoked in mid-transfer; signed refusals."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_process import STOP_S
from hub_cast import HubProcess, TestNode, make_parts, until

from zk0d.daemon.evidence import check_refusal
from zk0d.daemon.renewal import Renewal
from zk0d.daemon.store import Hub, Store
from zk0d.durable import digest_of
from zk0d.errors import LinkLostError, RefusedError
from zk0d.hub import tables
from zk0d.hub.main import main
from zk0d.hub.store import Store as HubStore
from zk0d.invitation import Invitation
from zk0d.link.enroll import enroll
from zk0d.link.identity import Authority, NodeIdentity, fingerprint
from zk0d.link.lifetime import Lifetime
from zk0d.link.state import LinkLimits

SHORT = 10.0 / 86400
"""Days: due after six seconds, so that a machine may halt for three before it has expired."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    made = HubProcess(tmp_path / "hub")
    try:
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.kill()


def test_certificates_are_renewed_by_themselves(hub: HubProcess, tmp_path: Path) -> None:
    settings = hub.folder / "hub.toml"
    settings.write_text(f"{settings.read_text()}[certificates]\nnode_days = {SHORT}\nserver_days = {SHORT}\n")
    authority = Authority.load(hub.folder / "ca")
    authority.issue_server(hub.folder / "keys", days=SHORT)
    first_server = (hub.folder / "keys" / "server.pem").read_bytes()
    hub.start()
    store = Store(tmp_path / "zk0d.db")

    async def live(node: TestNode, new_key: bool) -> None:
        await node.enrol(hub)
        first, key = node.identity.certificate, node.identity.fingerprint
        shutil.copytree(node.folder / "keys", node.folder / "old-keys")
        await node.connect()
        assert node.link is not None
        where = Hub("test", node.invitation.host, node.invitation.port, node.identity.node_id, b"", 1.0)
        renewal = asyncio.create_task(Renewal(store, node.link, node.identity, where, new_key=new_key).run())
        try:
            await until(lambda: node.identity.certificate != first, "the first renewal")
            assert (node.identity.fingerprint == key) is not new_key
            await node.link.wait_connected(30)
            if time.time() < Lifetime.of(first).end - 0.5:  # the old one is good until it expires
                old = TestNode(tmp_path, f"{node.name}-old")
                old.identity, old.invitation = NodeIdentity.load(node.folder / "old-keys"), node.invitation
                await old.connect()
                await old.close()
            await until(lambda: time.time() > max(Lifetime.of(first).end, Lifetime.of(first_server).end), "expired")
            # All of these are new handshakes, with both first certificates expired.
            await node.close()
            await node.connect()
            reply = await node.request("hello", {"software": "test", "federations": []})
            assert reply["node_id"] == where.node_id
        finally:
            renewal.cancel()
            await asyncio.gather(renewal, return_exceptions=True)
            await node.close()

    async def play() -> None:
        await asyncio.gather(live(TestNode(tmp_path, "a"), False), live(TestNode(tmp_path, "b"), True))

    asyncio.run(play())
    assert (hub.folder / "keys" / "server.pem").read_bytes() != first_server
    assert Authority.load(hub.folder / "ca").fingerprint == authority.fingerprint
    assert any("renewed this node's certificate, for a new key" in e["text"] for e in store.events())
    store.close()
    assert hub.stop() < STOP_S


def test_one_that_expired_meanwhile_is_had_by_the_known_key(hub: HubProcess, tmp_path: Path) -> None:
    hub.start()
    store = Store(tmp_path / "zk0d.db")

    async def play() -> None:
        node = TestNode(tmp_path, "a", LinkLimits(refused_min_s=0.1, refused_max_s=0.2))
        await node.enrol(hub)
        ident = node.identity.node_id
        expired = Authority.load(hub.folder / "ca").issue_node(node.identity.csr(), ident, days=-1)
        node.identity.certificate_path.write_bytes(expired)
        with pytest.raises(LinkLostError, match="expired"):
            node.limits = LinkLimits(refused_min_s=60.0)
            connecting = asyncio.create_task(node.connect())
            await until(lambda: node.link is not None and node.link.state.phase == "refused", "refused")
            connecting.cancel()
            assert node.link is not None and node.link.state.code == "expired"
            await node.link.wait_connected(0.1)
        where = Hub("test", node.invitation.host, node.invitation.port, ident, b"", 1.0)
        renewal = asyncio.create_task(Renewal(store, node.link, node.identity, where).run())
        await node.link.wait_connected(30)
        renewal.cancel()
        await asyncio.gather(renewal, return_exceptions=True)
        await node.close()

    asyncio.run(play())
    store.close()


def test_a_lost_key_has_a_successor_by_the_maintainers_word_only(hub: HubProcess, tmp_path: Path) -> None:
    spec = make_parts(tmp_path / "parts")
    hub.start()
    hub.create("fed", tmp_path / "parts", nodes=1)

    async def play() -> None:
        old, new, third = (TestNode(tmp_path, n) for n in ("a", "b-a", "c-a"))
        await old.enrol(hub)
        await old.connect()
        await old.join("fed")
        task = await old.task("fed", 0)
        offer = old.prepare(spec, task, old.delta(spec, task))
        # The key is lost; the work is not. Whoever asks without the maintainer's word is a stranger.
        ident, where, ca = old.identity.node_id, (old.invitation.host, old.invitation.port), old.invitation.ca
        request = {"csr": new.identity.csr()}
        stranger = await enroll(*where, request, ca)
        assert stranger["state"] == "pending"
        pending = await asyncio.to_thread(hub.ask, "nodes", state="pending")
        words = ["--dir", str(hub.folder), "nodes", "approve", pending[0]["node"], "--as", ident]
        assert await asyncio.to_thread(main, words) == 0
        assert old.link is not None
        await until(lambda: old.link.state.phase == "refused", "the old key is out")  # type: ignore[union-attr]
        assert old.link.state.code == "not_allowed"
        with pytest.raises(RefusedError, match="has been replaced"):
            await enroll(*where, {"csr": old.identity.csr()}, ca)
        await old.close()
        new.take(await enroll(*where, request, ca))
        assert new.identity.node_id == ident
        new.blobs, new.invitation = old.blobs, old.invitation
        await new.connect()
        assert new.link is not None
        with pytest.raises(RefusedError, match="signature"):
            await new.request("update.offer", offer)
        again = new.sign(json.loads(offer["statement"]))
        receipt = await new.give(again)
        assert receipt["node"] == ident
        # A second time, by a token; the second key is then out too.
        token = await asyncio.to_thread(hub.ask, "reenrol", node="a")
        third.invitation = Invitation.parse(token["token"])
        third.take(await enroll(*where, {"csr": third.identity.csr(), "secret": third.invitation.secret}, ca))
        assert third.identity.node_id == ident
        await until(lambda: new.link.state.phase == "refused", "the second key is out")  # type: ignore[union-attr]
        await third.connect()
        for node in (new, third):
            await node.close()
        assert fingerprint(third.identity.certificate) != fingerprint(new.identity.certificate)

    asyncio.run(play())
    acts = [(a["action"], a["subject"]) for a in hub.ask("audit", all=True)]
    assert {"rekey", "reenrol", "approve"} <= {a for a, _ in acts}
    assert hub.stop() < STOP_S


def test_a_node_revoked_while_its_update_arrives(hub: HubProcess, tmp_path: Path) -> None:
    spec = make_parts(tmp_path / "parts", elements=600_000)
    hub.start()
    hub.create("fed", tmp_path / "parts", nodes=1)

    async def play() -> None:
        slow = LinkLimits(retry_min_s=0.05, retry_max_s=0.3, refused_min_s=30.0, chunk_size=1 << 18, max_upload=200_000)
        node = TestNode(tmp_path, "a", slow)
        await node.enrol(hub)
        await node.connect()
        await node.join("fed")
        task = await node.task("fed", 0)
        offer = node.prepare(spec, task, node.delta(spec, task))
        assert (await node.request("update.offer", offer))["state"] == "receiving"
        assert node.link is not None
        await until(lambda: any(t["done"] for t in hub.ask("status")["transfers"]), "bytes of it have come")
        seen = (await asyncio.to_thread(hub.ask, "status"))["transfers"]
        assert [(t["node"], t["direction"], t["size"]) for t in seen] == [
            (node.identity.node_id, "down", offer["size"])
        ]
        told = tables.status(await asyncio.to_thread(hub.ask, "status"))
        assert f"transfer from {node.identity.node_id}, " in told and " left" in told and "/s" in told
        await asyncio.to_thread(hub.ask, "revoke", node="a", reason="sold")
        await until(lambda: node.link.state.phase == "refused", "the link is closed")  # type: ignore[union-attr]
        await until(lambda: not hub.ask("status")["links"], "nobody is linked")
        await node.close()

    asyncio.run(play())
    assert hub.stop() < STOP_S  # what waited for the transfer has ended
    store = HubStore(hub.folder / "hub.db")
    row = store.one("SELECT state, reason FROM updates")
    assert row is not None and (row["state"], row["reason"]) == ("refused", "the node was revoked: sold")
    assert store.one("SELECT 1 FROM receipts") is None
    store.close()


def test_no_is_signed_quotas_say_until_when_and_replays_gain_nothing(hub: HubProcess, tmp_path: Path) -> None:
    settings = hub.folder / "hub.toml"
    settings.write_text(f"{settings.read_text()}[quota]\nupdates_per_day = 1\n")
    spec = make_parts(tmp_path / "parts")
    hub.start()
    hub.create("fed", tmp_path / "parts", nodes=1)

    async def play() -> None:
        node = TestNode(tmp_path, "a")
        await node.enrol(hub)
        await node.connect()
        await node.join("fed")
        task = await node.task("fed", 0)
        offer = node.prepare(spec, task, node.delta(spec, task))
        await node.give(offer)
        await node.give(offer)  # the same again: the same receipt, counted once
        task = await node.task("fed", 1)
        second = node.prepare(spec, task, node.delta(spec, task))
        changed = node.sign({**json.loads(offer["statement"]), "samples": 7})
        for body, reason in ((second, "quota"), (changed, "task_answered")):
            with pytest.raises(RefusedError) as refused:
                await node.request("update.offer", body)
            assert refused.value.reason == reason and refused.value.signed is not None
            told = check_refusal(node.receipt_key, *refused.value.signed, digest_of(body["statement"]))
            assert told["code"] == reason and told["reason"] == refused.value.message
        # Another node that says again what this one said, or answers this one's task, gets nothing by it.
        other = TestNode(tmp_path, "b")
        await other.enrol(hub)
        await other.connect()
        await other.join("fed")
        words = json.loads(offer["statement"])
        for body in (offer, second, other.sign({**words, "node": other.identity.node_id})):
            with pytest.raises(RefusedError) as refused:
                await other.request("update.offer", body)
            assert refused.value.reason == "no_task"
        with pytest.raises(RefusedError) as refused:
            await other.request("receipt.get", {"update": digest_of(offer["statement"])})
        assert refused.value.reason == "not_found"
        await other.close()
        await node.close()

    asyncio.run(play())
    assert hub.ask("federation_show", name="fed")["version"] == 1
