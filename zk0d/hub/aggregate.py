"""Merging updates into the next version, out of core: block by block over memory-mapped files.

new master = master + step(combine(deltas)), in the given (node) order: neither arrival order nor the number of cores
changes a byte. Memory is a few blocks, not model x nodes. What is merged was verified when it was admitted, and nobody
writes to a blob since (read-only, in the hub's own folder): it is not hashed again. No torch.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0d.errors import PayloadError, Zk0Error
from zk0d.hub.admission import CancelledError
from zk0d.hub.blocks import InfiniteError, Slot, Work, pieces, wide_rows, width
from zk0d.hub.combine import Float64, krum_weights
from zk0d.hub.lanes import Block, run
from zk0d.hub.lost import blamed
from zk0d.hub.master import Master, off_ties, own, rest_entries
from zk0d.hub.recipe import Recipe
from zk0d.model.codec import BLOCK, Float32, encode_bfloat16
from zk0d.model.manifest import Manifest
from zk0d.model.payload import DTYPES, WIRE, Payload, PayloadWriter, exchange_entries, write_exchange
from zk0d.model.spec import ModelSpec

_RELEASE = 1 << 20
"""Elements of the hub's own files whose mapped pages are given back together: they count as this process's memory."""
CORES = min(4, os.cpu_count() or 1)
MEAN = Recipe()


@dataclass(frozen=True)
class Merged:
    """Blob names of the new master (see master.py) and of what is published; the published file's bytes."""

    master: str
    published: str
    size: int
    moments: tuple[str, ...] = ()
    """Digests of the server optimiser's state after this version."""
    weights: tuple[float, ...] | None = None
    """The part each update has in the sum, in their order; None where it has no such number (median, trimmed mean)."""
    manifest: Manifest | None = None
    """Of what is published, where it is known: all nodes will ask for it."""


def merge(
    spec: ModelSpec,
    before: tuple[Path, Path],
    updates: Sequence[tuple[Path, float]],
    out_master: Path,
    out_published: Path,
    cancelled: Callable[[], bool] = lambda: False,
    recipe: Recipe = MEAN,
    scales: Sequence[float] = (),
    moments: Sequence[Path] = (),
    out_moments: Sequence[Path] = (),
) -> Merged:
    """Merge admitted updates (payload in the spec's dtype, weight) onto a version; write the files, each atomically.

    `before`: that version's master and published file. `scales`: what each update is multiplied by first (1).
    `moments`: the optimiser's state so far (none: it begins), `out_moments`: where its `recipe.moments` files go. Where
    float32 is published, that is the master, and `out_master` is not written. Raises DamagedError or UnreadableError
    for an update's file (lost.py), PayloadError when the result is not finite, Zk0Error when a file of the hub's own is
    damaged; CancelledError.
    """
    _trim()
    with ExitStack() as stack:
        base = stack.enter_context(Master(*before))
        deltas = []
        for number, (path, _) in enumerate(updates):
            try:
                deltas.append(stack.enter_context(Payload.open(path)))
                deltas[-1].check_against(spec)
            except Zk0Error as error:
                raise blamed(number, path, error) from error.__cause__
        state = [stack.enter_context(own(path)) for path in moments]
        published = PayloadWriter(out_published, exchange_entries(spec))
        files = [stack.enter_context(published)]
        if spec.dtype != "float32":
            files.append(stack.enter_context(PayloadWriter(out_master, rest_entries(spec))))
        for path in out_moments:
            files.append(stack.enter_context(PayloadWriter(path, exchange_entries(spec, "float32"))))
        rooms = _Rooms(spec.dtype)
        weights, given = np.array([w for _, w in updates]), np.array(scales or [1.0] * len(updates))
        if recipe.strategy in ("krum", "multi_krum"):
            weights = krum_weights(recipe, _distances(spec, deltas, given, cancelled, rooms), weights)
        job = _Job(Work(recipe, weights, given, spec.dtype), base, deltas, state, cancelled, rooms)
        slots = [Slot(spec.dtype, len(out_moments)) for _ in range(CORES + 3)]
        run(job.fill, slots, _blocks(spec), files, CORES, job.passed)
    master_file, kept = files[-1 - len(out_moments)], files[len(files) - len(out_moments) :]
    del rooms, job, slots
    _trim()  # their blocks would stand beside the next transfers
    summed = None if recipe.strategy in ("median", "trimmed_mean") else tuple(float(w) for w in weights)
    return Merged(master_file.digest, published.digest, published.size, tuple(w.digest for w in kept), summed,
                  published.manifest)  # fmt: skip


