"""Merging updates into the next version, out of core: one tensor at a time over memory-mapped files.

new master = master + step(combine(deltas)), in the given (node) order in float64 and rounded once to float32: neither
arrival order nor the number of cores changes a byte. Memory is one tensor, not model × nodes. No torch. How deltas are
combined and stepped is in combine.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0d.errors import PayloadError, Zk0Error
from zk0d.hub.admission import CancelledError
from zk0d.hub.combine import begin, combine, krum_weights, noise, step
from zk0d.hub.recipe import Recipe
from zk0d.model.codec import BLOCK, Float32, decode_bfloat16, encode_bfloat16, is_finite
from zk0d.model.payload import Payload, PayloadWriter, exchange_entries, write_exchange
from zk0d.model.spec import ModelSpec

BREATHE_EVERY = 4
"""Blocks."""
_STEP = 1 << 15
"""Elements summed at once within a block."""
CORES = min(4, os.cpu_count() or 1)
MEAN = Recipe()


@dataclass(frozen=True)
class Merged:
    """Digests (`sha256:…`) of the new float32 master and of what is published, and the published file's bytes."""

    master: str
    published: str
    size: int
    moments: tuple[str, ...] = ()
    """Digests of the server optimiser's state after this version."""


def _own(path: Path) -> Payload:
    """A file of the hub's own. Zk0Error when it is damaged: no update is to blame, so none may be refused for it."""
    try:
        return Payload.open(path)
    except PayloadError as error:
        raise Zk0Error(f"the hub's own file: {error.message}", "restore it from a backup, or roll back") from None


def merge(
    spec: ModelSpec,
    master: Path,
    updates: Sequence[tuple[Path, float]],
    out_master: Path,
    out_published: Path,
    cancelled: Callable[[], bool] = lambda: False,
    recipe: Recipe = MEAN,
    scales: Sequence[float] = (),
    moments: Sequence[Path] = (),
    out_moments: Sequence[Path] = (),
) -> Merged:
    """Merge admitted updates (payload in the spec's dtype, weight) onto `master`; write the files, each atomically.

    `scales`: what each update is multiplied by first (1). `moments`: the optimiser's state so far (none: it begins),
    `out_moments`: where its `recipe.moments` files go. Raises PayloadError when a file is not what was admitted or the
    result is not finite; CancelledError.
    """
    with ExitStack() as stack:
        base = stack.enter_context(_own(master))
        deltas = [stack.enter_context(Payload.open(path)) for path, _ in updates]
        for payload in deltas:
            payload.check_against(spec)
        state = [stack.enter_context(_own(path)) for path in moments]
        full = stack.enter_context(PayloadWriter(out_master, exchange_entries(spec, "float32")))
        published = stack.enter_context(PayloadWriter(out_published, exchange_entries(spec)))
        kept = [stack.enter_context(PayloadWriter(path, exchange_entries(spec, "float32"))) for path in out_moments]
        pool = stack.enter_context(ThreadPoolExecutor(CORES))
        writer = stack.enter_context(ThreadPoolExecutor(1))  # hashes and writes one tensor while the next is worked out
        writing: Future[None] | None = None
        mapped = [base, *deltas, *state]
        job = _Job(recipe, np.array([w for _, w in updates]), np.array(scales or [1.0] * len(updates)), pool,
                   lambda: _breathe(mapped, cancelled))  # fmt: skip
        if recipe.strategy in ("krum", "multi_krum"):
            job.weights = krum_weights(recipe, _distances(job, spec, deltas), job.weights)
        for number, tensor in enumerate(spec.exchange):
            old = [p.float32(tensor.name) for p in state]
            rows = [p.tensor(tensor.name) for p in deltas]
            merged, after = _tensor(job, number, base.float32(tensor.name), rows, old, len(kept))
            travels = encode_bfloat16(merged) if spec.dtype == "bfloat16" else merged
            if not is_finite(travels) or not all(is_finite(a) for a in after):
                raise PayloadError(f"merging makes tensor {tensor.name!r} infinite", "the updates are too large")
            if writing is not None:
                writing.result()
            files = ((full, merged), (published, travels), *zip(kept, after, strict=True))
            writing = writer.submit(_write, files, tensor.name)
        if writing is not None:
            writing.result()
        writer.shutdown()
    return Merged(full.digest, published.digest, published.size, tuple(w.digest for w in kept))


def _write(files: Sequence[tuple[PayloadWriter, NDArray[Any]]], name: str) -> None:
    for file, values in files:
        file.write(name, values)


