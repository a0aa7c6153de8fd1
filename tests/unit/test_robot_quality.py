"""A take's quality report: what is counted of its times and of the bench's tally, and which images are stale."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np

from robot.eyes import Eyes
from robot.quality import report


def test_late_rows_and_gaps() -> None:
    times = np.arange(60) / 30.0
    times[20:] += 0.02  # late by more than half a period
    times[40:] += 0.4  # twelve rows are missing
    found = report(times, 30, {"front": {"frames": 60, "wait_ms": 1.0}}, {})
    assert found["rows"] == 60 and found["late"] == 2 and found["frames"] == {"front": 60}
    assert found["gaps"] == {"count": 1, "missing": 12, "longest_s": 0.433}
    assert found["care"] == "ok" and found["bus_errors"] == {} and found["stale"] == {}


def test_what_the_bench_has_counted() -> None:
    stories = [{"level": "slow"}, {"level": "ok"}]
    observed = {"clipped": 4, "bus_errors": {"follower": 2}, "stale": {"front": 7}, "oldest_ms": {"front": 81.0}}
    found = report(np.arange(10) / 30, 30, {}, {"observed": {**observed, "care": stories}})
    assert (found["clipped"], found["bus_errors"], found["stale"]) == (4, {"follower": 2}, {"front": 7})
    assert found["care"] == "slow" and found["oldest_image_ms"] == {"front": 81.0}


def test_an_image_that_a_row_has_shown_before_is_stale() -> None:
    camera = SimpleNamespace(latest_timestamp=time.perf_counter() - 0.2)
    eyes = Eyes({"front": camera, "drawn": SimpleNamespace()})
    frame = np.zeros((4, 4, 3))
    for image in (frame, frame, frame.copy()):
        eyes.seen({"front": image, "drawn": np.zeros(1)})
    assert eyes.stale == {"front": 1, "drawn": 0}
    assert eyes.age["front"] >= 0.2 and eyes.oldest["front"] >= 0.2 and eyes.age["drawn"] == 0
    eyes.begin()
    assert eyes.stale == {"front": 0, "drawn": 0} and eyes.oldest["front"] == 0
