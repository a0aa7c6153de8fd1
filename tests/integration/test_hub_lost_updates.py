"""Updates that must not be merged after they were admitted: this disk spoilt them, cannot give them, or the maintainer
takes them out. The others' work goes on, and no node is blamed for what it did not do."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_cast import REPOSITORY, TOML, HubProcess, TestNode, cast, make_parts, until
from small_disk import small_disk

from zk0d.durable import digest_of
from zk0d.errors import RefusedError
from zk0d.model.blobs import BlobStore
from zk0d.model.spec import ModelSpec

Offer = dict[str, Any]


async def ask(hub: HubProcess, op: str, **fields: Any) -> Any:
    return await asyncio.to_thread(lambda: hub.ask(op, **fields))


async def command(hub: HubProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "zk0d.hub.main", "--dir", str(hub.folder), *arguments]
    return await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True, cwd=REPOSITORY)


async def give(node: TestNode, spec: ModelSpec, version: int = 0) -> Offer:
    task = await node.task("fed", version)
    offer = node.prepare(spec, task, node.delta(spec, task))
    await node.give(offer)
    return offer


def update(offer: Offer) -> str:
    return digest_of(offer["statement"])


def payload(hub: HubProcess, offer: Offer) -> Path:
    path = BlobStore(hub.folder / "blobs").path(json.loads(offer["statement"])["payload"])
    path.chmod(0o600)
    return path


def federation(hub: HubProcess, folder: Path, quorum: int = 2) -> ModelSpec:
    spec = make_parts(folder / "parts", 6000)
    toml = TOML.format(nodes=3, versions=0, dtype="bfloat16", deadline_s=600).replace(
        "quorum = 1", f"quorum = {quorum}"
    )
    hub.ask("federation_create", name="fed", toml=toml, parts=str(folder / "parts"))
    return spec


@pytest.mark.parametrize("harm", ["infinite", "gone"])
def test_what_the_disk_spoilt_is_no_fault_of_a_node(hub: HubProcess, tmp_path: Path, harm: str) -> None:
    spec = federation(hub, tmp_path)

    async def play() -> None:
        nodes = await cast(hub, tmp_path, 3, join="fed")
        try:
            offers = [await give(n, spec) for n in nodes[:2]]
            norms = {u["node"]: u["norm"] for u in (await ask(hub, "federation_show", name="fed"))["buffer"]}
            hurt = min((0, 1), key=lambda i: norms[nodes[i].identity.node_id])  # the other is what else is blamed
            path = payload(hub, offers[hurt])
            if harm == "gone":
                path.unlink()
            else:
                path.write_bytes(path.read_bytes()[:-2] + b"\x80\x7f")  # bfloat16's infinity
            await give(nodes[2], spec)
            await until(lambda: update(offers[hurt]) in nodes[hurt].refusals, "the update that was lost is refused")
            reason = nodes[hurt].refusals[update(offers[hurt])]["reason"]
            assert "the hub has lost its bytes" in reason and str(hub.folder) not in reason
            assert not any(n.refusals for n in nodes if n is not nodes[hurt])
            assert await ask(hub, "quarantine_list") == []
            shown = await ask(hub, "federation_show", name="fed")
            assert shown["updates_waiting"] == 2 and shown["problem"] == ""
            await give(nodes[hurt], spec)  # no fault: it gets a task at once
            await until(lambda: hub.ask("federation_show", name="fed")["version"] == 1, "version 1")
        finally:
            for node in nodes:
                await node.close()

    asyncio.run(play())


def test_what_the_disk_spoilt_of_the_hubs_own_is_no_fault_of_a_node(hub: HubProcess, tmp_path: Path) -> None:
    spec = federation(hub, tmp_path)

    async def play() -> None:
        nodes = await cast(hub, tmp_path, 3, join="fed")
        try:
            for node in nodes:
                await give(node, spec)
            await until(lambda: hub.ask("federation_show", name="fed")["version"] == 1, "version 1")
            path = BlobStore(hub.folder / "blobs").path((await ask(hub, "versions", name="fed"))[1]["digest"])
            for node in nodes[:2]:
                await give(node, spec, 1)
            path.chmod(0o600)
            path.write_bytes(path.read_bytes()[:-2] + b"\x80\x7f")
            await give(nodes[2], spec, 1)
            await until(lambda: bool(hub.ask("federation_show", name="fed")["problem"]), "the merge fails")
            told = (await ask(hub, "federation_show", name="fed"))["problem"]
            assert f"the hub's own file: {path} is damaged (restore it from a backup, or roll back)" in told
            assert not any(n.refusals for n in nodes)
        finally:
            for node in nodes:
                await node.close()

    asyncio.run(play())


def test_an_update_is_dropped_and_the_others_are_merged(hub: HubProcess, tmp_path: Path) -> None:
    """One that the disk does not give any more, and one of a node that was revoked for it."""
    spec = federation(hub, tmp_path, quorum=1)

    async def play() -> None:
        nodes = await cast(hub, tmp_path, 3, join="fed")
        lost, poison, good = nodes
        try:
            offers = [await give(n, spec) for n in (lost, poison)]
            path = payload(hub, offers[0])
            path.unlink()
            path.mkdir()  # as a bad sector: it is there, and reading it is an error
            await give(good, spec)
            await until(lambda: bool(hub.ask("federation_show", name="fed")["problem"]), "the merge fails")
            begun = update(offers[0])[7:19]
            told = (await command(hub, "status")).stdout
            assert f"the update of {lost.identity.node_id} cannot be read: {path}: Is a directory" in told
            assert f"`zk0-hub federation drop fed {begun}` goes on without it" in told
            await ask(hub, "revoke", node=poison.identity.node_id, reason="poison")
            shown = (await command(hub, "federation", "show", "fed")).stdout
            assert f"update {begun} from {lost.identity.node_id}" in shown
            wrong = await command(hub, "federation", "drop", "fed", "nobody")
            assert wrong.returncode == 64 and "'nobody' is no update that waits in federation fed" in wrong.stderr
            # Frozen, so that nothing is merged between the two.
            await ask(hub, "federation_freeze", name="fed")
            more = ("--reason", "its file is broken")
            dropped = (await command(hub, "federation", "drop", "fed", begun, *more)).stdout
            assert dropped.startswith(f"dropped {begun} of {lost.identity.node_id}\nfed: frozen")
            assert "problem" not in dropped
            await until(lambda: update(offers[0]) in lost.refusals, "its node is told")
            assert lost.refusals[update(offers[0])]["reason"] == "the maintainer dropped it: its file is broken"
            said = await command(hub, "federation", "drop", "fed", poison.name, "--fault")
            assert said.stdout.startswith(f"dropped {update(offers[1])[7:19]} of {poison.identity.node_id}")
            await until(lambda: bool(hub.ask("quarantine_list")), "it is kept")
            kept = await ask(hub, "quarantine_list")
            assert [(k["update"], k["reason"]) for k in kept] == [
                (update(offers[1]), "the maintainer dropped it and gave no reason")
            ]
            await ask(hub, "federation_thaw", name="fed")
            path.rmdir()  # unlike a file, which the hub has deleted
            await give(lost, spec)
            await ask(hub, "federation_drain", name="fed")
            await until(lambda: hub.ask("federation_show", name="fed")["version"] == 1, "version 1")
            assert (await ask(hub, "versions", name="fed"))[1]["updates"] == 2
            again = await command(hub, "federation", "drop", "fed", good.identity.node_id)
            assert again.returncode == 64 and "only `rollback` leads back" in again.stderr
        finally:
            for node in nodes:
                await node.close()
        acts = [(a["action"], a["subject"]) for a in await ask(hub, "audit")]
        assert ("merge.drop", "fed") in acts and ("update.refused", update(offers[1])) in acts

    asyncio.run(play())


def test_a_backup_of_what_a_disk_has_spoilt_holds_the_rest(hub: HubProcess, tmp_path: Path) -> None:
    """One update that waits is no reason to have no backup: a hub made of it refuses that one and goes on."""
    spec = federation(hub, tmp_path)

    async def play() -> None:
        nodes = await cast(hub, tmp_path, 3, join="fed")
        try:
            offers = [await give(n, spec) for n in nodes[:2]]
            payload(hub, offers[0]).write_bytes(b"spoilt")
            made = await command(hub, "backup", str(tmp_path / "saved"))
            waits = f"  fed: an update of {nodes[0].identity.node_id} ({json.loads(offers[0]['statement'])['payload']})"
            assert made.returncode == 2 and waits in made.stdout.splitlines()
            assert "incomplete, the hub's disk has lost or spoilt what it needs; a hub made of it lacks" in made.stdout
            hub.stop()
            shutil.rmtree(hub.folder)
            restored = await command(hub, "restore", str(tmp_path / "saved"))
            assert restored.returncode == 2 and waits in restored.stdout.splitlines()
            await asyncio.to_thread(hub.start)
            await give(nodes[2], spec)
            await until(lambda: hub.events("update refused") != [], "the update that was lost is refused")
            with pytest.raises(RefusedError, match="the hub has lost its bytes"):  # its link may not be back for a push
                await nodes[0].request("update.offer", offers[0])
            await give(nodes[0], spec)
            await until(lambda: hub.ask("federation_show", name="fed")["version"] == 1, "the others' work counts")
            # Without its newest version it is no hub.
            newest = next(v for v in await ask(hub, "versions", name="fed") if v["version"] == 1)
            BlobStore(hub.folder / "blobs").path(newest["digest"]).unlink()
            made = await command(hub, "backup", str(tmp_path / "useless"))
            assert made.returncode == 2 and "no hub can be made of it:\n  fed: version 1 (blob:" in made.stdout
            refused = await command(hub, "--dir", str(tmp_path / "new"), "restore", str(tmp_path / "useless"))
            assert refused.returncode == 78 and "lacks 1 blobs, as version 1 of federation fed" in refused.stderr
            assert not (tmp_path / "new").exists()
        finally:
            for node in nodes:
                await node.close()

    asyncio.run(play())


def test_nothing_is_left_of_a_backup_that_has_no_room(hub: HubProcess, tmp_path: Path) -> None:
    make_parts(tmp_path / "parts", 600_000)
    hub.create("fed", tmp_path / "parts", nodes=2)
    for size, why in (("16k", "hub.db cannot be copied to"), ("2m", "there is no room for all of the hub in")):
        with small_disk(tmp_path / size, size) as disk:
            for _ in range(2):
                made = asyncio.run(command(hub, "backup", str(disk / "saved")))
                assert made.returncode == 1 and why in made.stderr, made.stderr
                assert list(disk.iterdir()) == []
