"""Judging an update's bytes before they may count, in the order that lets nothing unverified be parsed or used.

Size and name (the transfer proves each chunk by it), the node's signature, header, names, shapes, dtypes,
finite values, norm. What is refused goes to quarantine with the reason. Not for who may offer (rounds.py).
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from zk0d.durable import write_json
from zk0d.errors import PayloadError
from zk0d.hub.receipts import Statement, check_signature
from zk0d.model.codec import BLOCK, sum_of_squares
from zk0d.model.leaves import name_of_file
from zk0d.model.payload import DTYPES, WIRE, Payload
from zk0d.model.spec import ModelSpec

HEADER_PER_TENSOR = 1024
"""Bytes of header per tensor that a payload may have beyond its data, plus 64 KiB."""
QUARANTINED = 20
"""Refused payloads kept for a look; older ones go."""


class CancelledError(Exception):
    """The hub is stopping; nothing was decided."""


def size_limit(spec: ModelSpec) -> int:
    """Bytes the largest acceptable payload file of this spec can have."""
    return spec.payload_bytes + _header_limit(spec)


def _header_limit(spec: ModelSpec) -> int:
    return 65536 + HEADER_PER_TENSOR * len(spec.exchange)


def inspect(
    path: Path,
    statement: Statement,
    certificate: bytes,
    spec: ModelSpec,
    max_norm: float,
    cancelled: Callable[[], bool] = lambda: False,
    *,
    hashed: bool = False,
) -> float:
    """Judge the payload at `path` → its Euclidean norm. Raises PayloadError or ProtocolError with the reason.

    `max_norm` 0: any norm. `hashed`: the name has been proven just now, by the transfer.
    `cancelled` is asked now and then; CancelledError then.
    """
    size = path.stat().st_size
    if size != statement.size or size > size_limit(spec):
        raise PayloadError(f"the payload has {size} bytes, the statement says {statement.size}")
    if not hashed and name_of_file(path) != statement.payload:
        raise PayloadError(f"the payload is not {statement.payload}")
    check_signature(statement, certificate)
    total, room = 0.0, np.empty(BLOCK, DTYPES[WIRE[spec.dtype]])
    with Payload.open(path, max_header=_header_limit(spec)) as payload:
        payload.check_against(spec)
        for name in payload.names:
            elements = payload.entries[name].elements
            for start in range(0, elements, BLOCK):
                if cancelled():
                    raise CancelledError
                part = room[: min(BLOCK, elements - start)]
                payload.read(name, start, part)  # not mapped: pages of it would count as this process's memory
                squares = sum_of_squares(part)  # one reading judges both: float64 holds the square of any float32
                if not math.isfinite(squares):
                    raise PayloadError(f"tensor {name!r} holds a NaN or an infinity")
                total += squares
    norm = math.sqrt(total)
    if max_norm > 0 and norm > max_norm:
        raise PayloadError(f"the update's norm {norm:.4g} is above this federation's limit {max_norm:.4g}")
    return norm


def quarantine(directory: Path, path: Path, statement: Statement, reason: str) -> None:
    """Keep a refused payload and why it was refused, for a maintainer to look at; bounded to the newest few. Raises
    OSError; then nothing of it is kept."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = statement.digest.removeprefix("sha256:")
    kept = directory / f"{name}.payload"
    record = {"update": statement.digest, "node": statement.node, "federation": statement.federation,
              "payload": statement.payload, "reason": reason}  # fmt: skip
    try:
        if path.exists():
            kept.unlink(missing_ok=True)
            try:
                os.link(path, kept)
            except OSError:
                shutil.copyfile(path, kept)
        write_json(directory / f"{name}.json", record)
    except OSError:  # a payload without its record is listed, bounded and dropped by nothing
        kept.unlink(missing_ok=True)
        raise
    records = sorted(directory.glob("*.json"), key=lambda p: p.stat().st_mtime)
    for old in records[:-QUARANTINED]:
        old.with_suffix(".payload").unlink(missing_ok=True)
        old.unlink(missing_ok=True)
