"""Statistics of one episode and of a dataset, in the form of LeRobotDataset v3.0 (meta/stats.json, stats/… columns).

The same figures as lerobot.datasets.compute_stats gives (a test holds them together), without its import, which takes
7 s and 250 MB that a recorder should not cost. Not for what leaves the machine: that is coarse and made elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

QUANTILES = (0.01, 0.10, 0.50, 0.90, 0.99)
_LEVELS = np.arange(256, dtype=np.float64)

FeatureStats = dict[str, NDArray[np.float64]]


def quantile_key(quantile: float) -> str:
    """LeRobot's name of a quantile: q01 … q99."""
    return f"q{int(quantile * 100):02d}"


def column_stats(values: NDArray[np.generic]) -> FeatureStats:
    """Statistics over the rows of `values`, shape (n,) or (n, dims): arrays of shape (dims,), `count` of shape (1,).

    Quantiles are the inverse of the empirical distribution; LeRobot's are that within 1/5000 of the range.
    """
    rows = np.asarray(values, dtype=np.float64)
    rows = rows.reshape(len(rows), -1)
    stats = {
        "min": rows.min(axis=0),
        "max": rows.max(axis=0),
        "mean": rows.mean(axis=0),
        "std": rows.std(axis=0),
        "count": np.array([float(len(rows))]),
    }
    for quantile in QUANTILES:
        stats[quantile_key(quantile)] = (
            stats["mean"] if len(rows) < 2 else np.quantile(rows, quantile, axis=0, method="inverted_cdf")
        )
    return stats


def sample_indices(length: int) -> NDArray[np.int64]:
    """Which frames of an episode are looked at for image statistics: LeRobot's rule (length^0.75, at least 100)."""
    wanted = max(min(length, 100), min(int(length**0.75), 10_000))
    return np.round(np.linspace(0, length - 1, wanted)).astype(np.int64)


class ImageStats:
    """Running statistics of RGB frames per channel, from the histogram of their levels: exact, and always 6 KB."""

    def __init__(self) -> None:
        self._histogram = np.zeros((3, 256), dtype=np.int64)
        self._frames = 0

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Count one frame, shape (height, width, 3); large ones are thinned as LeRobot does."""
        height, width = frame.shape[:2]
        if max(height, width) >= 300:
            step = max(1, int(max(width, height) / 150))
            frame = frame[::step, ::step]
        for channel in range(3):
            self._histogram[channel] += np.bincount(frame[..., channel].ravel(), minlength=256)
        self._frames += 1

    def result(self) -> FeatureStats:
        """Statistics scaled to 0…1, arrays of shape (3, 1, 1); `count` is the number of frames."""
        total = self._histogram.sum(axis=1)
        mean = self._histogram @ _LEVELS / total
        square = self._histogram @ _LEVELS**2 / total
        cumulative = np.cumsum(self._histogram, axis=1)
        raw = {
            "min": np.array([np.flatnonzero(h)[0] for h in self._histogram], dtype=np.float64),
            "max": np.array([np.flatnonzero(h)[-1] for h in self._histogram], dtype=np.float64),
            "mean": mean,
            "std": np.sqrt(np.maximum(0.0, square - mean**2)),
        }
        for quantile in QUANTILES:
            raw[quantile_key(quantile)] = np.array(
                [np.searchsorted(c, quantile * t) for c, t in zip(cumulative, total, strict=True)], dtype=np.float64
            )
        stats = {key: (value / 255.0).reshape(3, 1, 1) for key, value in raw.items()}
        stats["count"] = np.array([float(self._frames)])
        return stats


def merge(parts: Sequence[dict[str, FeatureStats]]) -> dict[str, FeatureStats]:
    """Statistics of all episodes from those of each, as LeRobot merges them: quantiles are averaged by count."""
    merged: dict[str, FeatureStats] = {}
    for feature in dict.fromkeys(name for part in parts for name in part):
        each = [part[feature] for part in parts if feature in part]
        counts = np.stack([s["count"] for s in each])
        total = counts.sum(axis=0)
        means = np.stack([s["mean"] for s in each])
        weight = counts.reshape(counts.shape + (1,) * (means.ndim - counts.ndim))
        mean = (means * weight).sum(axis=0) / total
        spread = np.stack([s["std"] for s in each]) ** 2 + (means - mean) ** 2
        merged[feature] = {
            "min": np.min(np.stack([s["min"] for s in each]), axis=0),
            "max": np.max(np.stack([s["max"] for s in each]), axis=0),
            "mean": mean,
            "std": np.sqrt((spread * weight).sum(axis=0) / total),
            "count": total,
        }
        for key in map(quantile_key, QUANTILES):
            merged[feature][key] = (np.stack([s[key] for s in each]) * weight).sum(axis=0) / total
    return merged
