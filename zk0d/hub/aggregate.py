"""Merging updates into the next version, out of core: one tensor at a time over memory-mapped files.

new master = master + Σ weightᵢ · deltaᵢ, weights summing to 1, added in the given (node) order in float64 and rounded
once to float32: neither arrival order nor block size changes a byte. Memory is one tensor, not model × nodes. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0d.errors import PayloadError
from zk0d.hub.admission import CancelledError
from zk0d.model.codec import BLOCK, Float32, decode_bfloat16, encode_bfloat16, is_finite
from zk0d.model.payload import Payload, PayloadWriter, exchange_entries, write_exchange
from zk0d.model.spec import ModelSpec

BREATHE_EVERY = 4
"""Blocks."""


@dataclass(frozen=True)
class Merged:
    """Digests (`sha256:…`) of the new float32 master and of what is published, and the published file's bytes."""

    master: str
    published: str
    size: int


def merge(
    spec: ModelSpec,
    master: Path,
    updates: Sequence[tuple[Path, float]],
    out_master: Path,
    out_published: Path,
    cancelled: Callable[[], bool] = lambda: False,
) -> Merged:
    """Merge admitted updates (payload in the spec's dtype, weight) onto `master`; write both files, each atomically.

    Raises PayloadError when a file is not what was admitted or the result is not finite; CancelledError.
    """
    with ExitStack() as stack:
        base = stack.enter_context(Payload.open(master))
        deltas = [(stack.enter_context(Payload.open(path)), weight) for path, weight in updates]
        for payload, _ in deltas:
            payload.check_against(spec)
        full = stack.enter_context(PayloadWriter(out_master, exchange_entries(spec, "float32")))
        published = stack.enter_context(PayloadWriter(out_published, exchange_entries(spec)))
        for tensor in spec.exchange:
            parts = [(p.tensor(tensor.name), w) for p, w in deltas]
            merged = _tensor(
                base.float32(tensor.name), parts, lambda: _breathe([base, *(p for p, _ in deltas)], cancelled)
            )
            travels = encode_bfloat16(merged) if spec.dtype == "bfloat16" else merged
            if not is_finite(travels):
                raise PayloadError(f"merging makes tensor {tensor.name!r} infinite", "the updates are too large")
            full.write(tensor.name, merged)
            published.write(tensor.name, travels)
    return Merged(full.digest, published.digest, published.size)


def _breathe(mapped: list[Payload], cancelled: Callable[[], bool]) -> None:
    """Between blocks: stop if asked to, and give read pages back, as mapped files count as this process's memory."""
    if cancelled():
        raise CancelledError
    for payload in mapped:
        payload.release()


def _tensor(base: Float32, deltas: list[tuple[NDArray[Any], float]], breathe: Callable[[], None]) -> Float32:
    """base + Σ weight · delta, block by block in float64; bfloat16 deltas come as uint16."""
    out = np.empty(base.shape, np.float32)
    flat_base, flat_out = base.reshape(-1), out.reshape(-1)
    for start in range(0, flat_out.size, BLOCK):
        if start % (BREATHE_EVERY * BLOCK) == 0:
            breathe()
        part = slice(start, start + BLOCK)
        total = np.zeros(flat_out[part].size, np.float64)
        for delta, weight in deltas:
            block = delta.reshape(-1)[part]
            total += (decode_bfloat16(block) if block.dtype == np.uint16 else block).astype(np.float64) * weight
        with np.errstate(over="ignore"):
            flat_out[part] = flat_base[part].astype(np.float64) + total
    return out


def first_master(spec: ModelSpec, exchange: Path, base: Path, out: Path) -> Merged:
    """Version 0's float32 master: the base's own tensors where rounding them gives exactly `exchange`, else `exchange`.

    The published file is `exchange` itself. Raises PayloadError unless `exchange` fits the spec and is finite.
    """
    with Payload.open(exchange) as published, Payload.open(base) as full:
        published.check_against(spec)
        published.check_finite()

        def tensor(name: str) -> Float32:
            rounded = published.tensor(name)
            entry = full.entries.get(name)
            if spec.dtype == "bfloat16" and entry is not None and entry.dtype == "F32" and entry.shape == rounded.shape:
                exact = full.float32(name)
                if np.array_equal(encode_bfloat16(exact), rounded):
                    return exact
            return published.float32(name)

        digest = write_exchange(out, spec, tensor, "float32")
    return Merged(digest, "", exchange.stat().st_size)