@dataclass
class _Job:
    """What all tensors of one merge share."""

    recipe: Recipe
    weights: NDArray[np.float64]
    scales: NDArray[np.float64]
    pool: ThreadPoolExecutor
    breathe: Callable[[], None]

    def each_block(self, size: int, work: Callable[[int], Any]) -> Iterator[Any]:
        """`work(start)` for every block on several cores, results in order; a few blocks at a time, then a breath."""
        starts = range(0, size, BLOCK)
        for i in range(0, len(starts), BREATHE_EVERY):
            self.breathe()
            yield from self.pool.map(work, starts[i : i + BREATHE_EVERY])


def _breathe(mapped: list[Payload], cancelled: Callable[[], bool]) -> None:
    """Between blocks: stop if asked to, and give read pages back, as mapped files count as this process's memory."""
    if cancelled():
        raise CancelledError
    for payload in mapped:
        payload.release()


def _float64(values: NDArray[Any], part: slice, scale: float = 1.0) -> NDArray[np.float64]:
    """A block as float64; bfloat16 comes as uint16."""
    block = values.reshape(-1)[part]
    wide = (decode_bfloat16(block) if block.dtype == np.uint16 else block).astype(np.float64)
    return wide if scale == 1.0 else wide * scale


def _rows(job: _Job, deltas: list[NDArray[Any]], part: slice) -> NDArray[np.float64]:
    return np.stack([_float64(d, part, s) for d, s in zip(deltas, job.scales, strict=True)])


def _combined(job: _Job, deltas: list[NDArray[Any]], part: slice) -> NDArray[np.float64]:
    if job.recipe.strategy in ("median", "trimmed_mean"):
        return combine(job.recipe, _rows(job, deltas, part), job.weights)
    total = np.zeros(part.stop - part.start, np.float64)
    # Buffers that stay in a core's own cache and are made once: fresh ones cost more than the arithmetic.
    wide, term = np.empty(_STEP, np.uint32), np.empty(_STEP, np.float64)
    flat = [d.reshape(-1)[part] for d in deltas]
    for start in range(0, total.size, _STEP):
        sum_ = total[start : start + _STEP]
        bits, one = wide[: sum_.size], term[: sum_.size]
        for delta, weight, scale in zip(flat, job.weights, job.scales, strict=True):
            if not weight:
                continue
            block = delta[start : start + _STEP]
            if block.dtype == np.uint16:
                np.left_shift(block, np.uint32(16), out=bits, dtype=np.uint32)
                block = bits.view(np.float32)
            np.multiply(block, weight if scale == 1.0 else scale, out=one, dtype=np.float64)
            if scale != 1.0:
                np.multiply(one, weight, out=one)
            np.add(sum_, one, out=sum_)
    return total


def _tensor(
    job: _Job, number: int, base: Float32, deltas: list[NDArray[Any]], old: list[Float32], kept: int
) -> tuple[Float32, list[Float32]]:
    """One tensor's new values and optimiser state, block by block in float64."""
    out, after = np.empty(base.shape, np.float32), [np.empty(base.shape, np.float32) for _ in range(kept)]

    def block(start: int) -> None:
        part = slice(start, min(start + BLOCK, out.size))
        size = part.stop - start
        delta = _combined(job, deltas, part)
        if job.recipe.seed:
            delta = delta + noise(job.recipe, number, start, size, len(deltas))
        state = [_float64(o, part) for o in old] or [begin(job.recipe, i, size) for i in range(kept)]
        added, state = step(job.recipe, delta, state)
        with np.errstate(over="ignore"):
            out.reshape(-1)[part] = base.reshape(-1)[part].astype(np.float64) + added
            for array, values in zip(after, state, strict=True):
                array.reshape(-1)[part] = values

    for _ in job.each_block(out.size, block):
        pass
    return out, after


def _distances(job: _Job, spec: ModelSpec, deltas: list[Payload]) -> NDArray[np.float64]:
    """Squared Euclidean distance between each two updates, summed over blocks in order."""
    count = len(deltas)
    total = np.zeros((count, count), np.float64)
    for tensor in spec.exchange:
        values = [p.tensor(tensor.name) for p in deltas]

        def block(start: int, values: list[NDArray[Any]] = values) -> NDArray[np.float64]:
            rows, found = _rows(job, values, slice(start, start + BLOCK)), np.zeros((count, count), np.float64)
            for i in range(count):
                for j in range(i):
                    apart = rows[i] - rows[j]
                    found[i, j] = found[j, i] = float(np.dot(apart, apart))
            return found

        for part in job.each_block(tensor.elements, block):
            total += part
    return total


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
