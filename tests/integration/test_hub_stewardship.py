"""A maintainer's hand on a live hub: new settings, freeze, thaw, drain, rollback, synchronous rounds, schedules, noise."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from daemon_process import STOP_S
from hub_cast import TOML, HubProcess, TestNode, cast, make_parts, until

from zk0d.errors import ConfigError, RefusedError, UsageError
from zk0d.hub.store import Store
from zk0d.model.blobs import BlobStore
from zk0d.model.spec import ModelSpec


async def ask(hub: HubProcess, op: str, **fields: Any) -> Any:
    return await asyncio.to_thread(lambda: hub.ask(op, **fields))


async def give(node: TestNode, spec: ModelSpec, version: int, merged: bool = True) -> dict[str, Any]:
    task = await node.task("fed", version)
    await node.fetch(task["version_digest"])
    offer = node.prepare(spec, task, node.delta(spec, task))
    await node.give(offer, lambda r: not merged or r["new_version"] is not None)
    return task


def command(hub: HubProcess, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "zk0d.hub.main", "--dir", str(hub.folder), *arguments],
                          capture_output=True, text=True, cwd=Path(__file__).parents[2])  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_maintainers_year_in_short(hub: HubProcess, tmp_path: Path) -> None:
    spec = make_parts(tmp_path / "parts")
    toml = TOML.format(nodes=2, versions=0, dtype="bfloat16", deadline_s=600).replace(
        "local_steps = 5", 'local_steps = 5\nlr = 0.1\n[schedule]\nkind = "cosine"\nperiod = 4'
    ) + '[merge]\noptimizer = "fedadam"\nlr = 0.01\n'  # fmt: skip
    hub.ask("federation_create", name="fed", toml=toml, parts=str(tmp_path / "parts"))

    async def play() -> None:
        nodes = await cast(hub, tmp_path, 2, join="fed", mean=1.0)
        try:
            # The schedule is what the node receives.
            tasks = await asyncio.gather(*(give(n, spec, 0) for n in nodes))
            assert tasks[0]["lr"] == pytest.approx(0.1)
            task = await nodes[0].task("fed", 1)
            assert task["lr"] == pytest.approx(0.1 * (1 + 2**-0.5) / 2)
            # New settings hold from the next version; the model cannot change.
            with pytest.raises(ConfigError, match=r"new.toml: model.dtype cannot change"):
                await ask(hub, "federation_set", name="fed", where="new.toml", toml=toml.replace("bfloat16", "float32"))
            (tmp_path / "new.toml").write_text(toml.replace("lr = 0.1\n", "lr = 0.2\n"))
            said = await asyncio.to_thread(
                command, hub, "federation", "set", "fed", "--config", str(tmp_path / "new.toml")
            )
            assert said.strip() == "training.lr: 0.1 now, 0.2 from the next version on"
            assert (await nodes[1].task("fed", 1))["lr"] == task["lr"]
            await asyncio.gather(*(give(n, spec, 1) for n in nodes))
            assert (await nodes[1].task("fed", 2))["lr"] == pytest.approx(0.1)
            assert "lr = 0.2\n" in (hub.folder / "federations/fed/federation.toml").read_text()  # as it holds now
            # Frozen: no tasks; what was under way is taken, not merged, and counts after the thaw.
            held = await nodes[0].task("fed", 2)
            assert "frozen at version 2" in await asyncio.to_thread(command, hub, "federation", "freeze", "fed")
            answer = await nodes[1].request("task.request", {"federation": "fed"})
            assert answer["task"] is None and "frozen" in answer["reason"]
            offer = nodes[0].prepare(spec, held, nodes[0].delta(spec, held))
            await nodes[0].give(offer, lambda r: True)
            assert (await ask(hub, "federation_show", name="fed"))["updates_waiting"] == 1
            with pytest.raises(UsageError, match="frozen already"):
                await ask(hub, "federation_freeze", name="fed")
            await ask(hub, "federation_thaw", name="fed")
            # Draining: the task that is out is answered and merged, then nothing more.
            await ask(hub, "federation_drain", name="fed")
            await give(nodes[1], spec, 2)
            await until(lambda: hub.ask("federation_show", name="fed")["version"] == 3, "version 3")
            assert (await ask(hub, "federation_show", name="fed"))["headline"].startswith("drained at version 3")
            await ask(hub, "federation_thaw", name="fed")
            # Rolled back: an old version is the newest again; what came from between no longer counts.
            stale = await nodes[0].task("fed", 3)
            await nodes[0].fetch(stale["version_digest"])
            offer = nodes[0].prepare(spec, stale, nodes[0].delta(spec, stale))
            told = await asyncio.to_thread(command, hub, "federation", "rollback", "fed", "0")
            assert told.startswith("fed: version 4 is out")
            versions = await ask(hub, "versions", name="fed")
            assert versions[4]["digest"] == versions[0]["digest"]
            with pytest.raises(RefusedError, match="rolled back"):
                await nodes[0].give(offer, lambda r: True)
            await asyncio.gather(*(give(n, spec, 4) for n in nodes))
            assert (await ask(hub, "federation_show", name="fed"))["version"] == 5
        finally:
            for node in nodes:
                await node.close()

    asyncio.run(play())
    assert hub.stop() < STOP_S
    store = Store(hub.folder / "hub.db")
    actions = [r["action"] for r in store.all("SELECT action FROM audit ORDER BY id")]
    store.close()
    for action in ("settings", "settings.applied", "freeze", "thaw", "drain", "rollback"):
        assert f"federation.{action}" in actions


@pytest.mark.needs("dp_accounting")
def test_synchronous_private_rounds(hub: HubProcess, tmp_path: Path) -> None:
    spec = make_parts(tmp_path / "parts")
    toml = TOML.format(nodes=3, versions=0, dtype="bfloat16", deadline_s=2).replace(
        "[rounds]", '[rounds]\nmode = "sync"'
    )
    toml = toml.replace("quorum = 1", "quorum = 2") + "[privacy]\nclip_norm = 0.5\nnoise_multiplier = 2.0\n"
    hub.ask("federation_create", name="fed", toml=toml, parts=str(tmp_path / "parts"))

    async def play() -> None:
        nodes = await cast(hub, tmp_path, 3, join="fed", mean=1.0)
        try:
            late = await nodes[2].task("fed", 0)
            await nodes[2].fetch(late["version_digest"])
            await asyncio.gather(*(give(n, spec, 0) for n in nodes[:2]))  # quorum at the deadline
            assert (await ask(hub, "federation_show", name="fed"))["version"] == 1
            offer = nodes[2].prepare(spec, late, nodes[2].delta(spec, late))
            await nodes[2].give(offer, lambda r: True)  # a signed answer; it counts in the next round
            await give(nodes[0], spec, 1)
            receipt = await nodes[2].give(offer, lambda r: r["new_version"] is not None)
            assert receipt["new_version"] == 2
        finally:
            for node in nodes:
                await node.close()

    asyncio.run(play())
    shown = hub.ask("federation_show", name="fed")
    assert shown["privacy"]["versions"] == 2 and shown["privacy"]["epsilon"] > 0
    assert "client-level differential privacy over 2 versions: epsilon" in command(hub, "federation", "show", "fed")
    hub.kill()
    store = Store(hub.folder / "hub.db")
    for row in store.all("SELECT plan, (SELECT origin FROM versions v WHERE v.number = m.version) AS o FROM merges m"):
        assert '"noise": 2.0' in row["o"] and '"seed"' in row["plan"]
    store.close()


def test_what_is_gathered_can_be_mended(hub: HubProcess, tmp_path: Path) -> None:
    """A node that was revoked or left counts no more, and fewer nodes are asked for at once: no version waits for
    nobody, neither version 0 nor one that needs a larger quorum than there are nodes."""
    make_parts(tmp_path / "parts")
    hub.create("fed", tmp_path / "parts", nodes=4)

    async def play() -> None:
        bad, good, gone = nodes = await cast(hub, tmp_path, 3)
        try:
            await bad.join("fed", mean=1000.0)
            await good.join("fed", mean=0.0)
            await gone.join("fed", mean=500.0)
            await ask(hub, "revoke", node=bad.identity.node_id)
            for _ in range(2):
                assert await gone.request("federation.leave", {"federation": "fed"}) == {"state": "left"}
            assert (await gone.request("task.request", {"federation": "fed"}))["reason"].endswith(
                "not joined this federation"
            )
            assert "3 more nodes must join" in await asyncio.to_thread(command, hub, "status")
            file = tmp_path / "fewer.toml"
            fewer = TOML.format(nodes=1, versions=0, dtype="bfloat16", deadline_s=600)
            file.write_text(fewer.replace("target = 1\nquorum = 1", "target = 2\nquorum = 2"))
            change = ("federation", "set", "fed", "--config", str(file))
            assert "rounds.min_nodes: 4 before, 1 at once" in await asyncio.to_thread(command, hub, *change)
            await until(lambda: any(k == "version.new" for k, _ in good.pushes), "version 0 is published")
            latest = await good.request("version.latest", {"federation": "fed"})
            spec = ModelSpec.load(await good.fetch(latest["spec_digest"]))
            assert spec.stats is not None and spec.stats["action"]["mean"] == [0.0] * 6
            # Open, and left to one node: it gets and gives, but the quorum is two.
            with pytest.raises(RefusedError, match="for you"):
                await gone.fetch(latest["digest"])
            await give(good, spec, 0, merged=False)
            assert "the quorum is 2, 1 node left: `zk0" in (await ask(hub, "federation_show", name="fed"))["headline"]
            file.write_text(fewer.replace("local_steps = 5", "local_steps = 5\nlr = 0.5"))
            said = (await asyncio.to_thread(command, hub, *change)).splitlines()
            assert "rounds.quorum: 2 before, 1 at once" in said
            assert "training.lr: 0.0001 now, 0.5 from the next version on" in said
            assert (await good.task("fed", 1))["lr"] == 0.5
            # One that left comes back, with its statistics too late and its work welcome.
            await gone.join("fed", mean=500.0)
            await give(gone, spec, 1)
        finally:
            for node in nodes:
                await node.close()

    asyncio.run(play())


def test_versions_that_are_not_kept_any_more(hub: HubProcess, tmp_path: Path) -> None:
    """The rule of the LeRobot folders holds for the hub's own blobs: what is given up is gone, and is asked for, rolled
    back to and backed up with a clear answer; what a node trains on stays."""
    spec = make_parts(tmp_path / "parts")
    toml = TOML.format(nodes=1, versions=0, dtype="bfloat16", deadline_s=600) + "[publish]\nkeep_last = 3\n"
    hub.ask("federation_create", name="fed", toml=toml, parts=str(tmp_path / "parts"))

    async def play() -> None:
        busy, slow = nodes = await cast(hub, tmp_path, 2, join="fed")
        try:
            await give(busy, spec, 0)
            held = await slow.task("fed", 1)
            for version in range(1, 5):
                await give(busy, spec, version)
            digests = [v["digest"] for v in await ask(hub, "versions", name="fed")]
            there = BlobStore(hub.folder / "blobs")
            await until(lambda: not there.has(digests[2]), "version 2 is let go")
            assert [there.has(d) for d in digests] == [True, True, False, True, True, True]
            await slow.fetch(held["version_digest"])
            with pytest.raises(RefusedError, match="version 2 of fed is not kept any more: ask for the newest"):
                await slow.fetch(digests[2])
            with pytest.raises(UsageError, match=r"version 2 of fed is not kept any more") as refused:
                await ask(hub, "federation_rollback", name="fed", version=2)
            assert refused.value.hint.startswith("go back to one of 0, 1, 3, 4, 5;")
            told = await asyncio.to_thread(command, hub, "backup", str(tmp_path / "copy"))
            assert not BlobStore(tmp_path / "copy" / "blobs").has(digests[2]) and "missing" not in told
            await ask(hub, "federation_rollback", name="fed", version=3)
            await give(busy, spec, 6)
        finally:
            for node in nodes:
                await node.close()

    asyncio.run(play())
    hub.kill()
    hub.start()
    assert hub.ask("federation_show", name="fed")["version"] == 7
