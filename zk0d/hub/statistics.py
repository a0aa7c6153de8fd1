"""Merging the nodes' coarse statistics into the one set that a federation normalises with.

Exact pooling of what came: the result is as coarse as what left the nodes, and so is what can be read from it.
Not for making them coarse: that happens on the node, before anything leaves it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from zk0d.errors import RefusedError
from zk0d.model.spec import ModelSpec, Stats

KEYS = ("mean", "std", "min", "max")
MAX_COUNT = 1e12
MAX_FRAMES = 10**8
"""Frames that one node can have recorded: 38 days without a pause at 30 a second."""
ROUNDED = 1.11
"""How far a count may be above the sum of the datasets' frames, as both are to two significant digits."""
MIN_STD = 0.5
"""The step that nodes round to. A smaller spread cannot be told from none, and normalising divides by it."""


def check(value: Any, spec: ModelSpec, frames: int) -> Stats:
    """Statistics from a node, for exactly the spec's vector features. Raises RefusedError naming what is wrong.

    `frames`: what the node's datasets have together, by its own word; its statistics cannot be of more.
    """
    wanted = {n: f.shape[0] for n, f in spec.features.items() if f.dtype != "image"}
    if not isinstance(value, dict) or value.keys() != wanted.keys():
        have = sorted(map(str, value)) if isinstance(value, dict) else []
        raise RefusedError(
            f"statistics of {', '.join(have)[:300] or 'nothing'}; this federation needs {', '.join(sorted(wanted))}",
            "record with the federation's features",
            "bad_stats",
        )
    stats = {name: _feature(name, value[name], size) for name, size in sorted(wanted.items())}
    for name, of in stats.items():
        if of["count"][0] > frames * ROUNDED + 1:
            raise RefusedError(
                f"statistics of {name} are of {of['count'][0]:.0f} frames, the datasets have {frames}",
                reason="bad_stats",
            )
    return stats


def _feature(name: str, value: Any, size: int) -> dict[str, list[float]]:
    if not isinstance(value, dict) or value.keys() != {*KEYS, "count"}:
        raise RefusedError(f"statistics of {name} are not mean, std, min, max and count", reason="bad_stats")
    made = {k: _numbers(name, k, value[k], 1 if k == "count" else size) for k in (*KEYS, "count")}
    count = made["count"][0]
    fits = all(lo <= hi and s >= 0 for lo, hi, s in zip(made["min"], made["max"], made["std"], strict=True))
    # A mean may lie outside by the half step it was rounded by.
    near = all(lo - 0.5 <= m <= hi + 0.5 for lo, m, hi in zip(made["min"], made["mean"], made["max"], strict=True))
    if not (fits and near and 1 <= count <= MAX_COUNT):
        raise RefusedError(f"statistics of {name} contradict themselves", reason="bad_stats")
    return made


def _numbers(name: str, key: str, value: Any, size: int) -> list[float]:
    good = isinstance(value, list) and len(value) == size
    if not good or not all(type(v) in (int, float) and abs(v) <= MAX_COUNT for v in value):
        raise RefusedError(f"{key} of {name} is not {size} finite numbers", reason="bad_stats")
    return [float(v) for v in value]


def merge(parts: Sequence[Stats]) -> Stats:
    """Pooled mean, standard deviation, minimum and maximum per dimension over all `parts`, and the summed count.

    Population variance, Var = E[σ² + (μ − μ̄)²] weighted by count (Chan et al. 1979). The order of `parts` changes
    nothing: sums are exact (math.fsum). std is at least MIN_STD. Raises ValueError for no parts.
    """
    if not parts:
        raise ValueError("no statistics to merge")
    return {name: _pool([p[name] for p in parts]) for name in sorted(parts[0])}


def _pool(parts: Sequence[dict[str, list[float]]]) -> dict[str, list[float]]:
    counts = [p["count"][0] for p in parts]
    total = math.fsum(counts)
    merged: dict[str, list[float]] = {k: [] for k in KEYS}
    for d in range(len(parts[0]["mean"])):
        mean = math.fsum(n * p["mean"][d] for n, p in zip(counts, parts, strict=True)) / total
        spread = [p["std"][d] ** 2 + (p["mean"][d] - mean) ** 2 for p in parts]
        variance = math.fsum(n * v for n, v in zip(counts, spread, strict=True)) / total
        merged["mean"].append(round(mean, 6))
        merged["std"].append(round(max(MIN_STD, math.sqrt(variance)), 6))
        merged["min"].append(min(p["min"][d] for p in parts))
        merged["max"].append(max(p["max"][d] for p in parts))
    return {**merged, "count": [total]}
