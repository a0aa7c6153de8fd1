"""Number formats that travel: bfloat16 as uint16 bit patterns, made and read with numpy alone.

For payloads and aggregation; not for training (torch has its own). Conversion works in blocks, so that memory beyond
the result stays bounded. Each codec declares the largest error it makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Uint16 = NDArray[np.uint16]

BLOCK = 1 << 18
"""Elements per block: 1 MiB of float32, which stays in the cache."""


@dataclass(frozen=True)
class Codec:
    """What a format costs: `|decoded - x| <= relative * |x| + absolute` for every finite x that does not overflow."""

    dtype: str
    bytes_per_element: int
    relative: float
    absolute: float


CODECS = {
    "float32": Codec("float32", 4, 0.0, 0.0),
    # 8 significant bits, round to nearest: half a unit in the last place; below 2^-126 the spacing is 2^-133.
    "bfloat16": Codec("bfloat16", 2, 2.0**-8, 2.0**-134),
}


def encode_bfloat16(values: Float32) -> Uint16:
    """float32 of any shape → bfloat16 bit patterns (uint16, same shape), rounded to nearest, ties to even.

    NaN stays NaN (quiet, sign kept), infinities stay; a finite value beyond bfloat16's largest becomes infinite
    (IEEE 754).
    """
    source = np.asarray(values, dtype=np.float32, order="C")
    out = np.empty(source.shape, dtype=np.uint16)
    flat, rounded = source.reshape(-1), out.reshape(-1)
    scratch = np.empty(min(flat.size, BLOCK), np.uint32)
    for start in range(0, flat.size, BLOCK):
        block, into = flat[start : start + BLOCK], rounded[start : start + BLOCK]
        round_bfloat16(block, into, scratch)
        if np.isnan(block.max()):
            # The carry could turn a NaN with a small mantissa into infinity: truncate it and set the quiet bit.
            nan = np.isnan(block)
            into[nan] = (block.view(np.uint32)[nan] >> np.uint32(16)) | np.uint32(0x40)
    return out


def round_bfloat16(values: Float32, out: Uint16, scratch: NDArray[np.uint32]) -> None:
    """`encode_bfloat16` of flat values that hold no NaN, into `out`; `scratch` is at least as long."""
    bits, work = values.view(np.uint32), scratch[: values.size]
    # Adding just under half of the dropped part, plus the kept part's last bit, carries exactly when RNE rounds up.
    np.right_shift(bits, np.uint32(16), out=work)
    np.bitwise_and(work, np.uint32(1), out=work)
    np.add(work, np.uint32(0x7FFF), out=work)
    np.add(work, bits, out=work)
    np.right_shift(work, np.uint32(16), out=work)
    np.copyto(out, work, casting="unsafe")


def split_float32(values: Float32, rounded: Uint16, rest: Uint16, scratch: NDArray[np.uint32]) -> None:
    """Flat finite values → bfloat16 rounded to nearest, ties away from zero, and the 16 bits it takes to go back.

    Ties to even would leave it open for a tie which way it went. `scratch` is at least as long as `values`."""
    bits, work = values.view(np.uint32), scratch[: values.size]
    np.add(bits, np.uint32(0x8000), out=work)
    np.right_shift(work, np.uint32(16), out=work)
    np.copyto(rounded, work, casting="unsafe")
    np.copyto(rest, bits, casting="unsafe")


def join_float32(rounded: Uint16, rest: Uint16, out: Float32, scratch: NDArray[np.int32]) -> None:
    """The values that `split_float32` was given, bit by bit, into `out`."""
    bits, work = out.view(np.uint32), scratch[: out.size]
    np.copyto(work, rest.view(np.int16))  # from 0x8000 on it was rounded up: as a signed number, it goes back
    np.copyto(bits, rounded)
    np.left_shift(bits, np.uint32(16), out=bits)
    np.add(bits, work.view(np.uint32), out=bits)


def decode_bfloat16(bits: Uint16) -> Float32:
    """bfloat16 bit patterns (uint16, any shape) → float32, exact."""
    source = np.asarray(bits, dtype=np.uint16, order="C")
    wide = source.astype(np.uint32)
    np.left_shift(wide, np.uint32(16), out=wide)
    return wide.view(np.float32)


def is_finite(values: NDArray[Any]) -> bool:
    """Whether no element is NaN or infinite; uint16 is read as bfloat16 patterns. Stops at the first bad block."""
    flat = values.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        if block.dtype == np.uint16:
            if ((block & np.uint16(0x7F80)) == np.uint16(0x7F80)).any():
                return False
        elif not np.isfinite(block).all():
            return False
    return True


def sum_of_squares(values: NDArray[Any]) -> float:
    """Σ x² in float64, block by block; uint16 is read as bfloat16 patterns."""
    flat, total = values.reshape(-1), 0.0
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        wide = (decode_bfloat16(block) if block.dtype == np.uint16 else block).astype(np.float64)
        total += float(np.dot(wide, wide))
    return total
