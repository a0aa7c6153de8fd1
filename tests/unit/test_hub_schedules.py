"""Schedules of learning rate and mu, and what privacy is spent: against formulas written anew."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0d.hub import privacy
from zk0d.hub.config import parse_federation
from zk0d.hub.schedules import adapted_mu, node_factor, reductions, restarts, settings

TRAINING = {"lr": 0.1, "mu": 0.05}


def lrs(text: str, versions: int, heldout: list[float] | None = None, own: list[float] | None = None) -> list[float]:
    config = parse_federation(f'[model]\npolicy = "act"\n[schedule]\n{text}\n', "f.toml")
    table: dict[str, Any] = config.table("schedule")
    return [settings(TRAINING, table, v, (heldout or [])[: v + 1], own or [])["lr"] for v in range(versions)]


def test_each_kind() -> None:
    assert lrs("", 5) == [0.1] * 5
    cosine = lrs('kind = "cosine"\nperiod = 4\nmin_lr = 0.02', 7)
    assert cosine == pytest.approx([0.02 + 0.08 * (1 + math.cos(math.pi * min(v, 4) / 4)) / 2 for v in range(7)])
    again = lrs('kind = "cosine_restarts"\nperiod = 2\nstretch = 2', 7)
    assert [v for v in range(7) if again[v] == pytest.approx(0.1)] == [0, 2, 6]
    plateau = lrs('kind = "plateau"\npatience = 2\nfactor = 0.5\nmin_lr = 0.04', 7, [3, 2, 2, 2, 1, 1, 1])
    assert plateau == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.04])
    assert lrs("node_lr = true", 1, own=[1.0, 2.0, 3.0]) == pytest.approx([0.025])


@given(st.lists(st.floats(0, 10), max_size=40), st.floats(0, 2))
def test_trends_stay_in_bounds(losses: list[float], mu: float) -> None:
    assert 0 <= adapted_mu(mu, losses) <= max(mu, 1.0) and 1 / 16 <= node_factor(losses) <= 1
    assert 0 <= reductions(losses, 2) <= len(losses) // 2


def test_trends_move() -> None:
    assert adapted_mu(0.05, [1, 2, 3]) == pytest.approx(0.25)
    assert adapted_mu(0.5, [6, 5, 4, 3, 2, 1]) == pytest.approx(0.4)
    assert [node_factor(x) for x in ([], [1], [1, 2], [1, 2, 1], [1, 2, 3, 4, 5, 6, 7])] == [1, 1, 0.5, 1, 1 / 16]
    assert restarts(10**6, 3, 1) == pytest.approx(restarts(10**6 % 3, 3, 1))


@pytest.mark.needs("dp_accounting")
def test_epsilon_is_that_of_the_gaussian_mechanism() -> None:
    from dp_accounting.gaussian_mechanism import get_epsilon_gaussian

    assert privacy.spent([], 1e-5) is None and privacy.spent([0.0, 0.0], 1e-5) is None
    mixed = privacy.spent([4.0, 0.0, 4.0], 1e-5)
    assert mixed is not None and mixed["epsilon"] is None and "1 of its versions" in mixed["problem"]
    told = privacy.spent([4.0] * 4, 1e-5)
    assert told is not None and told["versions"] == 4 and told["problem"] == ""
    exact = get_epsilon_gaussian(2.0 / math.sqrt(4), 1e-5)  # four times half the multiplier is one of 1
    assert exact <= told["epsilon"] < exact * 1.15
    more = privacy.spent([4.0] * 8, 1e-5)
    assert more is not None and more["epsilon"] > told["epsilon"]
