"""`kill -9` of hub and nodes at random moments, for bench/round.py: what is lost, counted twice, or differs."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

from _round_world import World, make_parts, shapes

NODES = 3
_PAUSE_S = 2.5
"""Between two kills at most: long enough for rounds to get on, short enough to hit each of their stages."""


def killing(disk: Path, tmpfs: Path, kills: int, seed: int) -> dict[str, Any]:
    """Run a federation under `kills` kills, then the same one undisturbed, from one prepared state.

    lost: updates whose receipt a node holds and that are in no version. double_counted: updates in several versions or
    more than once in one. bytes_equal: each version's digest is that of the undisturbed run.
    """
    print(f"kills: {kills} with seed {seed}", flush=True)
    parts = disk / "parts"
    make_parts(parts, shapes=shapes(200_000, "bfloat16"))
    start = World(disk / "start", tmpfs / "start", NODES, random=True)
    start.prepare(parts, "bfloat16")

    disturbed = _copy(start, disk, tmpfs, "disturbed")
    rng = random.Random(seed)
    names = ["hub", *map(str, range(NODES))]
    _begin(disturbed)
    counts: Counter[str] = Counter()
    for _ in range(kills):
        time.sleep(rng.uniform(0.0, _PAUSE_S))
        name = rng.choice(["hub", rng.choice(names[1:])])
        counts["hub" if name == "hub" else "node"] += 1
        disturbed.kill(name)
        _start(disturbed, name)
    disturbed.broker.ready()
    last = disturbed.version() + 2
    disturbed.wait_version(last, 120)
    disturbed.stop()

    calm = _copy(start, disk, tmpfs, "calm")
    _begin(calm)
    calm.wait_version(last, 60 + 5 * last)
    calm.stop()
    return {**_account(disturbed, calm, last), "kills": kills, "kills_of_hub": counts["hub"],
            "kills_of_nodes": counts["node"], "versions": last, "seed": seed}  # fmt: skip


def _copy(start: World, disk: Path, tmpfs: Path, name: str) -> World:
    shutil.copytree(start.hub, disk / name, ignore=shutil.ignore_patterns("*.sock", "run"))
    shutil.copytree(start.nodes, tmpfs / name, ignore=shutil.ignore_patterns("*.sock", "run"))
    return World(disk / name, tmpfs / name, start.count, random=True)


def _start(world: World, name: str) -> None:
    if name == "hub":
        world.start_hub()
    else:
        world.start_node(int(name))


def _begin(world: World) -> None:
    world.start_hub()
    for index in range(world.count):
        world.start_node(index)


def _account(disturbed: World, calm: World, last: int) -> dict[str, Any]:
    merged = {r[0]: r[1] for r in disturbed.rows("SELECT digest, new_version FROM updates WHERE state = 'merged'")}
    waiting = {r[0] for r in disturbed.rows("SELECT digest FROM updates WHERE state = 'admitted'")}
    held = {
        line
        for i in range(disturbed.count)
        if (path := disturbed.nodes / str(i) / "receipts.txt").exists()
        for line in path.read_text().split()
    }
    per_version: Counter[tuple[int, str]] = Counter()
    for version, node in disturbed.rows("SELECT new_version, node FROM updates WHERE state = 'merged'"):
        per_version[version, node] += 1
    receipts: Counter[str] = Counter(r[0] for r in disturbed.rows("SELECT digest FROM receipts") if r[0] in merged)
    digests = [
        world.rows(f"SELECT number, digest, master FROM versions WHERE number <= {last} ORDER BY number")
        for world in (disturbed, calm)
    ]
    short = [v for v in range(1, last + 1) if sum(n for (w, _), n in per_version.items() if w == v) < disturbed.count]
    return {
        "lost": len(held - set(merged) - waiting) + len(short),
        "double_counted": sum(n - 1 for n in per_version.values()) + sum(n > 2 for n in receipts.values()),
        "bytes_equal": digests[0] == digests[1] and len(digests[0]) == last + 1,
        "updates": len(merged),
    }
