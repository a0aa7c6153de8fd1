"""The control socket's `logs`: the events, the daemon's own log by its fields, or a worker's output; and what follows.

Not for reading a journal: zk0ctl does that itself, with the rights of whoever asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zk0d.arguments import Whole
from zk0d.errors import UsageError
from zk0d.logbook import Filter, among, matching, rotated

if TYPE_CHECKING:
    from zk0d.control_server import ControlConnection
    from zk0d.daemon.service import Service

_TAIL = 1 << 20
_LOOK_S = 0.25


def log_paths(folder: Path) -> dict[str, Path]:
    """Log files by what they are of: the daemon's own and each worker kind's."""
    return {p.stem: p for p in sorted(folder.glob("*.log"))}


async def op_logs(service: Service, request: dict[str, Any], connection: ControlConnection) -> Any:
    """The last `count` lines of a log (`which`: zk0d or a worker kind) or of the events; with `follow` new ones too.

    With `filter` (logbook.Filter's plain values): entries of zk0d's log that it wants, as `log` events.
    """
    which, count = str(request.get("which") or "events"), request.get("count", 30)
    count = Whole(0).of(count, "the number of lines")
    follow = bool(request.get("follow"))
    if which == "events":
        return await _events(service, count, float(request.get("since") or 0.0), follow, connection)
    paths = log_paths(service.state / "log")
    if request.get("filter") is not None:
        return await _filtered(service, request, count, follow, connection)
    if which not in paths:
        raise UsageError(f"there is no log of {which!r}", f"there are events, {', '.join(paths)}")
    path = paths[which]
    with path.open("rb") as f:
        size = f.seek(0, 2)
        f.seek(max(0, size - _TAIL))
        lines = f.read().decode(errors="replace").splitlines()
        for line in lines[max(0, len(lines) - count) :]:
            await connection.emit("line", text=line)
    async for raw in _more(service, path, size if follow else None, connection):
        await connection.emit("line", text=raw.rstrip("\n"))
    return {"log": str(path)}


async def _more(service: Service, path: Path, begin: int | None, connection: ControlConnection) -> AsyncIterator[str]:
    """Lines of a log file from byte `begin` (None: none) as they come, also after it was rotated."""
    if begin is None:
        return
    at, rest = begin, b""
    while not connection.closed.is_set() and not service.ending.is_set():
        if path.exists():
            at = at if path.stat().st_size >= at else 0
            with path.open("rb") as f:
                f.seek(at)
                data = f.read()
            at += len(data)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace")
        await asyncio.sleep(_LOOK_S)


async def _filtered(
    service: Service, request: dict[str, Any], count: int, follow: bool, connection: ControlConnection
) -> Any:
    try:
        wanted = Filter.of(request["filter"])
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"the filter cannot be used: {error}") from error
    path = service.state / "log" / "zk0d.log"
    size = path.stat().st_size if path.exists() else 0
    for entry in await asyncio.to_thread(matching, rotated(path), wanted, count):
        await connection.emit("log", entry=asdict(entry))
    async for line in _more(service, path, size if follow else None, connection):
        for entry in among([line], wanted):
            await connection.emit("log", entry=asdict(entry))
    return {"log": str(path)}


async def _events(service: Service, count: int, since: float, follow: bool, connection: ControlConnection) -> Any:
    newest = service.store.events(max(1, count))
    last = newest[-1]["id"] if newest else 0
    for entry in newest[max(0, len(newest) - count) :]:
        if entry["at"] >= since:
            await connection.emit("entry", **{k: v for k, v in entry.items() if k != "id"})
    while follow and not connection.closed.is_set() and not service.ending.is_set():
        for entry in service.store.events(1000, after=last):
            last = entry["id"]
            await connection.emit("entry", **{k: v for k, v in entry.items() if k != "id"})
        await asyncio.sleep(_LOOK_S)
    return {"log": "events"}
