"""A round through hub, link and nodes, with no training: wall time, memory, the merge itself, and random kills.

Nodes give base + a constant. Flower's installed release does the same work in turn (bench/_round_flower.py). The
nodes' state is on tmpfs, since they stand for other machines; the hub's is on the disk, with fsync.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import numpy as np
from _harness import RESULTS, arguments, write
from _round_flower import flower_rounds
from _round_kills import killing
from _round_world import World, make_parts

from zk0d.hub.aggregate import merge
from zk0d.model.codec import BLOCK, decode_bfloat16
from zk0d.model.payload import Payload, write_exchange

MB = 1_000_000
PARTS = ("rounds100", "rounds900", "growth", "merge", "kills")


@contextmanager
def folders() -> Iterator[tuple[Path, Path]]:
    """A folder on the disk and one on tmpfs, both gone at the end."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    disk = Path(tempfile.mkdtemp(prefix="zk0-round-", dir=RESULTS))
    tmpfs = Path(tempfile.mkdtemp(prefix="zk0-round-", dir="/dev/shm"))
    try:
        yield disk, tmpfs
    finally:
        shutil.rmtree(disk, ignore_errors=True)
        shutil.rmtree(tmpfs, ignore_errors=True)


def rounds(nodes: int, mb: float, count: int, dtype: str = "float32") -> dict[str, Any]:
    """Seconds per round after the first, and peak resident MB of the hub's and of one node's processes."""
    with folders() as (disk, tmpfs):
        make_parts(disk / "parts", int(mb * MB), dtype)
        world = World(disk / "hub", tmpfs, nodes)
        world.prepare(disk / "parts", dtype)
        shutil.rmtree(disk / "parts")
        try:
            world.start_hub()
            world.ready()
            for index in range(nodes):
                world.start_node(index)
            world.wait_version(count + 1, 60 + 120 * (count + 1))
            made = [r[0] for r in world.rows("SELECT created_at FROM versions ORDER BY number")]
            merges = [r[0] for r in world.rows("SELECT merge_s FROM versions WHERE number > 0 ORDER BY number")]
        finally:
            world.stop()
        walls = [b - a for a, b in itertools.pairwise(made[1 : count + 2])]
        peaks = [world.peaks[str(i)] for i in range(nodes)]
        return {"wall_s": sorted(walls)[len(walls) // 2], "walls_s": walls, "merge_s": merges,
                "hub_rss_mb": world.peaks["hub"], "node_rss_mb": max(peaks)}  # fmt: skip


def merging(mb: float, updates: int = 8) -> dict[str, float]:
    """Our merge of bfloat16 updates against reading them once and a blocked numpy weighted sum; both write nothing else."""
    with folders() as (disk, _):
        spec = make_parts(disk, int(mb * MB), "bfloat16")
        rng = np.random.default_rng(3)
        files = []
        for i in range(updates):
            path = disk / f"update{i}.safetensors"
            write_exchange(path, spec, lambda n: rng.standard_normal(spec.exchange[0].shape, dtype=np.float32))
            files.append((path, 1.0 / updates))
        best_limit = best = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            _limit(files)
            best_limit = min(best_limit, time.perf_counter() - began)
            began = time.perf_counter()
            merge(spec, disk / "base.safetensors", files, disk / "master", disk / "published")
            best = min(best, time.perf_counter() - began)
        return {"merge_s": best, "limit_s": best_limit}


def _limit(files: list[tuple[Path, float]]) -> None:
    payloads = [(Payload.open(path), weight) for path, weight in files]
    for name in payloads[0][0].names:
        arrays = [(p.tensor(name).reshape(-1), w) for p, w in payloads]
        for start in range(0, arrays[0][0].size, BLOCK):
            total = np.zeros(arrays[0][0][start : start + BLOCK].size, np.float32)
            for array, weight in arrays:
                total += decode_bfloat16(array[start : start + BLOCK]) * np.float32(weight)
        del arrays
    for payload, _ in payloads:
        payload.close()


def measure(only: list[str], small: bool, seed: int, kills: int) -> tuple[dict[str, Any], dict[str, Any]]:
    figures: dict[str, Any] = {}
    detail: dict[str, Any] = {}
    for label, mb, count in (("100mb", 4 if small else 100, 3), ("900mb", 12 if small else 900, 1 if small else 2)):
        if f"rounds{label[:3]}" not in only:
            continue
        ours = rounds(4, mb, count)
        theirs, why = flower_rounds(4, mb, count)
        if theirs is None:
            print(f"Flower at {label}: skipped: {why}")
        figures[f"round_wall_s_{label}"] = ours["wall_s"]
        figures[f"flower_wall_s_{label}"] = None if theirs is None else theirs["wall_s"]
        figures[f"round_wall_vs_flower_{label}"] = None if theirs is None else ours["wall_s"] / theirs["wall_s"]
        detail[label] = {"zk0": ours, "flower": theirs or why}
        if label == "900mb":
            figures["hub_rss_mb_900mb_n4"] = ours["hub_rss_mb"]
            figures["node_rss_mb_900mb"] = ours["node_rss_mb"]
    if "growth" in only:
        two, eight = (rounds(n, 4 if small else 200, 1)["hub_rss_mb"] for n in (2, 8))
        figures["hub_rss_growth_2_to_8"] = eight / two - 1
        detail["growth"] = {"hub_rss_mb_n2": two, "hub_rss_mb_n8": eight}
    if "merge" in only:
        found = merging(10 if small else 200)
        figures["merge_vs_limit"] = found["merge_s"] / found["limit_s"]
        detail["merge"] = found
    if "kills" in only:
        with folders() as (disk, tmpfs):
            told = killing(disk, tmpfs, kills or (6 if small else 200), seed)
        figures.update({k: told.pop(k) for k in ("kills", "lost", "double_counted", "bytes_equal")})
        detail["kills"] = told
    return figures, detail


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {', '.join(PARTS)}")
    parser.add_argument("--seed", type=int, default=0, help="of the kills; default: a random one, printed")
    parser.add_argument("--kills", type=int, default=0)
    options = parser.parse_args()
    only = options.only.split(",")
    if unknown := set(only) - set(PARTS):
        sys.exit(f"unknown parts: {', '.join(sorted(unknown))}")
    seed = options.seed or random.SystemRandom().randrange(1, 1 << 30)
    figures, detail = measure(only, options.small, seed, options.kills)
    write("round", options.small, {"nodes": 4, "dtype": "float32", "seed": seed}, figures,
          ("flwr", "pyzmq", "cryptography", "numpy"), detail=detail)  # fmt: skip


if __name__ == "__main__":
    main()
