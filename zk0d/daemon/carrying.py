"""Takes a folder in that zk0ctl sends over the control socket, read with the rights of the person who asked.

It lies in a folder that no request can name, and goes when the request ends, however it does. The other direction is
delivery.py; what is made of the files is a worker's.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zk0d.daemon.room import limits
from zk0d.errors import DatasetError, LinkLostError, ProtocolError, UsageError, Zk0Error, os_reason
from zk0d.filetree import named

if TYPE_CHECKING:
    from zk0d.control_server import ControlConnection
    from zk0d.daemon.config import Config
    from zk0d.daemon.store import Store

FOLDER = ".carried"
"""Below the folder of datasets, so that what has come becomes a dataset by its new name alone."""
_PIECE = 1 << 20
_LOOK = 64 << 20
_MOST_FILES = 2_000_000
_SILENCE_S = 600.0


def sweep(datasets: Path, work: Path) -> None:
    """At the daemon's start: remove what a killed one, or its workers, had half done."""
    for half in (datasets / FOLDER, work / "results", *datasets.glob(".*.*[0-9].part")):
        shutil.rmtree(half, ignore_errors=True)


class Carrying:
    """Room for what is under way, and the taking in. One for the daemon."""

    def __init__(self, config: Config, store: Store) -> None:
        self._config, self._store = config, store
        self._coming: dict[Path, int] = {}

    @asynccontextmanager
    async def folder(
        self, datasets: Path, request: dict[str, Any], connection: ControlConnection
    ) -> AsyncIterator[Path]:
        """A copy of the folder that the client has: `files` and `bytes` in the request's `carry` say how much comes.

        Asked with the event `send`, it sends for each file a JSON line of `path` and `size` and the bytes as they are,
        then `{"end": true}`. Raises DatasetError where there is no room, ProtocolError, and LinkLostError when the
        client goes away before its end.
        """
        files, size, told = _announced(request)
        place = datasets / FOLDER / f"{connection.uid}_{time.time_ns():x}"
        with self._promised(place, size):
            await self._fits(datasets, size)
            try:
                await self._take(place, files, connection)
                yield place
            except Zk0Error as error:
                error.message = error.message.replace(str(place), told)  # the sender's name for it
                raise
            finally:
                await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)

    @contextmanager
    def _promised(self, place: Path, size: int) -> Iterator[None]:
        self._coming[place] = size
        try:
            yield
        finally:
            del self._coming[place]

    async def _fits(self, datasets: Path, size: int) -> None:
        room = await limits(self._config, datasets, self._store.datasets())
        others = sum(self._coming.values()) - size
        there = datasets
        while not there.exists():
            there = there.parent
        free = shutil.disk_usage(there).free - room["floor_bytes"] - others
        if size > free:
            has = max(0, free) / 1e9
            raise DatasetError(
                f"it has {size / 1e9:.2f} GB, and the disk has {has:.2f} GB for it ([datasets] floor_gb)",
                "make room: nothing recorded is deleted for you",
            )
        if room["quota_left"] and size + others > room["quota_left"]:
            raise DatasetError(
                f"it has {size / 1e9:.2f} GB, and the quota of all datasets leaves {room['quota_left'] / 1e9:.2f} GB"
                " ([datasets] quota_gb)",
                "raise the quota, or export and remove others",
            )

    async def _take(self, place: Path, files: int, connection: ControlConnection) -> None:
        floor = max(1, int(self._config["datasets", "floor_gb"] * 1e9))
        try:
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            place.mkdir(mode=0o700)
            await connection.emit("send")
            for _ in range(files):
                await self._one(place, floor, connection)
        except OSError as error:
            raise DatasetError(f"{place}: {os_reason(error)}", "is the disk full, or a name too long?") from error
        if _object(await _heard(connection.line())) != {"end": True} or self._coming[place]:
            raise ProtocolError("other files came than were announced")
        connection.listen()

    async def _one(self, place: Path, floor: int, connection: ControlConnection) -> None:
        path, length = _header(await _heard(connection.line()), self._coming[place])
        target = place / path
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            while length:
                piece = await _heard(connection.piece(min(length, _PIECE)))
                await asyncio.to_thread(_write, fd, piece)
                length -= len(piece)
                left = self._coming[place] - len(piece)
                if left // _LOOK != self._coming[place] // _LOOK and shutil.disk_usage(place).free < floor:
                    raise DatasetError("the disk came down to its floor meanwhile ([datasets] floor_gb)",
                                       "make room, then run the command again")  # fmt: skip
                self._coming[place] = left
        finally:
            os.close(fd)


async def _heard(reading: Any) -> bytes:
    """What the client sends. Raises LinkLostError at its end or after a long silence."""
    try:
        async with asyncio.timeout(_SILENCE_S):
            heard: bytes = await reading
    except (ValueError, ConnectionError, TimeoutError) as error:
        raise LinkLostError(f"the files stopped coming: {error or 'nothing came for ten minutes'}") from None
    if not heard:
        raise LinkLostError("whoever sent the files has gone away")
    return heard


def _announced(request: dict[str, Any]) -> tuple[int, int, str]:
    """How many files, their bytes, and what their folder is called where they come from."""
    carry = request.get("carry")
    told = carry if isinstance(carry, dict) else {}
    files, size = told.get("files"), told.get("bytes")
    if not isinstance(files, int) or not isinstance(size, int) or not 0 <= files <= _MOST_FILES or size < 0:
        raise UsageError("the request does not say how many files and bytes are to come", "is zk0ctl as new as zk0d?")
    return files, size, str(told.get("folder") or "the folder")[:4096]


def _header(line: bytes, left: int) -> tuple[Path, int]:
    told = _object(line)
    size = told.get("size")
    if not isinstance(size, int) or not 0 <= size <= left:
        raise ProtocolError("a file is larger than was announced")
    return named(told.get("path")), size


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ProtocolError("what came is not a file's name and size")
    return value


def _write(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
