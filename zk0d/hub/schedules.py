"""What learning rate and mu a node's next task has: the [schedule] table over versions and losses. Pure, no I/O.

Constant, cosine and cosine with warm restarts (SGDR, arXiv:1608.03983), reduce on plateau, mu adapted to the loss trend
(FedProx, arXiv:1812.06127, 5.3.2) and a node's rate from its own losses. A task once given does not change.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

KINDS = ("constant", "cosine", "cosine_restarts", "plateau")
MU_STEP = 0.1
MU_MAX = 1.0
LOWEST_NODE_LR = 1 / 16


def cosine(version: int, period: int) -> float:
    """1 at version 0, 0 from `period` on."""
    return (1 + math.cos(math.pi * min(version, period) / period)) / 2


def restarts(version: int, period: int, stretch: int) -> float:
    """Cosine that begins anew after each cycle; each cycle is `stretch` times as long as the one before."""
    while version >= period:
        version, period = version - period, period * stretch
    return cosine(version, period)


def reductions(losses: Sequence[float], patience: int) -> int:
    """How often `patience` versions went by without a loss below the best before them."""
    best, since, count = math.inf, 0, 0
    for loss in losses:
        if loss < best:
            best, since = loss, 0
            continue
        since += 1
        if since == patience:
            since, count = 0, count + 1
    return count


def adapted_mu(mu: float, losses: Sequence[float]) -> float:
    """`mu` plus 0.1 for each rise of the held-out loss, less 0.1 for each five falls in a row; between 0 and 1, or
    `mu` where that is more."""
    falls = 0
    top = max(mu, MU_MAX)
    for before, now in itertools.pairwise(losses):
        if now > before:
            mu, falls = min(top, mu + MU_STEP), 0
        else:
            falls += 1
            if falls == 5:
                mu, falls = max(0.0, mu - MU_STEP), 0
    return mu


def node_factor(losses: Sequence[float]) -> float:
    """Halved for each rise of the node's own training loss, doubled back for each fall; from 1/16 to 1."""
    factor = 1.0
    for before, now in itertools.pairwise(losses):
        factor = max(LOWEST_NODE_LR, factor / 2) if now > before else min(1.0, factor * 2)
    return factor


def settings(
    training: Mapping[str, Any],
    schedule: Mapping[str, Any],
    version: int,
    heldout: Sequence[float],
    own: Sequence[float],
) -> dict[str, float]:
    """`lr` and `mu` of a task for `version`. `heldout`: losses of the versions evaluated so far, `own`: the last
    training losses of the node's updates, both oldest first."""
    lr, low = float(training["lr"]), min(float(schedule["min_lr"]), float(training["lr"]))
    if schedule["kind"] == "cosine":
        lr = low + (lr - low) * cosine(version, schedule["period"])
    elif schedule["kind"] == "cosine_restarts":
        lr = low + (lr - low) * restarts(version, schedule["period"], schedule["stretch"])
    elif schedule["kind"] == "plateau":
        lr = max(low, lr * schedule["factor"] ** reductions(heldout, schedule["patience"]))
    if schedule["node_lr"]:
        lr *= node_factor(own)
    mu = adapted_mu(float(training["mu"]), heldout) if schedule["adaptive_mu"] else float(training["mu"])
    return {"lr": lr, "mu": mu}
