"""Strategies of the installed Flower package, in the worker that the hub starts; against numpy, bytes twice the same."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_cast import TOML, HubProcess, TestNode, make_parts, until

from zk0d.errors import ConfigError, WorkerError
from zk0d.hub.aggregate import first_master
from zk0d.hub.flower import look
from zk0d.hub.main import main
from zk0d.model.blobs import BlobStore
from zk0d.model.payload import Payload, write_exchange
from zk0d.supervise import Worker


def run(folder: Path, strategy: str, tag: str) -> tuple[str, np.ndarray, list[np.ndarray]]:
    spec = make_parts(folder / "p", elements=600)
    (folder / "spec").write_bytes(spec.to_bytes())
    first_master(spec, folder / "p/exchange.safetensors", folder / "p/base.safetensors", folder / "m")
    rng, updates = np.random.default_rng(3), []
    for i in range(5):
        values = {t.name: rng.standard_normal(t.shape, dtype=np.float32) for t in spec.exchange}
        write_exchange(folder / f"u{i}", spec, values.__getitem__)
        updates.append([str(folder / f"u{i}"), (0.1, 0.1, 0.2, 0.2, 0.4)[i], 1.0])
    job = {"strategy": strategy, "version": 1, "spec": str(folder / "spec"), "master": str(folder / "m"),
           "published": str(folder / "p/exchange.safetensors"),
           "updates": updates, "out_master": str(folder / f"{tag}m"), "out_published": str(folder / f"{tag}p")}  # fmt: skip

    async def work() -> str:
        worker = await Worker.start(sys.executable, "zk0d.hub.flower", job, folder / tag, folder / "log")
        try:
            return str((await worker.wait())["master"])
        finally:
            if worker.running:
                await worker.kill()

    digest = asyncio.run(work())
    with Payload.open(folder / "m") as old, Payload.open(folder / f"{tag}m") as new:
        base, moved = old.float32("head.weight").copy(), new.float32("head.weight").copy()
    deltas = []
    for i in range(5):
        with Payload.open(folder / f"u{i}") as payload:
            deltas.append(payload.float32("head.weight").copy())
    return digest, moved - base, deltas


def test_strategies(tmp_path: Path) -> None:
    digest, moved, deltas = run(tmp_path, "FedMedian", "a")
    np.testing.assert_allclose(moved, np.median(np.stack(deltas), axis=0), atol=1e-5)
    assert run(tmp_path, "FedMedian", "b")[0] == digest
    _, moved, deltas = run(tmp_path, "FedAvg", "c")
    np.testing.assert_allclose(moved, np.tensordot((0.1, 0.1, 0.2, 0.2, 0.4), np.stack(deltas), 1), atol=1e-5)
    _, moved, deltas = run(tmp_path, "FedTrimmedAvg", "d")
    np.testing.assert_allclose(moved, np.sort(np.stack(deltas), axis=0)[1:4].mean(axis=0), atol=1e-5)


def test_no_such_strategy(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="no strategy 'FedNothing'"):
        run(tmp_path, "FedNothing", "a")


def test_a_strategy_that_does_not_exist_is_refused_where_it_is_set(tmp_path: Path) -> None:
    """And not after a day of training, when the first merge fails."""
    make_parts(tmp_path / "parts", 600)
    good = TOML.format(nodes=2, versions=1, dtype="bfloat16", deadline_s=600)
    bad = good + '[merge]\nstrategy = "flower:FedMedan"\n'
    parts = str(tmp_path / "parts")
    with HubProcess(tmp_path / "hub", f'python = "{sys.executable}"\n') as hub:
        with pytest.raises(ConfigError, match=r"f\.toml: merge\.strategy = 'flower:FedMedan'.*no strategy") as caught:
            hub.ask("federation_create", name="fed", toml=bad, where="f.toml", parts=parts)
        assert "FedMedian" in caught.value.hint and hub.ask("federation_list") == []
        assert hub.ask("federation_create", name="fed", toml=good, parts=parts)["warning"] == ""
        with pytest.raises(ConfigError, match=r"federation fed: merge\.strategy = 'flower:FedMedan'"):
            hub.ask("federation_set", name="fed", toml=bad)
        shown = hub.ask("federation_set", name="fed", toml=bad.replace("FedMedan", "FedMedian"))
        assert shown["warning"] == "" and "merge.strategy" in shown["changed"]


def test_a_hub_that_cannot_run_flower_says_so_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_parts(tmp_path / "parts", 600)
    toml = tmp_path / "f.toml"
    toml.write_text(
        TOML.format(nodes=2, versions=1, dtype="bfloat16", deadline_s=600) + '[merge]\nstrategy = "flower:FedMedian"\n'
    )
    with HubProcess(tmp_path / "hub") as hub:  # no worker of it runs
        command = ["--dir", str(hub.folder), "federation"]
        assert main([*command, "create", "fed", "--config", str(toml), "--from", str(tmp_path / "parts")]) == 0
        assert "zk0-hub: no version can be merged yet: zk0d.hub.flower" in capsys.readouterr().err
        assert main([*command, "set", "fed", "--config", str(toml)]) == 0
        assert "no version can be merged yet" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "flwr.serverapp", None)
    assert look("FedMedian")["missing"].startswith("flwr is not installed")


def test_a_federation_merged_by_flower(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path / "hub", f'python = "{sys.executable}"\nattempts = 1\nevaluation_timeout_s = 0.1\n')
    hub.start()
    spec = make_parts(tmp_path / "parts")
    toml = (
        TOML.format(nodes=2, versions=1, dtype="bfloat16", deadline_s=600) + '[merge]\nstrategy = "flower:FedMedian"\n'
    )
    hub.ask("federation_create", name="fed", toml=toml, parts=str(tmp_path / "parts"))

    async def play() -> None:
        nodes = [TestNode(tmp_path, f"node{i}") for i in range(2)]
        try:
            for node in nodes:
                await node.enrol(hub)
                await node.connect()
                await node.join("fed", mean=1.0)
            for node in nodes:
                task = await node.task("fed", 0)
                await node.fetch(task["version_digest"])
                offer = node.prepare(spec, task, node.delta(spec, task))
                await node.give(offer)
                if node is nodes[0]:  # spoilt on the hub's disk: no fault of either node
                    path = BlobStore(hub.folder / "blobs").path(json.loads(offer["statement"])["payload"])
                    path.chmod(0o600)
                    path.write_bytes(path.read_bytes()[:-2] + b"\x80\x7f")
            await until(lambda: bool(nodes[0].refusals), "the spoilt update is refused", 180)
            (refusal,) = nodes[0].refusals.values()
            assert "the hub has lost its bytes" in refusal["reason"] and not nodes[1].refusals
            task = await nodes[0].task("fed", 0)
            await nodes[0].give(nodes[0].prepare(spec, task, nodes[0].delta(spec, task)))
            await until(lambda: hub.ask("federation_show", name="fed")["version"] == 1, "Flower's version", 180)
        finally:
            for node in nodes:
                await node.close()

    try:
        asyncio.run(play())
        assert hub.ask("federation_show", name="fed")["phase"] == "finished"
    finally:
        hub.kill()
