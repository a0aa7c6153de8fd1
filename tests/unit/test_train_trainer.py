"""The trainer's pure parts: the order of samples and the settings of a task."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0d.errors import WorkerError
from zk0d.train.trainer import Settings, order

GOOD = {"local_steps": 10, "batch_size": 4, "lr": 1e-3, "mu": 0.01, "seed": 3}


@given(st.integers(1, 40), st.integers(1, 70), st.integers(0, 2**40), st.integers(1, 30))
def test_each_epoch_visits_every_sample_once(samples: int, batch: int, seed: int, steps: int) -> None:
    stream = np.concatenate([order(samples, seed, step, batch) for step in range(steps)])
    assert ((stream >= 0) & (stream < samples)).all()
    for epoch in range(len(stream) // samples):
        assert sorted(stream[epoch * samples : (epoch + 1) * samples]) == list(range(samples))


def test_the_order_depends_on_seed_and_step_alone() -> None:
    assert (order(1000, 1, 7, 16) == order(1000, 1, 7, 16)).all()
    assert (order(1000, 1, 7, 16) != order(1000, 2, 7, 16)).any()
    assert (order(1000, 1, 7, 16) != order(1000, 1, 8, 16)).any()


@pytest.mark.parametrize(
    "change", [{"lr": -1}, {"lr": "x"}, {"batch_size": 0}, {"local_steps": 0}, {"mu": float("nan")}]
)
def test_settings_that_cannot_be_trained_with_are_refused(change: dict[str, object]) -> None:
    assert Settings.from_job(GOOD).batch_size == 4
    with pytest.raises(WorkerError):
        Settings.from_job({**GOOD, **change})
    with pytest.raises(WorkerError):
        Settings.from_job({k: v for k, v in GOOD.items() if k not in change})
