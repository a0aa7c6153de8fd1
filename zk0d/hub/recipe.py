"""How a federation's updates become one step: the [merge] and [privacy] tables, fixed when a merge begins.

A recipe is plain numbers, kept in the merge's plan, so that a merge begun again after a crash gives the same bytes.
The arithmetic is in combine.py, the files in aggregate.py.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from zk0d.hub.config import Config
from zk0d.hub.rounds import Share

RUNNING = 50
"""Norms of how many past updates the running median is taken over."""


@dataclass(frozen=True)
class Recipe:
    """`strategy` mean, median, trimmed_mean, krum, multi_krum or flower:NAME; `optimizer` fedavg, fedavgm, fedadam or
    fedyogi; `seed` (64 hex digits) of the noise, "" without noise."""

    strategy: str = "mean"
    trim: float = 0.1
    byzantine: int = 1
    optimizer: str = "fedavg"
    lr: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    clip: float = 0.0
    noise: float = 0.0
    seed: str = ""

    @property
    def moments(self) -> int:
        """How many files of optimiser state a version has."""
        return {"fedavg": 0, "fedavgm": 1}.get(self.optimizer, 2)

    def plan(self) -> dict[str, Any]:
        return asdict(self)

    def told(self) -> dict[str, Any]:
        """What is kept once the version is there: the seed's digest, since the seed itself would undo the noise."""
        digest = hashlib.sha256(bytes.fromhex(self.seed)).hexdigest() if self.seed else ""
        return asdict(replace(self, seed=digest))


def from_config(config: Config, seed: str) -> Recipe:
    """The recipe of a federation's settings. `seed`: 32 fresh random bytes in hex, used only where noise is added."""
    merge, privacy = config.table("merge"), config.table("privacy")
    private = privacy["noise_multiplier"] > 0
    return Recipe(
        **{k: v for k, v in merge.items() if k != "clip"},
        clip=privacy["clip_norm"],
        noise=privacy["noise_multiplier"],
        seed=seed if private else "",
    )


def scaled(
    recipe: Recipe, shares: Sequence[Share], norms: Sequence[float], past: Sequence[float], factor: float
) -> tuple[Share, ...]:
    """The shares with what each update is multiplied by: clipped to `factor` times the running median of the norms
    (0: not), and under privacy to `recipe.clip`, where all weigh the same so that one node moves the mean boundedly.

    `past` are the norms of the last updates merged; without any, those of this merge stand for them.
    """
    limits = []
    if factor > 0:
        limits.append(factor * statistics.median(past[-RUNNING:] or norms))
    if recipe.clip > 0:
        limits.append(recipe.clip)
    made = []
    for share, norm in zip(shares, norms, strict=True):
        scale = min([1.0, *(limit / norm for limit in limits)]) if norm > 0 else 1.0
        weight = 1 / len(shares) if recipe.noise > 0 else share.weight
        made.append(replace(share, weight=weight, scale=scale))
    return tuple(made)
