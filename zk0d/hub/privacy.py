"""How much privacy a federation's versions have spent: client-level (epsilon, delta) from Google's dp-accounting.

Each version is one Gaussian mechanism over all nodes' clipped updates, without amplification by sampling, since nodes
are not drawn at random. Neighbours differ in what one node gave to each merge (anything within the clip, or nothing);
how many nodes took part is taken as public. Not covered: statistics at joining, losses and norms on the hub.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any


def spent(multipliers: Sequence[float], delta: float) -> dict[str, Any] | None:
    """Noise multipliers of all merged versions so far → {"epsilon", "delta", "versions"}; None without any noise.

    `epsilon` is None and `problem` says why when dp-accounting is not installed, or a version was merged without noise.
    """
    if not any(multipliers):
        return None
    told: dict[str, Any] = {"epsilon": None, "delta": delta, "versions": len(multipliers), "problem": ""}
    if bare := sum(not m for m in multipliers):
        return {**told, "problem": f"{bare} of its versions were merged without noise: there is no bound"}
    try:
        from dp_accounting import GaussianDpEvent, SelfComposedDpEvent  # type: ignore[import-untyped]
        from dp_accounting.rdp import RdpAccountant  # type: ignore[import-untyped]
    except ImportError:
        return {**told, "problem": "dp-accounting is not installed: install zk0d's `privacy` packages"}
    accountant = RdpAccountant()
    for multiplier, times in sorted(Counter(multipliers).items()):
        # A clipped update replaced by another moves the sum by up to two clips: half the multiplier covers both.
        accountant.compose(SelfComposedDpEvent(GaussianDpEvent(multiplier / 2), times))
    return {**told, "epsilon": float(accountant.get_epsilon(delta))}
