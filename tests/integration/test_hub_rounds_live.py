"""The hub as a process, nodes over loopback TLS: gathering, merges, refusals, kills."""

from __future__ import annotations

import asyncio
import copy
import json
import random
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from daemon_process import STOP_S
from hub_cast import HubProcess, TestNode, base_tensors, cast, make_parts, reference, stats, until

from zk0d.durable import digest_of
from zk0d.errors import RefusedError
from zk0d.hub.ledger import Ledger
from zk0d.hub.main import main
from zk0d.hub.receipts import ReceiptKey
from zk0d.hub.rounds import Merge, shares
from zk0d.hub.store import Store
from zk0d.link.enroll import enroll
from zk0d.model.blobs import BlobStore, Manifest, name_of
from zk0d.model.leaves import leaves_of
from zk0d.model.lent import LentBlob, LentChunk
from zk0d.model.payload import PayloadWriter
from zk0d.model.spec import ModelSpec


async def round_of(nodes: list[TestNode], spec: ModelSpec, federation: str, version: int) -> list[dict[str, Any]]:
    async def one(node: TestNode) -> dict[str, Any]:
        task = await node.task(federation, version)
        await node.fetch(task["version_digest"])
        offer = node.prepare(spec, task, node.delta(spec, task))
        return await node.give(offer, lambda r: r["new_version"] == version + 1)

    return await asyncio.gather(*(one(n) for n in nodes))


def expected(nodes: list[TestNode], spec: ModelSpec, master: dict[str, np.ndarray], version: int, folder: Path) -> str:
    parts = [(n.delta(spec, {"version": version}), n.samples) for n in nodes]
    return reference(spec, master, parts, folder / f"expected-{version + 1}")


def test_gathering_two_merges_and_a_stop(hub: HubProcess, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    spec = make_parts(parts)
    hub.create("fed", parts, nodes=3, versions=2)

    async def play() -> None:
        nodes = await cast(hub, tmp_path, 3)
        try:
            for i, node in enumerate(nodes):
                reply = await node.request("task.request", {"federation": "fed"})
                assert "not joined" in reply["reason"]
                body = {"federation": "fed", "stats": stats(0.0, 1e9), "datasets": [
                    {"uuid": node.dataset, "episodes": 5, "frames": 100}]}  # fmt: skip
                with pytest.raises(RefusedError, match="are of 1000000000 frames, the datasets have 100"):
                    await node.request("federation.join", body)
                for bad in ("kitchen", str(uuid.uuid1()), node.dataset.upper()):
                    body["datasets"] = [{"uuid": bad, "episodes": 5, "frames": 10**10}]
                    with pytest.raises(RefusedError, match="random UUID"):
                        await node.request("federation.join", body)
                assert (await node.join("fed", mean=float(i)))["state"] == "gathering"
            for node in nodes:
                await until(lambda n=node: any(k == "version.new" for k, _ in n.pushes), "version 0 announced")
            master = base_tensors(parts, spec)
            latest = await nodes[0].request("version.latest", {"federation": "fed"})
            fixed = ModelSpec.load(await nodes[0].fetch(latest["spec_digest"]))
            assert fixed.stats is not None
            assert fixed.stats["action"]["mean"] == [1.0] * 6 and fixed.stats["action"]["count"] == [300.0]
            assert fixed.stats["action"]["std"] == [round((4 + 2 / 3) ** 0.5, 6)] * 6
            for version in (0, 1):
                receipts = await round_of(nodes, spec, "fed", version)
                assert sum(r["weight"] for r in receipts) == pytest.approx(1)
                latest = await nodes[0].request("version.latest", {"federation": "fed"})
                assert latest["number"] == version + 1
                assert latest["digest"] == expected(nodes, spec, master, version, tmp_path)
                if version == 0:  # a payload is credited once, also to the node that gave it
                    task = await nodes[0].task("fed", 1)
                    old = {"payload": receipts[0]["payload"], "size": receipts[0]["verified"]["bytes"]}
                    offer = nodes[0].prepare(spec, task, nodes[0].delta(spec, task), **old)
                    assert "given before, as another update" in await nodes[0].refused(offer)
            reply = await nodes[0].request("task.request", {"federation": "fed"})
            assert reply["task"] is None and "finished" in reply["reason"]
            # A base that only the frozen tensors come from is there for members; what was not published is not.
            await nodes[1].fetch(latest["base_digest"])
            with pytest.raises(RefusedError):
                await nodes[1].fetch(name_of((parts / "spec.json").read_bytes()))
        finally:
            for node in nodes:
                await node.close()

    asyncio.run(play())
    metrics = hub.folder / "federations" / "fed" / "metrics.jsonl"
    asyncio.run(until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) == 3, "metrics of 3 versions"))
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [(line["version"], line["updates"], line["heldout_loss"], line["evaluation"]) for line in lines] == [
        (0, 0, None, "failed"), (1, 3, None, "failed"), (2, 3, None, "failed")]  # fmt: skip
    size = next(v["size"] for v in hub.ask("versions", name="fed"))
    assert lines[1]["bytes_up"] == pytest.approx(3 * size, rel=0.01) and lines[2]["bytes_down"] == 3 * size
    status = hub.ask("status")
    assert status["schema_version"] == 1 and status["federations"][0]["phase"] == "finished"
    assert any("could not be evaluated" in text for text in status["health"])
    assert hub.stop() < STOP_S


