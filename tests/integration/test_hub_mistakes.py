"""A federation that was made by mistake: ended or taken away before it had a version, and what its nodes hear of it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hub_cast import TOML, HubProcess, TestNode, cast, free_port, make_parts, until

from zk0d.errors import RefusedError, UsageError
from zk0d.hub import backup, founding, stewardship
from zk0d.hub.main import main
from zk0d.hub.service import Hub
from zk0d.model.blobs import BlobStore


def made(hub: HubProcess, name: str, parts: Path, nodes: int = 2) -> dict[str, str]:
    hub.create(name, parts, nodes)
    with sqlite3.connect(hub.folder / "hub.db", timeout=30) as db:
        row = db.execute("SELECT base, exchange, draft_spec FROM federations WHERE name = ?", (name,)).fetchone()
    db.close()
    return dict(zip(("base", "exchange", "draft"), row, strict=True))


def kept(hub: HubProcess, digests: dict[str, str]) -> list[str]:
    blobs = BlobStore(hub.folder / "blobs", reserve=0)
    return [what for what, digest in digests.items() if blobs.has(digest)]


async def states(node: TestNode) -> dict[str, tuple[str, int]]:
    reply = await node.request("hello", {"software": "test", "federations": []})
    return {f["name"]: (f["state"], f["version"]) for f in reply["federations"]}


def test_one_that_gathers_is_finished(hub: HubProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_parts(tmp_path / "parts", 1000)
    digests = made(hub, "fed", tmp_path / "parts")
    assert kept(hub, digests) == ["base", "exchange", "draft"]

    async def play() -> None:
        (node,) = await cast(hub, tmp_path, 1, join="fed")
        try:
            assert await asyncio.to_thread(main, ["--dir", str(hub.folder), "federation", "finish", "fed"]) == 0
            assert capsys.readouterr().out.splitlines()[-1] == "fed: finished before version 0"
            assert await states(node) == {"fed": ("finished", -1)}
            answer = await node.request("task.request", {"federation": "fed"})
            assert answer["task"] is None and answer["reason"] == "the federation is finished before version 0"
            latest = await node.request("version.latest", {"federation": "fed"})
            assert latest["number"] is None and latest["reason"] == "finished before version 0"
            with pytest.raises(UsageError, match="version: 'x' is not a whole number of at least 0"):
                await asyncio.to_thread(hub.ask, "evaluate", name="fed", version="x")
            with pytest.raises(UsageError, match="fed is finished already"):
                await asyncio.to_thread(hub.ask, "federation_finish", name="fed")
        finally:
            await node.close()

    asyncio.run(play())
    assert kept(hub, digests) == ["draft"]  # what nobody will ever get takes no room
    assert backup.make(hub.folder, tmp_path / "copy")["missing"] == []
    hub.stop()
    hub.start()
    assert hub.ask("status")["health"] == [] and hub.ask("federation_show", name="fed")["phase"] == "finished"
    acts = [(a["action"], a["subject"]) for a in hub.ask("audit")]
    assert ("federation.finish", "fed") in acts


def test_what_cannot_be_held_or_rolled_back_is_told_as_it_is(hub: HubProcess, tmp_path: Path) -> None:
    make_parts(tmp_path / "parts", 1000)
    made(hub, "fed", tmp_path / "parts", nodes=1)
    assert hub.ask("federation_show", name="fed")["headline"] == "gathering: 1 more node must join"
    with pytest.raises(UsageError, match="fed is not held: there is nothing to thaw"):
        hub.ask("federation_thaw", name="fed")
    with pytest.raises(UsageError, match="fed has no version 0 to go back to"):
        hub.ask("federation_rollback", name="fed", version=0)

    async def play() -> None:
        (node,) = await cast(hub, tmp_path, 1, join="fed")
        try:
            await node.task("fed", 0)
        finally:
            await node.close()

    asyncio.run(play())
    hub.ask("federation_freeze", name="fed")
    assert hub.ask("federation_show", name="fed")["headline"].startswith("frozen at version 0 with 0 updates")
    with pytest.raises(UsageError, match="fed is frozen already"):
        hub.ask("federation_freeze", name="fed")
    hub.ask("federation_finish", name="fed")
    with pytest.raises(UsageError, match="fed is finished: no version can become its newest") as caught:
        hub.ask("federation_rollback", name="fed", version=0)
    assert "zk0-hub versions fed" in caught.value.hint


def test_a_damaged_record_hides_no_other(hub: HubProcess) -> None:
    kept = hub.folder / "quarantine"
    kept.mkdir(exist_ok=True)
    record = {"update": "sha256:" + "ab" * 32, "node": "n", "federation": "fed", "payload": "p", "reason": "r"}
    (kept / f"{'ab' * 32}.json").write_text(json.dumps(record))
    (kept / f"{'cd' * 32}.json").write_text('{"update": ')
    told = {e["update"]: e["reason"] for e in hub.ask("quarantine_list")}
    assert told["sha256:" + "ab" * 32] == "r" and "is damaged" in told["sha256:" + "cd" * 32]
    assert hub.ask("quarantine_drop", update="cdcd")["update"] == "sha256:" + "cd" * 32


def test_a_kill_between_the_end_and_its_files_leaves_nothing(hub: HubProcess, tmp_path: Path) -> None:
    make_parts(tmp_path / "parts", 1000)
    digests = made(hub, "fed", tmp_path / "parts")
    hub.kill()
    with sqlite3.connect(hub.folder / "hub.db") as db:
        db.execute("UPDATE federations SET phase = 'finished', finished_at = 1")
    db.close()
    hub.start()
    assert kept(hub, digests) == ["draft"]


def test_one_without_a_version_is_removed(hub: HubProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_parts(tmp_path / "parts", 1000)
    digests = made(hub, "fed", tmp_path / "parts")
    made(hub, "other", tmp_path / "parts")  # of the same files

    async def play() -> None:
        (node,) = await cast(hub, tmp_path, 1, join="fed")
        try:
            with pytest.raises(UsageError, match="there is a federation 'fed' already") as caught:
                await asyncio.to_thread(hub.create, "fed", tmp_path / "parts", 1)
            assert "zk0-hub federation remove fed" in caught.value.hint
            assert await asyncio.to_thread(main, ["--dir", str(hub.folder), "federation", "remove", "fed"]) == 0
            assert capsys.readouterr().out.splitlines()[-1] == "fed: removed"
            assert await states(node) == {"other": ("gathering", -1)}
            with pytest.raises(RefusedError, match="there is no federation 'fed' here") as refused:
                await node.request("task.request", {"federation": "fed"})
            assert refused.value.reason == "no_federation"
            # Its name is free, and the node becomes a member of the new one.
            await asyncio.to_thread(hub.create, "fed", tmp_path / "parts", 1)
            await node.join("fed")
            await node.task("fed", 0)
            with pytest.raises(UsageError, match="fed has published versions") as published:
                await asyncio.to_thread(hub.ask, "federation_remove", name="fed")
            assert "federation finish fed" in published.value.hint
        finally:
            await node.close()

    asyncio.run(play())
    hub.ask("federation_finish", name="other")
    hub.ask("federation_remove", name="other")
    assert kept(hub, digests) == ["base", "exchange", "draft"]  # the new one's as well
    assert not (hub.folder / "federations/other").exists() and (hub.folder / "federations/fed").exists()
    hub.stop()
    hub.start()
    assert [f["name"] for f in hub.ask("federation_list")] == ["fed"]
    assert "federation.remove" in [a["action"] for a in hub.ask("audit")]
    assert hub.events("a background task failed") == []


def test_a_name_taken_anew_at_once_keeps_its_folder(tmp_path: Path) -> None:
    """What was removed is deleted late, and under another name."""
    make_parts(tmp_path / "parts", 1000)
    assert main(["--dir", str(tmp_path / "hub"), "init", "--listen", f"127.0.0.1:{free_port()}", "--name", "t"]) == 0
    parts = [tmp_path / "parts" / n for n in ("spec.json", "base.safetensors", "exchange.safetensors")]
    toml = TOML.format(nodes=2, versions=0, dtype="bfloat16", deadline_s=600)

    async def play() -> None:
        hub, free = Hub(tmp_path / "hub"), threading.Event()
        try:
            await founding.from_files(hub, "fed", toml, "admin:me", *parts)
            row = hub.ledger.federation("fed")
            threads = ThreadPoolExecutor(1)  # which the loop's end shuts down
            asyncio.get_running_loop().set_default_executor(threads)
            threads.submit(free.wait, 60)  # the disk is slow
            removing = asyncio.create_task(founding.remove(hub, hub.federations["fed"], "admin:me"))
            await until(lambda: "fed" not in hub.federations, "the name is free")
            hub.ledger.create("fed", toml, row["draft_spec"], row["base"], row["exchange"], "admin:me")
            hub.add("fed")
            free.set()
            await removing
            assert [p.name for p in (tmp_path / "hub/federations").iterdir()] == ["fed"]
            assert (tmp_path / "hub/federations/fed/federation.toml").read_text() == toml
            hub.federations["fed"].problem = "version 0 cannot be published: the disk is full"
            stewardship.finish(hub.federations["fed"], "admin:me")
            assert not hub.federations["fed"].problem, "what is not to come any more is no trouble"
        finally:
            free.set()
            await hub.close()

    asyncio.run(play())


def test_the_members_of_one_that_was_removed_link_anew(hub: HubProcess, tmp_path: Path) -> None:
    """So they say what they are members of, and hear that there is none, also where another came at once."""
    make_parts(tmp_path / "parts", 1000)
    made(hub, "fed", tmp_path / "parts")

    async def play() -> None:
        (node,) = await cast(hub, tmp_path, 1, join="fed")
        try:
            phases: list[str] = []
            assert node.link is not None
            node.link.on_state.append(lambda state: phases.append(state.phase))
            await asyncio.to_thread(hub.ask, "federation_remove", name="fed")
            await until(lambda: "connected" in phases and len(phases) > 1, "a new link")
        finally:
            await node.close()

    asyncio.run(play())
    told = [json.loads(line) for line in (hub.folder / "log/hub.log").read_text().splitlines()]
    assert any(line["event"] == "federation removed" and line["nodes"] == 1 for line in told)
