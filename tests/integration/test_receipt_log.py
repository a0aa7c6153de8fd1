"""The receipt log between a real hub and a node: proofs, what verifies offline, and a hub that rewrites its history."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hub_cast import HubProcess, TestNode, make_parts
from linked import world

from zk0d.ctl.main import main as zk0ctl
from zk0d.daemon.evidence import Evidence
from zk0d.daemon.report import health
from zk0d.daemon.store import Hub, Store, Update
from zk0d.durable import canonical_json, digest_of
from zk0d.errors import RefusedError, UsageError


async def contribute(node: TestNode, store: Store, spec: Any, version: int) -> str:
    """One update, merged; its receipts end in the node's state file as a daemon would put them there."""
    task = await node.task("pick", version)
    offer = node.prepare(spec, task, node.delta(spec, task))
    update = digest_of(offer["statement"])
    store.add_task({**task, "local_steps": 1})
    store.add_update(
        Update(update, task["id"], "pick", offer["statement"], offer["signature"], "p", 1, "waiting", "", 0)
    )
    await node.give(offer, until=lambda r: r["new_version"] == version + 1)
    for kind, body in node.pushes:
        if kind == "receipt" and json.loads(body["receipt"])["update"] == update:
            store.add_receipt(update, "pick", body["receipt"], body["signature"])
    return update


