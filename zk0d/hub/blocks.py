"""One block of a merge: the updates' values summed, the step taken, the result rounded to what travels.

Works in buffers made once per slot; a plain mean goes in float32, whatever needs
more (median, optimisers, noise) in float64. The formulas are in combine.py, files and threads in aggregate.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from zk0d.hub.combine import Float64, begin, combine, noise, step
from zk0d.hub.recipe import Recipe
from zk0d.model.codec import BLOCK, Float32, Uint16, decode_bfloat16, is_finite, split_float32

PIECE = BLOCK
"""Elements worked on at once by one numpy call. Smaller ones fit a core's own cache, but the calls of several threads
then wait for each other more than they gain."""
_ROWS = 1 << 20
"""Elements of all updates together, where a formula needs them side by side: 8 MiB of float64, however many nodes."""
_LARGEST = {"bfloat16": np.float32(np.uint32(0x7F7F7FFF).view(np.float32)), "float32": np.finfo(np.float32).max}
"""The largest float32 that is still finite in the published dtype."""


class Row(Protocol):
    """An update's part of a block; a piece of it stands only until the next is asked for."""

    def __getitem__(self, part: slice, /) -> NDArray[Any]: ...


class InfiniteError(Exception):
    """The block's result is not finite in what is published."""


@dataclass(frozen=True)
class Work:
    """What all blocks of one merge share. `dtype` is the spec's; weights and scales are one for each update."""

    recipe: Recipe
    weights: Float64
    scales: Float64
    dtype: str

    @property
    def plain(self) -> bool:
        """Whether a float32 weighted sum is all there is to do."""
        how = self.recipe
        return how.strategy not in ("median", "trimmed_mean") and how.optimizer == "fedavg" and not how.seed


class Slot:
    """Buffers for one block under way. `outputs`: what is published, the rest of the master where rounding left one
    (master.py), the optimiser's moments; each valid up to the block's size. `base`, `signed`: room for the caller."""

    def __init__(self, dtype: str, moments: int) -> None:
        self.base, self.signed = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.int32)
        self.moments = [np.empty(BLOCK, np.float32) for _ in range(moments)]
        self._master = np.empty(BLOCK, np.float32)
        self.outputs: list[NDArray[Any]] = [self._master, *self.moments]
        if dtype == "bfloat16":
            self.outputs = [np.empty(BLOCK, np.uint16), np.empty(BLOCK, np.uint16), *self.moments]
        self._bits = np.empty(PIECE, np.uint32)
        self._sum = np.empty(PIECE, np.float32)

    def fill(
        self, work: Work, tensor: int, start: int, base: Float32, rows: Sequence[Row], old: Sequence[Float32]
    ) -> None:
        """Work a block out: `start` is where it begins in tensor number `tensor`, all arrays are the block's part,
        flat. Raises InfiniteError."""
        made = self._plain(work, base, rows) if work.plain else self._wide(work, tensor, start, base, rows, old)
        largest = _LARGEST[work.dtype]
        for part in made:
            new = self._master[part]
            # NaN and infinity pass through max and min, without an array of truth values.
            if not (new.max() <= largest and new.min() >= -largest):
                raise InfiniteError
            if work.dtype == "bfloat16":
                split_float32(new, self.outputs[0][part], self.outputs[1][part], self._bits)

    def _plain(self, work: Work, base: Float32, rows: Sequence[Row]) -> Iterator[slice]:
        factors = [np.float32(w * s * work.recipe.lr) for w, s in zip(work.weights, work.scales, strict=True)]
        used = [(r, f) for r, f in zip(rows, factors, strict=True) if f]
        for part in pieces(base.size, PIECE):
            total = self._sum[: part.stop - part.start]
            with np.errstate(over="ignore", invalid="ignore"):
                weighted_sum(((row[part], f) for row, f in used), total, self._bits[: total.size])
                np.add(base[part], total, out=self._master[part])
            yield part

    def _wide(
        self, work: Work, tensor: int, start: int, base: Float32, rows: Sequence[Row], old: Sequence[Float32]
    ) -> Iterator[slice]:
        how = work.recipe
        added = noise(how, tensor, start, base.size, len(rows)) if how.seed else None
        for part in pieces(base.size, width(len(rows))):
            size = part.stop - part.start
            delta = combine(how, wide_rows(rows, work.scales, part), work.weights)
            if added is not None:
                delta = delta + added[part]
            state = [o[part].astype(np.float64) for o in old] or [begin(how, i, size) for i in range(len(self.moments))]
            with np.errstate(over="ignore", invalid="ignore"):
                move, state = step(how, delta, state)
                self._master[part] = base[part] + move
                for kept, values in zip(self.moments, state, strict=True):
                    kept[part] = values
            if not all(is_finite(kept[part]) for kept in self.moments):
                raise InfiniteError
            yield part


def weighted_sum(terms: Iterable[tuple[NDArray[Any], np.float32]], total: Float32, bits: NDArray[np.uint32]) -> None:
    """Σ row * factor into `total`, in the given order, in float32; rows are float32, or bfloat16 as uint16."""
    term = bits.view(np.float32)
    number = -1
    for number, (row, factor) in enumerate(terms):
        into = term if number else total
        if row.dtype == np.uint16:
            bits[:] = row
            np.left_shift(bits, np.uint32(16), out=bits)
            np.multiply(term, factor, out=into)
        else:
            np.multiply(row, factor, out=into)
        if number:
            np.add(total, term, out=total)
    if number < 0:
        total[:] = 0


def pieces(size: int, width: int) -> Iterator[slice]:
    """Slices that cover `size` elements, `width` at most in each."""
    for start in range(0, size, width):
        yield slice(start, min(start + width, size))


def width(updates: int) -> int:
    """Elements of a piece when all updates' values lie side by side in float64: less of them for more updates."""
    return max(256, min(PIECE, _ROWS // max(1, updates)))


def wide_rows(rows: Sequence[Row], scales: Float64, part: slice) -> Float64:
    """(updates, size) in float64, each row multiplied by its scale."""
    made = np.empty((len(rows), part.stop - part.start), np.float64)
    for into, row, scale in zip(made, rows, scales, strict=True):
        piece: NDArray[Any] | Uint16 = row[part]
        into[:] = decode_bfloat16(piece) if piece.dtype == np.uint16 else piece
        if scale != 1.0:
            np.multiply(into, scale, out=into)
    return made
