"""Merges that are cut short: killed in the middle with an optimiser's state and noise, or unmakeable and rolled back."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

from daemon_process import STOP_S
from hub_cast import HubProcess, TestNode, cast, make_parts, until

from zk0d.hub import aggregate
from zk0d.hub.ledger import Ledger
from zk0d.hub.receipts import ReceiptKey
from zk0d.hub.recipe import Recipe
from zk0d.hub.rounds import Merge, shares
from zk0d.hub.store import Store
from zk0d.model.blobs import BlobStore
from zk0d.model.spec import ModelSpec


async def give(node: TestNode, spec: ModelSpec, version: int) -> None:
    task = await node.task("fed", version)
    await node.give(node.prepare(spec, task, node.delta(spec, task)))


def plan(hub: HubProcess, version: int, how: Recipe) -> Merge:
    """Fix, in a killed hub's memory, the merge of all that was admitted."""
    store = Store(hub.folder / "hub.db")
    ledger = Ledger(store, ReceiptKey.load(hub.folder / "keys"))
    updates = sorted(ledger.snapshot("fed").buffer, key=lambda g: g.node)
    merge = Merge(version, shares(version - 1, updates), how.plan())
    ledger.plans.begin("fed", merge)
    store.close()
    return merge


def undisturbed(hub: HubProcess, merge: Merge, spec: ModelSpec, out: Path) -> tuple[str, str, list[str]]:
    """What the merge gives when nobody kills it: published, master, moments."""
    store, blobs = Store(hub.folder / "hub.db"), BlobStore(hub.folder / "blobs")
    before = store.one("SELECT * FROM versions WHERE number = ?", merge.version - 1)
    assert before is not None
    paths = []
    for share in merge.shares:
        row = store.one("SELECT payload FROM updates WHERE digest = ?", share.update)
        assert row is not None
        paths.append((blobs.path(row["payload"]), share.weight))
    store.close()
    how = Recipe(**merge.recipe)
    made = aggregate.merge(
        spec, (blobs.path(before["master"]), blobs.path(before["digest"])), paths, out / "master", out / "published",
        recipe=how, moments=[blobs.path(d) for d in json.loads(before["moments"])],
        out_moments=[out / f"moment{i}" for i in range(how.moments)],
    )  # fmt: skip
    return made.published, made.master, list(made.moments)


def test_killed_merges_with_adam_and_noise_give_the_bytes_of_undisturbed_ones(hub: HubProcess, tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    moments, kills = random.Random(seed), 0
    spec = make_parts(tmp_path / "parts", elements=1_500_000)
    hub.create("fed", tmp_path / "parts", nodes=3)

    def version() -> int:
        store = Store(hub.folder / "hub.db")
        row = store.one("SELECT max(number) AS n FROM versions")
        store.close()
        return -1 if row is None else int(row["n"])

    async def play() -> None:
        nonlocal kills
        nodes = await cast(hub, tmp_path, 3, join="fed")
        try:
            for number in (1, 2):
                await asyncio.gather(*(give(n, spec, number - 1) for n in nodes[:2]))
                await asyncio.to_thread(hub.kill)
                merge = plan(hub, number, Recipe(optimizer="fedadam", lr=0.01, clip=1.0, noise=0.5, seed="5a" * 32))
                expected = undisturbed(hub, merge, spec, tmp_path / f"undisturbed{number}")
                while version() < number:  # noise makes it last: several kills fall into its midst
                    await asyncio.to_thread(hub.start)
                    work, end = hub.folder / "work" / "merge" / "fed", asyncio.get_running_loop().time() + 60
                    while not work.exists() and version() < number:
                        assert asyncio.get_running_loop().time() < end
                        await asyncio.sleep(0.005)
                    if number == 2 and kills < 3:
                        await asyncio.sleep(moments.uniform(0, 0.2))
                        await asyncio.to_thread(hub.kill)
                        kills += 1
                    else:
                        await until(lambda n=number: version() >= n, f"version {number}")
                if hub.process is not None and hub.process.poll() is not None:
                    await asyncio.to_thread(hub.start)
                store = Store(hub.folder / "hub.db")
                row = store.one("SELECT digest, master, moments FROM versions WHERE number = ?", number)
                store.close()
                assert row is not None and (row["digest"], row["master"], json.loads(row["moments"])) == expected
        finally:
            for node in nodes:
                await node.close()

    asyncio.run(play())
    print("kills", kills)
    assert hub.stop() < STOP_S


def test_a_merge_that_cannot_be_made_can_be_rolled_back_from(hub: HubProcess, tmp_path: Path) -> None:
    """The newest version's master is damaged: the planned merge fails for ever, until the maintainer goes back."""
    spec = make_parts(tmp_path / "parts")
    hub.create("fed", tmp_path / "parts", nodes=2)

    async def play() -> None:
        nodes = await cast(hub, tmp_path, 2, join="fed")
        try:
            await asyncio.gather(*(give(n, spec, 0) for n in nodes))
            await until(lambda: hub.ask("federation_show", name="fed")["version"] == 1, "version 1")
            await give(nodes[0], spec, 1)
            await asyncio.to_thread(hub.kill)
            plan(hub, 2, Recipe())
            store, blobs = Store(hub.folder / "hub.db"), BlobStore(hub.folder / "blobs")
            row = store.one("SELECT master FROM versions WHERE number = 1")
            store.close()
            assert row is not None
            path = blobs.path(row["master"])
            path.chmod(0o600)
            path.write_bytes(b"damaged")
            await asyncio.to_thread(hub.start)
            await until(lambda: any("roll back" in e["error"] for e in hub.events("merge failed")), "the failure")
            told = await asyncio.to_thread(lambda: hub.ask("federation_rollback", name="fed", version=0))
            assert told["version"] == 2
            await asyncio.gather(*(give(n, spec, 2) for n in nodes))
            await until(lambda: hub.ask("federation_show", name="fed")["version"] == 3, "version 3")
        finally:
            for node in nodes:
                await node.close()

    asyncio.run(play())
    versions = hub.ask("versions", name="fed")
    assert versions[2]["digest"] == versions[0]["digest"] and versions[3]["updates"] == 2
    assert hub.ask("federation_show", name="fed")["updates_waiting"] == 0
    assert hub.stop() < STOP_S
    store = Store(hub.folder / "hub.db")
    assert store.one("SELECT 1 FROM audit WHERE action = 'merge.drop'") is not None
    store.close()
