"""Each schedule changes what a node receives: the real hub's reply to `task.request`, packed as it goes over the link.

Not for the formulas (test_hub_schedules.py). zk0 computed a rate too, and then sent the constant.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hub_cast import TOML, free_port, make_parts, stats

from zk0d.durable import canonical_json
from zk0d.hub import founding
from zk0d.hub.aggregate import Merged
from zk0d.hub.main import main
from zk0d.hub.receipts import read_statement
from zk0d.hub.rounds import Merge, shares
from zk0d.hub.service import Hub
from zk0d.link.messages import Message, decode, encode
from zk0d.model.leaves import name_of

NODES = ("node-a", "node-b")


async def tasks(hub: Hub, node: str) -> dict[str, Any]:
    """The node's task as it is read from the wire."""
    reply = await hub._request(node, "task.request", {"federation": "fed"})
    return dict(decode(list(encode(Message("reply", 1, reply, re=1)))).body["task"])


async def received(folder: Path, settings: str, heldout: list[float], own: list[float]) -> list[dict[str, Any]]:
    """What node a is given for each version, where the versions have these held-out losses, and a says these of its own
    training."""
    hub = Hub(folder)
    try:
        parts = [folder.parent / "parts" / name for name in ("spec.json", "base.safetensors", "exchange.safetensors")]
        toml = TOML.format(nodes=2, versions=0, dtype="bfloat16", deadline_s=600)
        toml = toml.replace("local_steps = 5", "local_steps = 5\nlr = 0.1\nmu = 0.2") + f"[schedule]\n{settings}\n"
        await founding.from_files(hub, "fed", toml, "admin:me", *parts)
        with hub.store.write() as db:
            for node in NODES:
                db.execute("INSERT INTO nodes (node, label, state, key, csr, address, requested_at)"
                           " VALUES (?, ?, 'approved', ?, x'', '', 0)", (node, node, node))  # fmt: skip
        for node in NODES:
            hub.ledger.members.join("fed", node, stats(0.0), [])
        await hub.federations["fed"].open_if_ready()
        got = []
        for version, loss in enumerate(heldout):
            hub.ledger.assessments.evaluated("fed", version, loss, {})
            for node in NODES:
                task = await tasks(hub, node)
                if node == NODES[0]:
                    got.append(task)
                last = own[version] if node == NODES[0] else 1.0
                value = {"federation": "fed", "task": task["id"], "node": node, "base_version": version,
                         "payload": name_of(task["id"].encode()), "size": 9, "samples": 4, "steps": 5,
                         "loss_first": 1.0, "loss_last": last}  # fmt: skip
                statement = read_statement(canonical_json(value), bytes(64))
                hub.ledger.offer(statement)
                hub.ledger.admit(statement.digest, 1.0)
            merge = Merge(version + 1, shares(version, list(hub.ledger.snapshot("fed").buffer)))
            hub.ledger.plans.begin("fed", merge)
            hub.ledger.commit_merge("fed", merge, Merged(f"m{version}", f"v{version}", 9), 0.1, False, {})
        return got
    finally:
        await hub.close()


@pytest.mark.parametrize(
    ("settings", "heldout", "own", "lr", "mu"),
    [
        ("", [3, 2, 4, 5], [1, 2, 3, 4], [0.1] * 4, [0.2] * 4),
        ('kind = "cosine"\nperiod = 2\nmin_lr = 0.02', [1] * 4, [1] * 4, [0.1, 0.06, 0.02, 0.02], [0.2] * 4),
        ('kind = "cosine_restarts"\nperiod = 2\nstretch = 1', [1] * 4, [1] * 4, [0.1, 0.05, 0.1, 0.05], [0.2] * 4),
        ('kind = "plateau"\npatience = 1\nfactor = 0.5', [3, 2, 2, 2], [1] * 4, [0.1, 0.1, 0.05, 0.025], [0.2] * 4),
        ("adaptive_mu = true", [3, 4, 2, 5], [1] * 4, [0.1] * 4, [0.2, 0.3, 0.3, 0.4]),
        ("node_lr = true", [1] * 4, [1, 2, 3, 2], [0.1, 0.1, 0.05, 0.025], [0.2] * 4),
    ],
    ids=["constant", "cosine", "warm restarts", "reduce on plateau", "adaptive mu", "a node's own rate"],
)  # fmt: skip
def test_what_a_node_receives(
    tmp_path: Path, settings: str, heldout: list[float], own: list[float], lr: list[float], mu: list[float]
) -> None:
    make_parts(tmp_path / "parts", elements=100)
    assert main(["--dir", str(tmp_path / "hub"), "init", "--listen", f"127.0.0.1:{free_port()}", "--name", "t"]) == 0
    got = asyncio.run(received(tmp_path / "hub", settings, [float(x) for x in heldout], [float(x) for x in own]))
    assert [t["version"] for t in got] == [0, 1, 2, 3] and json.dumps(got)
    assert [t["lr"] for t in got] == pytest.approx(lr) and [t["mu"] for t in got] == pytest.approx(mu)
