"""Bad input made from good: bytes, msgpack maps and JSON headers that are almost right. Seeded; not a test itself."""

from __future__ import annotations

import json
import random
from typing import Any

NUMBERS = (0, 1, -1, 2, 31, 32, 127, 128, 255, 256, 1023, 1024, 65535, 65536, 1 << 20, (4 << 20) + 1, 1 << 31, (1 << 32) - 1, 1 << 40,
           1 << 53, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63))  # fmt: skip
"""Sizes, counts and ids at which parsers break; among them terabytes."""


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def hostile(rng: random.Random) -> Any:
    """A value that does not belong where it is put."""
    kind = rng.randrange(12)
    if kind < 5:
        return rng.choice(NUMBERS)
    return (
        None, True, float("nan"), "", "x" * rng.choice((1, 65, 70_000)), b"\xff" * rng.choice((0, 31, 33)),
        deep(rng.choice((1, 7, 9, 60))),
    )[kind - 5]  # fmt: skip


def mutate_bytes(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """`data` with one to four small wounds; `other` lends parts of itself."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(9)
        if kind == 0 and out:
            out[min(at, len(out) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1 and out:
            out[min(at, len(out) - 1)] = rng.choice((0, 1, 4, 6, 127, 128, 193, 220, 223, 255))
        elif kind == 2:
            out[at:at] = rng.randbytes(rng.choice((1, 2, 8)))
        elif kind == 3:
            del out[at : at + rng.choice((1, 2, 8, 64))]
        elif kind == 4:
            out[at:at] = out[at : at + rng.choice((1, 8, 64))]
        elif kind == 5:
            start = rng.randrange(len(other) + 1)
            out[at : at + rng.choice((0, 8))] = other[start : start + rng.choice((1, 8, 64))]
        elif kind == 6:
            del out[at:]
        elif kind == 7:
            width = rng.choice((1, 2, 4, 8))
            out[at : at + width] = (rng.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, "big")
        else:
            out += rng.randbytes(rng.choice((1, 64)))
    return bytes(out)


def mutate_tree(rng: random.Random, value: Any) -> Any:
    """A copy of a map or list with one place changed: a value replaced, dropped, added, or moved under another key."""
    if isinstance(value, dict) and value:
        out, key = dict(value), rng.choice(list(value))
        kind = rng.randrange(8)
        if kind < 3:
            out[key] = mutate_tree(rng, value[key]) if isinstance(value[key], dict | list) else hostile(rng)
        elif kind == 3:
            out[key] = hostile(rng)
        elif kind == 4:
            del out[key]
        elif kind == 5:
            out[rng.choice(("", "v", "t", "id", "re", "body", "digest", "x" * 300, 7))] = hostile(rng)
        elif kind == 6:
            out[key] = value[rng.choice(list(value))]
        else:
            out = {rng.choice((k, str(k).upper())): v for k, v in value.items()}
        return out
    if isinstance(value, list) and value:
        at = rng.randrange(len(value))
        inner = mutate_tree(rng, value[at]) if isinstance(value[at], dict | list) else hostile(rng)
        return rng.choice(([*value[:at], inner, *value[at + 1 :]], value * rng.choice((0, 2, 40)), value[::-1]))
    return hostile(rng)


def mutate_json(rng: random.Random, text: str) -> str:
    """JSON text with hostile numbers, doubled or dropped parts, or wounds in its bytes."""
    kind = rng.randrange(4)
    if kind == 0:
        try:
            return json.dumps(mutate_tree(rng, json.loads(text)), separators=(",", ":"), default=repr)
        except (ValueError, RecursionError):
            pass
    if kind == 1:
        digits = [i for i, c in enumerate(text) if c.isdigit()]
        if digits:
            at = rng.choice(digits)
            return text[:at] + rng.choice([*map(str, NUMBERS), "1e9", "NaN", "-0", "1.0", "9" * 40]) + text[at + 1 :]
    if kind == 2:
        a, b = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
        return text[:b] + text[a:b] * rng.choice((0, 1, 3)) + text[b:]
    return mutate_bytes(rng, text.encode(), b'"data_offsets":[0,0],"__metadata__":{}').decode(errors="surrogateescape")
