"""A task as the hub sends it: what must be in it, and when its update is due. Not for asking for one (uplink.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zk0d.errors import ProtocolError

FIELDS: dict[str, tuple[type, ...]] = {
    "id": (str,), "federation": (str,), "version": (int,), "version_digest": (str,), "spec_digest": (str,),
    "base_digest": (str,), "local_steps": (int,), "batch_size": (int,), "lr": (int, float), "mu": (int, float),
    "seed": (int,),
}  # fmt: skip
_LONGEST_S = 1e9


def checked(body: Any, federation: str) -> dict[str, Any]:
    """A task as the protocol has it. Raises ProtocolError naming the field that is wrong."""
    if not isinstance(body, dict):
        raise ProtocolError("the hub's task is not a map")
    for key, types in FIELDS.items():
        if isinstance(body.get(key), bool) or not isinstance(body.get(key), types):
            raise ProtocolError(f"the hub's task has no usable {key}: {body.get(key)!r}")
    if body["federation"] != federation:
        raise ProtocolError(f"asked for a task of {federation}, got one of {body['federation']}")
    return body


def due_at(body: Mapping[str, Any], now: float) -> float | None:
    """When an update of it becomes late, seconds since the epoch; None where the hub names no time."""
    due = body.get("due_s")
    if isinstance(due, bool) or not isinstance(due, int | float) or not 0 <= due <= _LONGEST_S:
        return None
    return now + float(due)