def _trim() -> None:
    """Give the system what the C library keeps of what was freed: the more nodes sent, the more that is (glibc)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _blocks(spec: ModelSpec) -> Iterator[Block]:
    for number, tensor in enumerate(spec.exchange):
        for start in range(0, tensor.elements, BLOCK):
            stop = min(start + BLOCK, tensor.elements)
            yield Block(number, tensor.name, start, stop, stop == tensor.elements)


class _Rooms(threading.local):
    """Each thread's own buffer for a piece of an update: however many nodes there are, one piece is there at a time."""

    def __init__(self, dtype: str) -> None:
        self.room = np.empty(BLOCK, DTYPES[WIRE[dtype]])


@dataclass(frozen=True)
class _Row:
    """One update's part of a block, from element `start` of the tensor on. A piece of it is read when it is asked for,
    and stands until this thread asks for another."""

    number: int
    payload: Payload
    name: str
    start: int
    rooms: _Rooms

    def __getitem__(self, part: slice) -> NDArray[Any]:
        into = self.rooms.room[: part.stop - part.start]
        try:
            self.payload.read(self.name, self.start + part.start, into)
        except Zk0Error as error:
            raise blamed(self.number, self.payload.path, error) from error.__cause__
        return into


def _rows(deltas: list[Payload], block: Block, rooms: _Rooms) -> list[_Row]:
    return [_Row(number, payload, block.name, block.start, rooms) for number, payload in enumerate(deltas)]


@dataclass
class _Job:
    """What all blocks of one merge share."""

    work: Work
    base: Master
    deltas: list[Payload]
    state: list[Payload]
    cancelled: Callable[[], bool]
    rooms: _Rooms

    def fill(self, block: Block, slot: Slot) -> None:
        """One block of all outputs."""
        if self.cancelled():
            raise CancelledError
        start, stop = block.start, block.stop
        base = self.base.block(block.name, start, stop, slot.base, slot.signed)
        rows = _rows(self.deltas, block, self.rooms)
        old = [p.tensor(block.name).reshape(-1)[start:stop] for p in self.state]
        try:
            slot.fill(self.work, block.tensor, start, base, rows, old)
        except InfiniteError:
            raise PayloadError(f"merging makes tensor {block.name!r} infinite", "the updates are too large") from None

    def passed(self, block: Block) -> None:
        """Give pages back that no block under way reads, as mapped files count as this process's memory; those of some
        blocks at once, since each time costs all cores a moment."""
        if block.stop % _RELEASE == 0 or block.last:
            begun = (block.stop - 1) // _RELEASE * _RELEASE
            self.base.release(block.name, begun, block.stop)
            for payload in self.state:
                payload.release(block.name, begun, block.stop)


def _distances(
    spec: ModelSpec, deltas: list[Payload], scales: Float64, cancelled: Callable[[], bool], rooms: _Rooms
) -> Float64:
    """Squared Euclidean distance between each two updates, summed over blocks in order."""
    count = len(deltas)

    def of(block: Block) -> Float64:
        if cancelled():
            raise CancelledError
        rows = _rows(deltas, block, rooms)
        found = np.zeros((count, count), np.float64)
        for part in pieces(block.stop - block.start, width(count)):
            values = wide_rows(rows, scales, part)
            for i in range(count):
                for j in range(i):
                    apart = values[i] - values[j]
                    found[i, j] += float(np.dot(apart, apart))
        return found + found.T

    total = np.zeros((count, count), np.float64)
    with ThreadPoolExecutor(CORES) as pool:
        for some in itertools.batched(_blocks(spec), 4 * CORES):  # a failure ends it soon
            for part in pool.map(of, some):
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
            published.release()  # what was read for the tensor before this one
            full.release()
            rounded = published.tensor(name)
            entry = full.entries.get(name)
            if spec.dtype == "bfloat16" and entry is not None and entry.dtype == "F32" and entry.shape == rounded.shape:
                exact = full.float32(name)
                if np.array_equal(encode_bfloat16(exact), rounded):
                    return off_ties(exact, rounded)
            return published.float32(name)

        made = write_exchange(out, spec, tensor, "float32")
    return Merged(made.digest, "", exchange.stat().st_size)
