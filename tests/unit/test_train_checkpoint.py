"""Checkpoints bring back weights, optimiser and every random state, and belong to one run."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from zk0d.train import checkpoint
from zk0d.train.checkpoint import Checkpoint


def _draw() -> tuple[float, float, float, float]:
    return float(torch.rand(1)), float(np.random.rand()), float(np.random.standard_normal()), random.gauss(0, 1)


def test_everything_comes_back(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.randn(4))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.grad = torch.ones(4)
    optimizer.step()
    _draw()  # leaves a spare normal number in numpy's and Python's state
    run = checkpoint.identity(spec="a", seed=1)
    kept = Checkpoint(3, {"w": parameter.detach().clone()}, optimizer.state_dict(), [1.0, 0.5, 0.25], 2.5)
    checkpoint.save(tmp_path, run, kept)
    expected = [_draw() for _ in range(3)]
    torch.manual_seed(9), np.random.seed(9), random.seed(9)
    found = checkpoint.load(tmp_path, run)
    assert found is not None
    assert (found.step, found.losses, found.seconds) == (3, [1.0, 0.5, 0.25], 2.5)
    assert torch.equal(found.weights["w"], parameter)
    assert torch.equal(found.optimizer["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    assert [_draw() for _ in range(3)] == expected


def test_another_run_s_or_a_damaged_checkpoint_is_not_used(tmp_path: Path) -> None:
    run = checkpoint.identity(spec="a", seed=1)
    assert checkpoint.load(tmp_path, run) is None
    checkpoint.save(tmp_path, run, Checkpoint(1, {}, {}, []))
    assert checkpoint.load(tmp_path, checkpoint.identity(spec="a", seed=2)) is None
    assert checkpoint.load(tmp_path, run) is not None
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-200])
    assert checkpoint.load(tmp_path, run) is None


def test_leftovers_of_a_killed_save_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.123.tmp").write_bytes(b"half")
    assert checkpoint.load(tmp_path, "run") is None
    assert list(tmp_path.iterdir()) == []
