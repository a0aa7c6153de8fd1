"""A round through hub, link and nodes, with no training: wall time, memory, the merge itself, and random kills.

Nodes give base + a constant. Flower's installed release does the same work in turn (bench/_round_flower.py). The
nodes' state is on tmpfs, since they stand for other machines; the hub's is on the disk, with fsync.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import numpy as np
from _harness import RESULTS, arguments, revision, write
from _round_flower import flower_rounds
from _round_kills import killing
from _round_world import World, make_parts, shapes

from zk0d.hub.aggregate import merge
from zk0d.model.codec import BLOCK, decode_bfloat16
from zk0d.model.payload import Payload, write_exchange

MB = 1_000_000
SIZES = {"100mb": (100, 4, 3), "900mb": (900, 12, 2)}
"""MB at full size, MB with --small, rounds measured after the first."""
PARTS = ("zk0-100mb", "flower-100mb", "zk0-900mb", "flower-900mb", "growth", "merge", "kills")


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
        make_parts(disk / "parts", dtype=dtype, shapes=shapes(int(mb * MB), dtype))
        world = World(disk / "hub", tmpfs, nodes)
        world.prepare(disk / "parts", dtype)
        shutil.rmtree(disk / "parts")
        try:
            world.start_hub()
            world.broker.ready()
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
    """Seconds of our merge of bfloat16 updates (a version written, hashed and flushed to the disk), and of reading them
    once and a blocked numpy weighted sum, which writes nothing: the files are in the page cache for both."""
    with folders() as (disk, _):
        spec = make_parts(disk, shapes=shapes(int(mb * MB), "bfloat16"))
        rng = np.random.default_rng(3)
        files = []
        for i in range(updates):
            path = disk / f"update{i}.safetensors"
            write_exchange(path, spec, lambda n: rng.standard_normal(spec.exchange[0].shape, dtype=np.float32))
            files.append((path, 1.0 / updates))
        best_limit = best = float("inf")
        for _ in range(5):
            began = time.perf_counter()
            _limit(files)
            best_limit = min(best_limit, time.perf_counter() - began)
            for name in ("master", "published"):  # each merge makes new files, as the hub's do
                (disk / name).unlink(missing_ok=True)
            began = time.perf_counter()
            merge(
                spec,
                (disk / "base.safetensors", disk / "exchange.safetensors"),
                files,
                disk / "master",
                disk / "published",
            )
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


def measure(part: str, small: bool, seed: int, kills: int) -> dict[str, Any]:
    """What one part gives: figures, and `detail` of it."""
    kind, _, label = part.partition("-")
    if kind in ("zk0", "flower"):
        mb, little, count = SIZES[label]
        size, count = (little, min(count, 1)) if small else (mb, count)
        if kind == "zk0":
            ours = rounds(4, size, count)
            made = {f"round_wall_s_{label}": ours["wall_s"], "detail": ours}
            if label == "900mb":
                made |= {"hub_rss_mb_900mb_n4": ours["hub_rss_mb"], "node_rss_mb_900mb": ours["node_rss_mb"]}
            return made
        # At 900 MB one round of Flower's is minutes: each of its rounds does the same from the beginning.
        theirs, why = flower_rounds(4, size, 1 if label == "900mb" else count, 150)
        if why:
            print(f"Flower at {label}: no figure: {why}")
        return {f"flower_wall_s_{label}": theirs and theirs["wall_s"], "detail": theirs or why}
    if kind == "growth":
        two, eight = (rounds(n, 4 if small else 200, 1)["hub_rss_mb"] for n in (2, 8))
        return {"hub_rss_growth_2_to_8": eight / two - 1, "detail": {"hub_rss_mb_n2": two, "hub_rss_mb_n8": eight}}
    if kind == "merge":
        found = merging(10 if small else 200)
        return {"merge_vs_limit": found["merge_s"] / found["limit_s"], "detail": found}
    with folders() as (disk, tmpfs):
        told = killing(disk, tmpfs, kills or (6 if small else 200), seed)
    return {**{k: told.pop(k) for k in ("kills", "lost", "double_counted", "bytes_equal")}, "detail": told}


def before(small: bool) -> dict[str, Any]:
    """The parts an earlier run of the same sizes left: the whole takes longer than one has a machine to oneself."""
    try:
        record = json.loads((RESULTS / "round.json").read_text())
        return dict(record["parts"]) if record["small"] == small else {}
    except (OSError, ValueError, KeyError):
        return {}


def figures_of(parts: dict[str, Any]) -> dict[str, Any]:
    """All figures, ratios included."""
    figures = {
        k: v for part in PARTS if part in parts for k, v in parts[part].items() if k not in ("detail", "at", "revision")
    }
    for label in SIZES:
        ours, theirs = figures.get(f"round_wall_s_{label}"), figures.get(f"flower_wall_s_{label}")
        figures[f"round_wall_vs_flower_{label}"] = ours / theirs if ours and theirs else None
        detail = parts.get(f"flower-{label}", {}).get("detail")
        if ours and isinstance(detail, dict) and "unfinished_after_s" in detail:
            figures[f"round_wall_vs_flower_{label}_at_most"] = ours / detail["unfinished_after_s"]
    return figures


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--only", default=",".join(PARTS), help=f"parts, of {', '.join(PARTS)}; the others' last figures are kept"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the kills; default: a random one, printed")
    parser.add_argument("--kills", type=int, default=0)
    options = parser.parse_args()
    only = options.only.split(",")
    if unknown := set(only) - set(PARTS):
        sys.exit(f"unknown parts: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # what was started is ended, not left
    seed = options.seed or random.SystemRandom().randrange(1, 1 << 30)
    parts = {} if only == list(PARTS) else before(options.small)
    for part in only:
        made = measure(part, options.small, seed, options.kills)
        parts[part] = {**made, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "revision": revision()}
    write("round", options.small, {"nodes": 4, "dtype": "float32", "seed": seed}, figures_of(parts),
          ("flwr", "pyzmq", "cryptography", "numpy"), parts=parts)  # fmt: skip


if __name__ == "__main__":
    main()