def test_killed_again_and_again_gives_the_same_bytes(hub: HubProcess, tmp_path: Path) -> None:
    parts, seed = tmp_path / "parts", random.randrange(1 << 30)
    print("seed", seed)
    moments = random.Random(seed)
    spec = make_parts(parts, elements=2_000_000)
    hub.create("fed", parts, nodes=3, versions=2)

    def upload_at(nodes: list[TestNode], bytes_per_s: float) -> None:
        for node in nodes:
            assert node.link is not None
            node.link.set_max_upload(bytes_per_s)

    async def killer(done: asyncio.Event, nodes: list[TestNode]) -> int:
        kills = 0
        while not done.is_set() and kills < 6:
            try:
                await asyncio.wait_for(done.wait(), moments.uniform(0.02, 0.7))
            except TimeoutError:
                hub.kill()
                kills += 1
                if kills == 3:
                    upload_at(nodes, 10e6)
                await asyncio.to_thread(hub.start)
        return kills

    async def play() -> None:
        nodes = await cast(hub, tmp_path, 3)
        upload_at(nodes, 0.5e6)  # 8 s an update: the first three kills come in the middle of uploads
        done = asyncio.Event()
        killing = asyncio.create_task(killer(done, nodes))
        try:
            for node in nodes:
                await node.join("fed")
            master = base_tensors(parts, spec)
            for version in (0, 1):
                receipts = await round_of(nodes, spec, "fed", version)
                latest = await nodes[0].request("version.latest", {"federation": "fed"})
                assert latest["digest"] == expected(nodes, spec, master, version, tmp_path)
                assert sum(r["weight"] for r in receipts) == pytest.approx(1)
        finally:
            done.set()
            kills = await killing
            for node in nodes:
                await node.close()
        assert kills >= 3
        print("kills", kills)

    asyncio.run(play())
    shown = hub.ask("versions", name="fed")
    assert [(v["version"], v["updates"]) for v in shown] == [(0, 0), (1, 3), (2, 3)]
    assert hub.stop() < STOP_S


def test_a_merge_that_was_begun_is_made_of_what_it_was_begun_with(hub: HubProcess, tmp_path: Path) -> None:
    """The hub dies between fixing a merge's updates and its version; a further update must not slip in."""
    parts = tmp_path / "parts"
    spec = make_parts(parts)
    hub.create("fed", parts, nodes=3)
    debris = hub.folder / "work" / "merge" / "fed" / ".master.1.tmp"

    def begin_and_die(first: list[str]) -> None:
        hub.kill()
        store = Store(hub.folder / "hub.db")
        ledger = Ledger(store, ReceiptKey.load(hub.folder / "keys"))
        snapshot = ledger.snapshot("fed")
        updates = sorted((g for g in snapshot.buffer if g.node in first), key=lambda g: g.node)
        ledger.plans.begin("fed", Merge(1, shares(0, updates)))
        store.close()
        debris.parent.mkdir(parents=True, exist_ok=True)
        debris.write_bytes(b"half a master")
        hub.start()

    async def play() -> None:
        nodes = await cast(hub, tmp_path, 3)
        try:
            for node in nodes:
                await node.join("fed")
            offers = []
            for node in nodes[:2]:
                task = await node.task("fed", 0)
                offers.append(node.prepare(spec, task, node.delta(spec, task)))
                await node.give(offers[-1])
            await asyncio.to_thread(begin_and_die, [nodes[1].identity.node_id])
            await nodes[1].give(offers[1], lambda r: r["new_version"] == 1)
            latest = await nodes[2].request("version.latest", {"federation": "fed"})
            master = base_tensors(parts, spec)
            assert latest["digest"] == expected(nodes[1:2], spec, master, 0, tmp_path)
            reply = await nodes[0].request("receipt.get", {"update": digest_of(offers[0]["statement"])})
            assert reply["state"] == "admitted"  # and counts in the next
        finally:
            for node in nodes:
                await node.close()

    asyncio.run(play())
    assert not debris.exists()
    assert hub.ask("federation_show", name="fed")["updates_waiting"] == 1
    assert hub.stop() < STOP_S


