"""What is said of a take's quality, measured while it was recorded: gaps, stale images, clipped goals, bus errors.

Numbers only: whether it may be trained on is the operator's rules' (zk0d/daemon/quality.py). Not for measuring.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

LATE = 1.5
"""A row is late when it comes this many periods after the one before."""
GAP = 2.5
"""From here on rows are missing between the two."""


def report(
    times: NDArray[np.float64], fps: int, encoders: Mapping[str, Mapping[str, float]], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The report of a take. `times`: true seconds of its rows, (rows,); `facts["observed"]`: the bench's tally."""
    steps, period = np.diff(times), 1.0 / fps
    gaps = steps[steps >= GAP * period]
    observed = facts.get("observed") or {}
    return {
        "seconds": round(float(times[-1] - times[0]) + period, 4),
        "hz": round(float(1.0 / steps.mean()), 3),
        "period_ms": {
            "p50": round(float(np.quantile(steps, 0.5)) * 1e3, 3),
            "p99": round(float(np.quantile(steps, 0.99)) * 1e3, 3),
            "max": round(float(steps.max()) * 1e3, 3),
        },
        "jitter_ms": round(float(steps.std()) * 1e3, 3),
        "rows": len(times),
        "late": int((steps > LATE * period).sum()),
        "gaps": {
            "count": len(gaps),
            "missing": int(np.rint(gaps / period - 1).sum()),
            "longest_s": round(float(gaps.max()) if len(gaps) else 0.0, 3),
        },
        "stale": {name: int(n) for name, n in (observed.get("stale") or {}).items()},
        "oldest_image_ms": dict(observed.get("oldest_ms") or {}),
        "clipped": int(observed.get("clipped") or 0),
        "bus_errors": dict(observed.get("bus_errors") or {}),
        "care": _worst(observed.get("care") or []),
        "encoder_wait_ms": {n: e["wait_ms"] for n, e in encoders.items()},
        "frames": {n: int(e["frames"]) for n, e in encoders.items()},
    }


def _worst(stories: list[Mapping[str, Any]]) -> str:
    """The worst thing that care had to do in the take: ok, warn, slow or release."""
    levels = ("ok", "warn", "slow", "release")
    return levels[max((levels.index(s["level"]) for s in stories if s.get("level") in levels), default=0)]
