"""Looking at refused updates without trusting them: the reason, and the file's header through the strict reader.

Tensor data is never read. What goes in is admission.py's business.
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

from zk0d.errors import PayloadError, UsageError
from zk0d.hub.receipts import timestamp
from zk0d.model.payload import Payload

_MAX_HEADER = 1 << 20
_RECORD = ("update", "node", "federation", "payload", "reason")


def entries(directory: Path) -> list[dict[str, Any]]:
    """What is kept, oldest first: update, node, federation, payload, reason, at, bytes."""
    return [_entry(p) for p in sorted(directory.glob("*.json"), key=lambda p: p.stat().st_mtime)]


def _entry(record: Path) -> dict[str, Any]:
    value: Any = None
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(record.read_text())
    if not isinstance(value, dict) or any(not isinstance(value.get(key), str) for key in _RECORD):
        # Somebody's, or what a power cut left of it.
        value = {"update": f"sha256:{record.stem}", "node": "", "federation": "", "payload": ""}
        value["reason"] = f"not known: {record.name} is damaged"
    kept = record.with_suffix(".payload")
    return {**value, "at": timestamp(record.stat().st_mtime), "bytes": kept.stat().st_size if kept.exists() else None}


def show(directory: Path, update: str) -> dict[str, Any]:
    """One entry with its payload's header, or why that cannot be read. Raises UsageError."""
    record = _find(directory, update)
    found = _entry(record)
    found.update({"header_problem": "", "tensors": []})
    kept = record.with_suffix(".payload")
    if not kept.exists():
        return {**found, "header_problem": "the payload never arrived"}
    try:
        with Payload.open(kept, max_header=_MAX_HEADER) as payload:
            found["tensors"] = [
                {"name": n[:128], "dtype": e.dtype, "shape": list(e.shape)} for n, e in payload.entries.items()
            ]
    except (PayloadError, OSError) as error:
        found["header_problem"] = str(error)[:300]
    return found


def drop(directory: Path, update: str) -> dict[str, Any]:
    """Delete one entry → what it was. Raises UsageError."""
    record = _find(directory, update)
    found = _entry(record)
    record.with_suffix(".payload").unlink(missing_ok=True)
    record.unlink()
    return found


def _find(directory: Path, update: str) -> Path:
    """By the update's digest or the beginning of it."""
    name = update.removeprefix("sha256:")
    found = list(directory.glob(f"{name}*.json")) if re.fullmatch(r"[0-9a-f]{4,64}", name) else []
    if len(found) != 1:
        told = "is the beginning of several" if found else "is none of the"
        raise UsageError(f"{update[:80]!r} {told} quarantined updates", "`zk0-hub quarantine list`")
    return found[0]
