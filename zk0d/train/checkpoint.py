"""Trainer checkpoints: everything that a run needs to go on to bitwise the same end. Not a model format (publish.py).

One file, replaced atomically and durably. It belongs to one run identity; another run's checkpoint is not used.
"""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zk0d.durable import canonical_json, publish
from zk0d.train.weights import Tensors

FORMAT = 1


def identity(**facts: Any) -> str:
    """Digest of what fixes a run's trajectory: spec, version, data, seed and settings."""
    return hashlib.sha256(canonical_json({"format": FORMAT, **facts})).hexdigest()


@dataclass
class Checkpoint:
    """State after `step` steps. The sampler's position follows from the step; `losses` has one entry per step."""

    step: int
    weights: Tensors
    optimizer: dict[str, Any]
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def save(folder: Path, run: str, checkpoint: Checkpoint) -> None:
    """Replace the folder's checkpoint, with the random states of torch, numpy and Python as they are now."""
    folder.mkdir(parents=True, exist_ok=True)
    numpy_state: Any = np.random.get_state(legacy=True)
    version, numbers, gauss = random.getstate()
    value = {
        "run": run,
        "step": checkpoint.step,
        "weights": checkpoint.weights,
        "optimizer": checkpoint.optimizer,
        "losses": checkpoint.losses,
        "seconds": checkpoint.seconds,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [numpy_state[0], [int(n) for n in numpy_state[1]], *map(float, numpy_state[2:])],
        "python": [version, list(numbers), gauss],
    }
    part = folder / f".checkpoint.{os.getpid()}.tmp"
    try:
        torch.save(value, part)
        publish(part, folder / "checkpoint.pt")
    finally:
        part.unlink(missing_ok=True)


def load(folder: Path, run: str) -> Checkpoint | None:
    """The folder's checkpoint of this run, its random states put back; None if there is none, or it is another run's.

    A file that cannot be read counts as none: the run then begins anew, and reaches the same end.
    """
    path = folder / "checkpoint.pt"
    for left in folder.glob(".checkpoint.*.tmp"):
        left.unlink(missing_ok=True)
    if not path.is_file():
        return None
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
        found = value["run"]
        checkpoint = Checkpoint(value["step"], value["weights"], value["optimizer"], value["losses"], value["seconds"])
    except Exception as error:  # torch and pickle raise many kinds for a damaged file
        print(f"note: {path} cannot be read ({type(error).__name__}: {error}); starting from the beginning")
        return None
    if found != run:
        print(f"note: {path} belongs to another run; starting from the beginning")
        return None
    torch.set_rng_state(value["torch"])
    if value["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(value["cuda"])
    name, numbers, position, has_gauss, cached = value["numpy"]
    np.random.set_state((name, np.asarray(numbers, dtype=np.uint32), int(position), int(has_gauss), cached))
    version, state, gauss = value["python"]
    random.setstate((version, tuple(state), gauss))
    return checkpoint
