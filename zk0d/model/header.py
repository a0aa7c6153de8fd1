"""The header of a safetensors file, checked strictly. Without numpy: the daemon looks at headers, never at values.

Not for the values themselves (payload.py). Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, NoReturn

from zk0d.errors import PayloadError

MAX_HEADER = 100_000_000
"""Bytes; the safetensors library's own limit."""
MAX_DIMENSIONS = 32

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Every dtype that may be in one, and its size."""


@dataclass(frozen=True)
class Entry:
    """One tensor as the header declares it; `start` and `end` are bytes from the beginning of the data part."""

    dtype: str
    shape: tuple[int, ...]
    start: int = 0
    end: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * ITEM_BYTES[self.dtype]


def parse_header(header: bytes, data_bytes: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """Check a safetensors header (JSON bytes) against a data part of `data_bytes` bytes → entries and metadata.

    Raises PayloadError: not one JSON object, doubled keys, unknown dtype, shape that does not fill its extent,
    extents that overlap, leave a gap, are out of order or do not end at the end of the data.
    """
    if not header.startswith(b"{"):
        raise PayloadError("the header does not begin with '{'")
    try:
        value = json.loads(header.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"the header is not JSON that is accepted here: {short(str(error))}") from None
    metadata = value.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(not isinstance(v, str) for v in metadata.values()):
        raise PayloadError("__metadata__ is not a map of text to text")
    entries, position = {}, 0
    for name, raw in value.items():
        entry = _entry(short(name), raw)
        if entry.start != position:
            kind = "overlaps what is before it" if entry.start < position else "leaves a gap before it"
            raise PayloadError(f"tensor {short(name)!r} starts at {entry.start} and {kind} (expected {position})")
        entries[name] = entry
        position = entry.end
    if position != data_bytes:
        raise PayloadError(f"tensors end at byte {position} of {data_bytes} of data")
    return entries, metadata


def _entry(name: str, raw: object) -> Entry:
    if not isinstance(raw, dict) or raw.keys() != {"dtype", "shape", "data_offsets"}:
        raise PayloadError(f"tensor {name!r} is not described by exactly dtype, shape and data_offsets")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise PayloadError(f"tensor {name!r} has unknown dtype {short(repr(dtype))}")
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise PayloadError(f"tensor {name!r} has a shape that is no list of up to {MAX_DIMENSIONS} sizes")
    if not _naturals(offsets) or len(offsets) != 2:
        raise PayloadError(f"tensor {name!r} has data_offsets that are not two positions")
    entry = Entry(dtype, tuple(shape), *offsets)
    if entry.end - entry.start != entry.bytes:
        raise PayloadError(f"tensor {name!r}: shape and dtype do not fill its extent")
    return entry


def _naturals(value: object) -> bool:
    # Below 2^53: no shape of this world is larger, and products of a few stay cheap.
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 53 for v in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key appears twice")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def short(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."
