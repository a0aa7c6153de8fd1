"""Weights between torch and payload files: the frozen base, a version, a delta. Checked against the spec both ways.

Not for checkpoints (checkpoint.py). Files are read with zk0d.model.payload, which parses nothing unverified.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from zk0d.errors import PayloadError
from zk0d.model.codec import Float32
from zk0d.model.leaves import name_of_file
from zk0d.model.payload import Payload, PayloadWriter, write_exchange
from zk0d.model.spec import ModelSpec
from zk0d.train.policy import Policy

Tensors = dict[str, torch.Tensor]


def state(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """Everything a policy's file holds: parameters and kept buffers, each storage once, under its first name."""
    kept = policy.state_dict(keep_vars=True)
    seen: set[int] = set()
    for name, value in kept.items():
        if id(value) not in seen and value.is_floating_point():
            seen.add(id(value))
            yield name, value


def save_base(policy: Policy, path: Path) -> str:
    """Write the whole policy as float32 → its blob name."""
    tensors = dict(state(policy))
    with PayloadWriter(path, {n: ("F32", tuple(t.shape)) for n, t in tensors.items()}) as out:
        for name in sorted(tensors):
            out.write(name, to_numpy(tensors[name]))
    return out.digest


def load_base(policy: Policy, spec: ModelSpec, path: Path) -> None:
    """Fill the whole policy from `path`. Raises PayloadError for another digest or tensors other than the policy's."""
    digest = name_of_file(path)
    if digest != spec.base_digest:
        raise PayloadError(f"{path.name} has digest {digest}, the spec says {spec.base_digest}", "fetch it again")
    tensors = dict(state(policy))
    with Payload.open(path) as payload:
        differ = sorted(payload.entries.keys() ^ tensors.keys())
        if differ:
            where = "the file" if differ[0] in payload.entries else "the policy"
            raise PayloadError(
                f"{path.name}: {differ[0]!r} is only in {where} ({len(differ)} tensors differ)",
                "this machine's LeRobot differs from the one the federation was made with: update it",
            )
        for name, target in tensors.items():
            _fill(target, payload.float32(name), name)


def load_exchange(spec: ModelSpec, path: Path) -> Tensors:
    """A version or delta file as float32 CPU tensors by name. Raises PayloadError unless it fits and is finite."""
    with Payload.open(path) as payload:
        payload.check_against(spec)
        payload.check_finite()
        return {t.name: torch.from_numpy(payload.float32(t.name).copy()) for t in spec.exchange}


def save_exchange(spec: ModelSpec, path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write the exchange set in the spec's dtype → its blob name. PayloadError for a value that is not finite."""

    def one(name: str) -> Float32:
        values = to_numpy(tensors[name])
        if not np.isfinite(values).all():
            raise PayloadError(f"tensor {name!r} holds a NaN or an infinity", "train with a lower learning rate")
        return values

    return write_exchange(path, spec, one).digest


def apply(policy: Policy, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy `tensors` into the policy's parameters of the same names."""
    parameters = dict(policy.named_parameters())
    for name, values in tensors.items():
        with torch.no_grad():
            parameters[name].copy_(values)


def to_numpy(tensor: torch.Tensor) -> Float32:
    values: Float32 = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    return values


def _fill(target: torch.Tensor, values: Float32, name: str) -> None:
    if tuple(target.shape) != values.shape:
        raise PayloadError(f"tensor {name!r} has shape {list(values.shape)}, the policy's is {list(target.shape)}")
    with torch.no_grad():
        target.copy_(torch.from_numpy(values.copy()))