def test_the_deadline_merges_with_the_quorum_also_over_a_kill(
    hub: HubProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = tmp_path / "parts"
    spec = make_parts(parts)
    hub.create("fed", parts, nodes=2, deadline_s=6)

    async def play() -> None:
        nodes = await cast(hub, tmp_path, 2)
        try:
            for node in nodes:
                await node.join("fed")
            task = await nodes[0].task("fed", 0)
            offer = nodes[0].prepare(spec, task, nodes[0].delta(spec, task))
            assert (await nodes[0].give(offer))["new_version"] is None
            hub.kill()
            await asyncio.to_thread(hub.start)
            receipt = await nodes[0].give(offer, lambda r: r["new_version"] == 1)
            assert receipt["weight"] == 1.0
            assert (await nodes[0].request("receipt.get", {"update": receipt["update"]}))["state"] == "merged"
            # The one who comes late starts from the old version and counts for less.
            late = await nodes[1].task("fed", 1)
            assert late["version"] == 1
        finally:
            for node in nodes:
                await node.close()

    asyncio.run(play())

    def command(*arguments: str) -> str:
        assert main(["--dir", str(hub.folder), *arguments]) in (0, 2), arguments
        return capsys.readouterr().out

    capsys.readouterr()
    assert "version 1 is out; 0 of 2 updates for the next" in command("status")
    assert "node0" in command("nodes", "list") and "no nodes" in command("nodes", "pending")
    assert "open" in command("federation", "list") and "policy act" in command("federation", "show", "fed")
    assert json.loads(command("versions", "fed", "--json"))[1]["updates"] == 1
    assert command("versions", "fed").splitlines()[2].startswith("1        1        ")
    assert "finished with version 1" in command("federation", "finish", "fed")
    assert main(["--dir", str(hub.folder), "federation", "finish", "fed"]) == 64
    assert hub.stop() < STOP_S


def test_bad_updates_are_refused_with_the_reason_and_the_round_goes_on(hub: HubProcess, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    spec = make_parts(parts)
    hub.create("fed", parts, nodes=2, versions=1)

    async def play() -> None:
        nodes = await cast(hub, tmp_path, 2)
        bad, good = nodes
        try:
            for node in nodes:
                await node.join("fed")
            task = await bad.task("fed", 0)
            delta = bad.delta(spec, task)

            # Before a byte of the payload moves.
            whole = bad.prepare(spec, task, delta)
            statement = json.loads(whole["statement"])
            for changed, said in (
                ({"node": good.identity.node_id}, "no task of this node"),
                ({"task": "task-0000000000000000"}, "no task of this node"),
                ({"base_version": 1}, "another version 1 than this hub's"),
                ({"base": "blob:" + "0" * 64}, "another version 0 than this hub's"),
                ({"size": 10**9}, "have at most"),
                ({"samples": 10**9}, "5 steps of 8 cannot have seen so many"),
                ({"samples": 10**9, "steps": 10**9}, "states 1000000000 steps, the task has 5"),
            ):
                assert said in await bad.refused(bad.sign({**statement, **changed}))
            assert "signature does not fit" in await bad.refused({**whole, "signature": bytes(64)})
            assert "not canonical" in await bad.refused({**whole, "statement": whole["statement"] + b" "})
            assert "there is no federation" in await bad.refused(bad.sign({**statement, "federation": "other"}))

            # NaN in a payload that is whole and signed.
            delta["head.bias"][3] = np.nan
            assert "'head.bias' holds a NaN" in await bad.refused(bad.prepare(spec, task, delta))
            reply = await bad.request("task.request", {"federation": "fed"})
            again = reply["task"]
            assert again["id"] != task["id"] and again["version"] == 0

            # Another shape.
            other = tmp_path / "other"
            with PayloadWriter(other, {"head.bias": ("BF16", (7,)), "head.weight": ("BF16", (100, 600))}) as out:
                out.write("head.bias", np.zeros(7, np.float32))
                out.write("head.weight", np.zeros((100, 600), np.float32))
            bad.blobs.add_file(other)
            offer = bad.sign({**statement, "task": again["id"], "payload": out.digest, "size": out.size})
            assert "shape [100, 600], the spec says [600, 100]" in await bad.refused(offer)

            # The quarantine says why; a pause grows with refusals in a row.
            folder = hub.folder / "quarantine"
            await until(lambda: len(list(folder.glob("*.json"))) == 2, "both are kept")  # after their nodes are told
            kept = [json.loads(p.read_text())["reason"] for p in folder.glob("*.json")]
            assert sorted("NaN" in k for k in kept) == [False, True]
            reply = await bad.request("task.request", {"federation": "fed"})
            assert reply["task"] is None and "refused" in reply["reason"] and 0 < reply["retry_s"] <= 15

            # The other node's work is not disturbed, and a node that asks for the unknown is told so.
            task = await good.task("fed", 0)
            receipt = await good.give(good.prepare(spec, task, good.delta(spec, task)))
            assert receipt["new_version"] is None
            reply = await good.request("task.request", {"federation": "fed"})
            assert "you have given your update to version 1; it is merged when 1 more is in" in reply["reason"]
            with pytest.raises(RefusedError, match="there is no federation"):
                await good.request("task.request", {"federation": "nope"})
            with pytest.raises(RefusedError, match="does not know this update"):
                await good.request("receipt.get", {"update": "sha256:" + "0" * 64})
        finally:
            for node in nodes:
                await node.close()

    asyncio.run(play())
    assert hub.stop() < STOP_S


class Altered(LentChunk):
    """A chunk whose last byte is another."""

    def read_into(self, at: int, into: memoryview) -> None:
        super().read_into(at, into)
        if at + len(into) == len(self):
            into[-1] ^= 1


class Lying(LentBlob):
    """Gives out altered chunks."""

    def chunk(self, index: int, chunk_size: int) -> LentChunk | None:
        return None

    def from_disk(self, index: int, chunk_size: int) -> LentChunk:
        true = super().from_disk(index, chunk_size)
        return Altered(true._blob, true._start, len(true))


class LyingStore(BlobStore):
    """A node that hands out other bytes than it signed: a chunk that does not fit, or a manifest of the lie."""

    lie = ""

    def lend(self, digest: str) -> LentBlob:
        return Lying(self.path(digest)) if self.lie else super().lend(digest)

    def read_chunk(self, digest: str, index: int, chunk_size: int = 1 << 20) -> bytes:
        data = super().read_chunk(digest, index, chunk_size)
        return data if not self.lie else data[:-1] + bytes([data[-1] ^ 1])

    def manifest(self, digest: str, chunk_size: int = 1 << 20) -> Manifest:
        true = super().manifest(digest, chunk_size)
        if self.lie != "manifest":
            return true
        lying = copy.copy(true)  # the true one is proven by its name; this one says what it likes
        data = b"".join(self.read_chunk(digest, i, chunk_size) for i in range(true.count))
        object.__setattr__(lying, "leaves", leaves_of(data))
        return lying


@pytest.mark.parametrize("lie", ["chunk", "manifest"])
def test_altered_byte_is_refused(hub: HubProcess, tmp_path: Path, lie: str) -> None:
    parts = tmp_path / "parts"
    spec = make_parts(parts)
    hub.create("fed", parts, nodes=1, versions=1)

    async def play() -> None:
        node = TestNode(tmp_path, "node0")
        node.blobs = LyingStore(node.folder / "blobs", reserve=0)
        await node.enrol(hub)
        await node.connect()
        try:
            await node.join("fed")
            task = await node.task("fed", 0)
            node.blobs.lie = lie
            said = await node.refused(node.prepare(spec, task, node.delta(spec, task)))
            assert (
                "the update is refused" in said
                and {"chunk": "wrong digest", "manifest": "not that of blob:"}[lie] in said
            ), said
            # It may do better.
            node.blobs.lie = ""
            task = await node.task("fed", 0)
            await node.give(node.prepare(spec, task, node.delta(spec, task)), lambda r: r["new_version"] == 1)
        finally:
            await node.close()

    asyncio.run(play())
    assert hub.stop() < STOP_S


def test_revoked_node_is_out_and_pending_node_waits_for_approval(hub: HubProcess, tmp_path: Path) -> None:
    async def play() -> None:
        first, second = TestNode(tmp_path, "first"), TestNode(tmp_path, "second")
        await first.enrol(hub)
        await first.connect()
        try:
            request = {"csr": second.identity.csr(), "label": "carol"}
            where = (first.invitation.host, first.invitation.port)
            reply = await enroll(*where, request, first.invitation.ca)
            assert reply["state"] == "pending" and len(reply["phrase"].split()) == 5
            with pytest.raises(RefusedError, match="has been used"):
                await enroll(*where, {**request, "secret": first.invitation.secret}, first.invitation.ca)
            await asyncio.to_thread(hub.ask, "approve", node="carol")
            second.take(await enroll(*where, request, first.invitation.ca))
            second.invitation = first.invitation
            await second.connect()
            hub.ask("revoke", node="first", reason="sold the arm")
            assert first.link is not None
            await until(lambda: first.link.state.phase in ("refused", "waiting"), "the revoked node is out")  # type: ignore[union-attr]
            assert "node_id" in await second.request("hello", {"software": "test", "federations": []})
            with pytest.raises(RefusedError, match="revoked: sold the arm"):
                await enroll(*where, {"csr": first.identity.csr()}, first.invitation.ca)
        finally:
            await first.close()
            await second.close()

    asyncio.run(play())
    assert hub.stop() < STOP_S