def verified(state: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = zk0ctl(["--state", str(state), "receipts", "verify", "--json"])
    return code, json.loads(capsys.readouterr().out)


async def life(tmp_path: Path, hub: HubProcess, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = make_parts(tmp_path / "parts", 1000)
    hub.create("pick", tmp_path / "parts", 1)
    node = TestNode(tmp_path, "a")
    await node.enrol(hub)
    await node.connect()
    assert node.link is not None
    await node.join("pick")
    store = Store(state / "zk0d.db")
    told = Hub("test", node.invitation.host, node.invitation.port, node.identity.node_id, node.receipt_key, 1.0)
    store.set_hub(told)
    evidence = Evidence(store, lambda: None, clock=lambda: 0.0)
    try:
        update = await contribute(node, store, spec, 0)
        await evidence.turn(node.link, told)
        entries = store.entries()
        assert [e.position for e in entries] == [0, 1] and {e.update for e in entries} == {update}
        receipt = json.loads(entries[-1].receipt)
        assert receipt["claimed"] == {"samples": receipt["samples"], "steps": 5}
        assert receipt["verified"]["norm"] > 0 and receipt["verified"]["bytes"] > 2000
        assert receipt["verified"]["within_s"] >= 0
        code, found = verified(state, capsys)
        assert (code, found["in_log"], found["log_entries"], found["problems"]) == (0, 2, 2, [])

        # The merge's receipt was lost on the way: the log has it.
        hub.stop()
        with sqlite3.connect(hub.folder / "hub.db") as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()
        shutil.copy(hub.folder / "hub.db", tmp_path / "past.db")
        hub.start()
        node.pushes.clear()
        store.set_federation("pick", version=1)
        second = await contribute(node, store, spec, 1)
        first_only = next(b for k, b in node.pushes if k == "receipt")
        assert json.loads(first_only["receipt"])["update"] == second
        store._do("DELETE FROM log_entries WHERE update_digest = ? AND leaf != ?", second, store.entries()[-2].leaf)
        await evidence.turn(node.link, told)
        assert [e.position for e in store.entries()] == [0, 1, 2, 3]

        # The hub goes back to an older state and signs on from there: a shrunken log, later a forked one.
        for more, said in ((0, "shrank from 4 to 2"), (1, "two different logs of 4 entries|does not continue")):
            if more == 0:
                hub.stop()
                for left in hub.folder.glob("hub.db*"):
                    left.unlink()
                shutil.copy(tmp_path / "past.db", hub.folder / "hub.db")
                hub.start()
            else:
                task = await node.task("pick", 1)
                offer = node.prepare(spec, task, {n: v * 2 for n, v in node.delta(spec, task).items()}, samples=3)
                await node.give(offer, until=lambda r: r["new_version"] == 2)
            evidence = Evidence(store, lambda: None, clock=lambda: 0.0)
            evidence._next = -1.0
            await evidence.turn(node.link, told)
            log = store.get("log")
            assert log["state"] == "refused", log
            assert any(part in log["text"] for part in said.split("|")), log
            assert store.heads()[-1].size == 4, "the kept head was replaced"
        code, found = verified(state, capsys)
        assert code == 1 and "refused" in found["problems"][0] and found["conflict"]["kept"]
        assert json.loads(found["conflict"]["shown"])["size"] == 2

        # The maintainer says that the hub was restored: the operator believes it from here on, and nothing is lost.
        assert zk0ctl(["--state", str(state), "receipts", "accept-head"]) == 64
        assert "rewrites its history" in capsys.readouterr().out
        first, last = store.heads()
        assert (first.size, last.size) == (2, 4) and await evidence.agreed(node.link, told) == first.stored_at
        assert (await evidence.accept(node.link, told)) == {"kept": 4, "accepted": 4}
        assert zk0ctl(["--state", str(state), "receipts", "accept-head"]) == 64
        said_now = capsys.readouterr()
        assert "nothing to accept" in said_now.err and said_now.out == ""  # no alarm where there is no reason for one
        with pytest.raises(UsageError, match="nothing to accept"):
            await evidence.accept(node.link, told)
        evidence = Evidence(store, lambda: None, clock=lambda: 0.0)
        await evidence.turn(node.link, told)
        assert await evidence.agreed(node.link, told) == math.inf
        assert store.get("log")["state"] == "good" and health(store, None) == []
        assert [(e.position, e.set_aside is None) for e in store.entries()] == [
            (0, True), (1, True), (None, False), (None, False)]  # fmt: skip
        code, found = verified(state, capsys)
        assert (code, found["in_log"], found["lost_by_log"], found["signatures_good"]) == (0, 2, 2, 4), found
        past = store._rows("SELECT size FROM log_heads_past ORDER BY size")
        assert [r["size"] for r in past] == [2, 4] and store.get("log_conflicts_past")[0]["kept"]

        # Tampering with what is stored shows without the hub.
        forged = canonical_json({**receipt, "weight": 0.99})
        store._do("UPDATE log_entries SET receipt = ? WHERE position = 1", forged)
        code, found = verified(state, capsys)
        assert code == 1 and found["signatures_good"] == 3
        assert zk0ctl(["--state", str(state), "receipts", "list"]) == 0
        assert "merged into 1" in capsys.readouterr().out
    finally:
        store.close()
        await node.close()


def test_the_log_is_proved_and_watched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub, state = HubProcess(tmp_path / "hub"), tmp_path / "node"
    state.mkdir()
    hub.start()
    try:
        asyncio.run(life(tmp_path, hub, state, capsys))
    finally:
        hub.stop()


def test_a_hub_without_a_log_is_worked_with(tmp_path: Path) -> None:
    """An older hub answers `unknown_type`: that is noted once, and is no problem."""

    async def answer(node: str, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        raise RefusedError(f"unknown message type {kind!r}", reason="unknown_type")

    async def run(store: Store) -> None:
        async with world(tmp_path) as old:
            old.answer = answer
            async with old.node("a") as link:
                await Evidence(store, lambda: None).turn(link, Hub("old", "127.0.0.1", old.port, "a", b"", 1.0))

    (tmp_path / "state").mkdir()
    store = Store(tmp_path / "state" / "zk0d.db")
    asyncio.run(run(store))
    assert store.get("log")["state"] == "absent" and health(store, None) == []
    assert [e["text"] for e in store.events()] == [store.get("log")["text"]]
    store.close()
