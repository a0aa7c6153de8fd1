"""A hub that has made ten thousand versions: everyday work costs what it did when there were a hundred, by SQLite's own
count of steps; and which of so many versions are kept.

Not for the rules themselves (test_hub_rounds.py, test_hub_outputs.py).
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hub_cast import TOML, free_port, make_parts, stats

from zk0d.errors import RefusedError
from zk0d.hub import founding
from zk0d.hub.admin import Admin
from zk0d.hub.main import main
from zk0d.hub.service import Hub
from zk0d.model.leaves import name_of

NODES = ("node-a", "node-b", "node-c")


def digest(kind: str, number: int) -> str:
    return name_of(f"{kind} {number}".encode())


def fill(hub: Hub, versions: int) -> None:
    """So many versions of one federation, each made of two updates, taken by all nodes and evaluated; tasks that
    nobody answered, an update in five of them refused, and one admitted that waits."""
    numbers = range(1, versions + 1)
    with hub.store.write() as db:
        db.executemany(
            "INSERT INTO versions (federation, number, digest, master, size, created_at, merge_s, updates, samples,"
            " evaluation, loss, result) VALUES ('fed', ?, ?, ?, 9, ?, 0.1, 2, 80, 'done', ?, '{}')",
            [(n, digest("version", n), digest("master", n), float(n), 1.0 + 1.0 / n) for n in numbers],
        )
        rows = [(n, node) for n in range(versions) for node in NODES]
        db.executemany(
            "INSERT INTO tasks (task, federation, node, version, body, created_at, answered)"
            " VALUES (?, 'fed', ?, ?, '{}', ?, ?)",
            [(f"task {n} {node}", node, n, float(n), int(node != NODES[2])) for n, node in rows],
        )
        db.executemany(
            "INSERT INTO updates (digest, federation, task, node, base_version, payload, size, samples, statement,"
            " signature, state, norm, offered_at, decided_at, new_version, weight) VALUES"
            " (?, 'fed', ?, ?, ?, ?, 9, 40, CAST('{\"loss_first\":1,\"loss_last\":1}' AS BLOB), x'', ?, 1.0, ?, ?, ?, 0.5)",
            [
                (digest(f"update {node}", n), f"task {n} {node}", node, n, digest(f"payload {node}", n),
                 "refused" if node == NODES[1] and n % 5 == 0 else "merged", float(n), float(n),
                 None if node == NODES[1] and n % 5 == 0 else n + 1)
                for n, node in rows if node != NODES[2]
            ],
        )  # fmt: skip
        db.executemany(
            "INSERT INTO downloads (node, digest, federation, size, at) VALUES (?, ?, 'fed', 9, ?)",
            [(node, digest("version", n), float(n)) for n in numbers for node in NODES],
        )
        db.executemany(
            "INSERT INTO audit (at, actor, action, subject, detail) VALUES (?, 'hub', 'version', 'fed', '{}')",
            [(float(n),) for n in numbers],
        )


def ended(work: Coroutine[Any, Any, Any]) -> None:
    """Run what waits for nothing to its end."""
    with pytest.raises(StopIteration):
        work.send(None)


async def steps(hub: Hub, work: Callable[[], Any]) -> int:
    """How many instructions SQLite's machine runs for it, in tens."""
    count = [0]

    def tick() -> int:
        count[0] += 1
        return 0

    hub.store._db.set_progress_handler(tick, 10)
    try:
        if inspect.isawaitable(found := work()):
            await found
    finally:
        hub.store._db.set_progress_handler(None, 0)
    return count[0]


async def costs(folder: Path, versions: int) -> dict[str, int]:
    """What everyday work costs a hub in `folder` that has made so many versions."""
    hub = Hub(folder)
    try:
        parts = [folder.parent / "parts" / n for n in ("spec.json", "base.safetensors", "exchange.safetensors")]
        toml = TOML.format(nodes=3, versions=0, dtype="bfloat16", deadline_s=600)
        toml += '[publish]\nrepo = "us/cubes"\nkeep_last = 5\nkeep_every = 2000\n[evaluation]\npatience = 3\n'
        await founding.from_files(hub, "fed", toml, "admin:me", *parts)
        with hub.store.write() as db:
            for node in NODES:
                db.execute("INSERT INTO nodes (node, label, state, key, csr, address, requested_at)"
                           " VALUES (?, ?, 'approved', ?, x'', '', 0)", (node, node, node))  # fmt: skip
        for node in NODES:
            hub.ledger.members.join("fed", node, stats(0.0), [])
        runner = hub.federations["fed"]
        await runner.open_if_ready()
        fill(hub, versions)
        config, retention = hub.federations["fed"].config, hub.ledger.retention
        retention.retire("fed", config, (), at_once=versions)
        assert set(retention.kept("fed")) >= {0, *range(versions - 4, versions + 1)}
        assert len(retention.kept("fed")) <= 12 + versions // 2000
        newest = digest("version", versions)
        work: dict[str, Callable[[], Any]] = {
            "snapshot": lambda: hub.ledger.snapshot("fed"),
            "headline": runner.headline,
            "status": lambda: ended(Admin(hub).status({}, None)),  # type: ignore[arg-type]
            "what people did": lambda: ended(Admin(hub).audit({}, None)),  # type: ignore[arg-type]
            "a task": lambda: runner.task(NODES[0]),
            "the newest version": runner.latest,
            "a download": lambda: hub._may_fetch(NODES[0], newest),
            "a stranger's download": lambda: hub._may_fetch("node-z", newest),
            "is a master needed": lambda: hub.ledger.blob_needed(digest("master", 7)),
            "is a payload left over": lambda: hub.ledger.leftover(digest("payload node-a", 7)),
            "after a merge": lambda: runner._merging._prune(versions),
            "retention": lambda: retention.retire("fed", config, ()),
            "folders kept": lambda: hub.evaluations.folders.keep("fed"),
            "folders lacking": lambda: hub.evaluations.folders._lacking("fed"),
            "early stop": lambda: hub.evaluations._stop_early("fed"),
            "what is the matter": lambda: hub.ledger.assessments.last_failed("fed"),
            "what to push": lambda: hub.outlets.due("fed"),
            "what to evaluate": hub.ledger.assessments.to_evaluate,
            "its metrics": lambda: hub.evaluations.metrics.lines("fed", versions),
            "norms so far": lambda: hub.ledger.past_norms("fed"),
        }
        found = {name: await steps(hub, do) for name, do in work.items()}
        assert hub._may_fetch(NODES[0], newest) and not hub._may_fetch("node-z", newest)
        with pytest.raises(RefusedError, match="version 7 of fed is not kept any more: ask for the newest"):
            hub._may_fetch(NODES[0], digest("version", 7))
        return found
    finally:
        await hub.close()


def test_ten_thousand_versions_cost_what_a_hundred_do(tmp_path: Path) -> None:
    make_parts(tmp_path / "parts", elements=100)
    found = {}
    for versions in (100, 10_000):
        folder = tmp_path / f"hub{versions}"
        assert main(["--dir", str(folder), "init", "--listen", f"127.0.0.1:{free_port()}", "--name", "t"]) == 0
        found[versions] = asyncio.run(costs(folder, versions))
    print(found)
    for name, few in found[100].items():
        assert found[10_000][name] <= 2 * few + 50, (name, few, found[10_000][name])
