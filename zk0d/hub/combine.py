"""The arithmetic of a merge on blocks of float64: combining the nodes' deltas, the server's optimiser, the noise.

Pure functions of arrays; rows are updates in node order. Files, threads and tensors are aggregate.py's business.
Sources: coordinate median and trimmed mean arXiv:1803.01498, Krum arXiv:1703.02757, FedAvgM arXiv:1909.06335,
FedAdam and FedYogi arXiv:2003.00295 (Algorithm 2, no bias correction), Gaussian mechanism arXiv:1710.06963.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from zk0d.hub.recipe import Recipe

Float64 = NDArray[np.float64]


def combine(recipe: Recipe, rows: Float64, weights: Float64) -> Float64:
    """(updates, n) and (updates,) → (n,): the step the nodes agree on."""
    if recipe.strategy == "median":
        return np.asarray(np.median(rows, axis=0), np.float64)
    if recipe.strategy == "trimmed_mean":
        cut = trimmed(recipe, len(rows))
        inner: Float64 = np.sort(rows, axis=0)[cut : len(rows) - cut]
        return np.asarray(inner.mean(axis=0), np.float64)
    total = np.zeros(rows.shape[1], np.float64)
    for row, weight in zip(rows, weights, strict=True):  # in node order: the sum's last bit depends on it
        total += row * weight
    return total


def trimmed(recipe: Recipe, updates: int) -> int:
    """How many values are left out at either end: one of three or more whatever `trim` above 0 is, since else a small
    merge would be a mean; at least one stays."""
    return min(max(math.floor(recipe.trim * updates), int(recipe.trim > 0)), (updates - 1) // 2)


def krum_weights(recipe: Recipe, distances: Float64, weights: Float64) -> Float64:
    """Squared distances (updates, updates) → each update's weight: Krum keeps the one, Multi-Krum the n - f - 2
    (at least one), with the lowest sum of distances to their n - f - 2 nearest; ties go to the first in node order."""
    count = len(distances)
    near = max(1, count - recipe.byzantine - 2)
    others = np.sort(np.where(np.eye(count, dtype=bool), np.inf, distances), axis=1)[:, : min(near, count - 1)]
    order = np.argsort(others.sum(axis=1), kind="stable")
    kept = order[: 1 if recipe.strategy == "krum" else near]
    made = np.zeros(count, np.float64)
    made[kept] = weights[kept]
    return np.asarray(made / made.sum(), np.float64)


def noise(recipe: Recipe, tensor: int, start: int, size: int, updates: int) -> Float64:
    """Gaussian noise of standard deviation multiplier x clip / updates; its own stream for each tensor and block, so
    that the order in which cores take blocks changes nothing."""
    words = np.frombuffer(bytes.fromhex(recipe.seed), np.uint32).tolist()
    source = np.random.Generator(np.random.Philox(np.random.SeedSequence([*words, tensor, start])))
    return source.normal(0.0, recipe.noise * recipe.clip / updates, size)


def step(recipe: Recipe, delta: Float64, moments: list[Float64]) -> tuple[Float64, list[Float64]]:
    """The merged delta and the optimiser's state → what is added to the version, and the state to keep."""
    if recipe.optimizer == "fedavg":
        return delta * recipe.lr, []
    if recipe.optimizer == "fedavgm":
        kept = recipe.beta1 * moments[0] + delta
        return recipe.lr * kept, [kept]
    first, second = moments
    first = recipe.beta1 * first + (1 - recipe.beta1) * delta
    square = delta * delta
    if recipe.optimizer == "fedadam":
        second = recipe.beta2 * second + (1 - recipe.beta2) * square
    else:
        second = second - (1 - recipe.beta2) * square * np.sign(second - square)
    return recipe.lr * first / (np.sqrt(second) + recipe.tau), [first, second]


def begin(recipe: Recipe, index: int, size: int) -> Float64:
    """State before the first merge: zero, and tau squared for the second moment (the paper's v of -1)."""
    return np.full(size, recipe.tau**2 if index == 1 else 0.0)
