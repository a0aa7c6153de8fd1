"""Takes a folder in that zk0ctl sends over the control socket, read with the rights of the person who asked.

It lies in a folder that no request can name, and goes when the request ends, however it does. The other direction is
delivery.py; what is made of the files is a worker's.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zk0d import dataset_info
from zk0d.daemon.room import limits
from zk0d.daemon.sweeping import FOLDER
from zk0d.errors import DatasetError, LinkLostError, ProtocolError, UsageError, Zk0Error, os_reason
from zk0d.filetree import named

if TYPE_CHECKING:
    from zk0d.control_server import ControlConnection
    from zk0d.daemon.config import Config
    from zk0d.daemon.store import Store
    from zk0d.daemon.sweeping import Sweeper

_PIECE = 1 << 20
_LOOK = 64 << 20
_LOOK_FILES = 1000
_MOST_FILES = 500_000
"""A v2.1 dataset has some five files an episode."""
_NAMES_KEPT = 1000
"""Names (inodes) that stay free on the disk, as bytes do."""
_SILENCE_S = 600.0
_LEAST_RATE = 200_000
"""Bytes/s over ten minutes, below which whoever sends holds room that others want."""
_FILE_WORTH = 64 << 10
"""What a file counts in that, beside its bytes."""


@dataclass
class _Promise:
    """Room that is kept for one request of `size`: bytes still to come, and the size of what is then made of them."""

    target: Path
    size: int
    coming: int
    making: int


class Carrying:
    """Room for what is under way, and the taking in. One for the daemon."""

    def __init__(self, config: Config, store: Store, sweeper: Sweeper) -> None:
        self._config, self._store, self._sweeper = config, store, sweeper
        self._promises: list[_Promise] = []

    @asynccontextmanager
    async def folder(
        self, target: Path, request: dict[str, Any], connection: ControlConnection, anew: bool = False
    ) -> AsyncIterator[Path]:
        """A copy, beside `target`, of the folder that the client has: its `carry` says how many files and bytes come.

        Asked with the event `send`, it sends for each file a JSON line of `path` and `size` and the bytes as they are,
        then `{"end": true}`. `anew`: what is made of it needs as much room again, as what is not v3.x always does.
        Raises DatasetError where there is no room, ProtocolError, and LinkLostError when the client goes away before
        its end or is too slow.
        """
        files, size, told, version = _announced(request)
        datasets = target.parent
        place = datasets / FOLDER / f"{connection.uid}_{time.time_ns():x}"
        anew = anew or not version.startswith("v3.")
        with self._promised(_Promise(target, size, size, size if anew else 0)) as promise:
            await self._fits(datasets, promise, files)
            floor = max(1, int(self._config["datasets", "floor_gb"] * 1e9))
            try:
                await _Incoming(place, floor, promise, connection).take(files)
                if not anew and not dataset_info.version(await _ended(dataset_info.read, place)).startswith("v3."):
                    promise.making = size  # it is not what was said
                    await self._fits(datasets, promise, 0)
                yield place
            except Zk0Error as error:  # the sender's name for it
                error.message, error.hint = (text.replace(str(place), told) for text in (error.message, error.hint))
                raise
            finally:
                await asyncio.to_thread(self._sweeper.remove, place)

    @contextmanager
    def _promised(self, promise: _Promise) -> Iterator[_Promise]:
        if any(other.target == promise.target for other in self._promises):
            raise DatasetError(f"a dataset {promise.target.name!r} is just being taken in", "choose another name")
        self._promises.append(promise)
        try:
            yield promise
        finally:
            self._promises.remove(promise)

    async def _fits(self, datasets: Path, promise: _Promise, files: int) -> None:
        room = await limits(self._config, datasets, self._store.datasets())
        size = promise.coming + promise.making
        others = sum(p.coming + p.making for p in self._promises) - size
        has = f"{promise.size / 1e9:.2f} GB" + (", and as much again while it is made anew" if promise.making else "")
        there = datasets
        while not there.exists():
            there = there.parent
        disk = os.statvfs(there)
        free = disk.f_bavail * disk.f_frsize - room["floor_bytes"] - others
        if size > free:
            raise DatasetError(
                f"it has {has}, and the disk has {max(0, free) / 1e9:.2f} GB for it ([datasets] floor_gb)",
                "make room: nothing recorded is deleted for you",
            )
        if disk.f_files and files > disk.f_favail - _NAMES_KEPT:
            raise DatasetError(f"it has {files} files, and the disk takes {disk.f_favail} more", "`df -i` shows it")
        if room["quota_left"] and size + others > room["quota_left"]:
            raise DatasetError(
                f"it has {has}, and the quota of all datasets leaves {room['quota_left'] / 1e9:.2f} GB"
                " ([datasets] quota_gb)",
                "raise the quota, or export and remove others",
            )


class _Incoming:
    """One folder that comes. Every write is in a thread, so that the daemon's loop goes on with all else."""

    def __init__(self, place: Path, floor: int, promise: _Promise, connection: ControlConnection) -> None:
        self._place, self._floor, self._promise, self._connection = place, floor, promise, connection
        self._pace = Pace()
        self._unlooked = self._files = 0

    async def take(self, files: int) -> None:
        try:
            await _ended(self._begin)
            await self._connection.emit("send")
            for _ in range(files):
                await self._one()
        except OSError as error:
            raise DatasetError(f"{self._place}: {os_reason(error)}", "is the disk full, or a name too long?") from error
        if _object(await _heard(self._connection.line())) != {"end": True} or self._promise.coming:
            raise ProtocolError("other files came than were announced")
        self._connection.listen()

    def _begin(self) -> None:
        self._place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._place.mkdir(mode=0o700)

    async def _one(self) -> None:
        path, length = _header(await _heard(self._connection.line()), self._promise.coming)
        first = await self._piece(min(length, _PIECE))
        if len(first) == length:
            await _ended(self._whole, path, first)  # most files are small: one thread for all there is to do
        else:
            file = await _ended(self._opened, path)
            try:
                await _ended(self._write, file, first)
                left = length - len(first)
                while left:
                    piece = await self._piece(min(left, _PIECE))
                    await _ended(self._write, file, piece)
                    left -= len(piece)
            finally:
                file.close()
        self._pace.count(_FILE_WORTH)

    async def _piece(self, length: int) -> bytes:
        got = bytearray()
        while len(got) < length:
            more = await _heard(self._connection.piece(length - len(got)))
            self._pace.count(len(more))
            got += more
        return bytes(got)

    def _whole(self, path: Path, data: bytes) -> None:
        with self._opened(path) as file:
            self._write(file, data)

    def _opened(self, path: Path) -> FileIO:
        target = self._place / path
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._files += 1
        if self._files % _LOOK_FILES == 0:
            self._look()
        return FileIO(fd, "w")

    def _write(self, file: FileIO, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[file.write(left) :]
        self._promise.coming -= len(data)
        self._unlooked += len(data)
        if self._unlooked >= _LOOK:
            self._look()

    def _look(self) -> None:
        self._unlooked = 0
        disk = os.statvfs(self._place)
        if disk.f_bavail * disk.f_frsize < self._floor:
            raise DatasetError("the disk came down to its floor meanwhile ([datasets] floor_gb)",
                               "make room, then run the command again")  # fmt: skip
        if disk.f_files and disk.f_favail < _NAMES_KEPT:
            raise DatasetError("the disk takes hardly any more files", "`df -i` shows it")


class Pace:
    """Whether what comes is worth the room that is kept for it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since, self._came = clock(), 0

    def count(self, size: int) -> None:
        """So many bytes came. Raises LinkLostError when over ten minutes they are too few."""
        self._came += size
        span = self._clock() - self._since
        if span >= _SILENCE_S:
            if self._came < span * _LEAST_RATE:
                rate = self._came / span / 1e3
                raise LinkLostError(
                    f"the files come too slowly: {rate:.1f} kB/s in the last ten minutes, and room is kept for them",
                    "copy the folder to a disk of this machine first",
                )
            self._since, self._came = self._clock(), 0


async def _ended[T](work: Callable[..., T], *args: Any) -> T:
    """In a thread, which has ended when this ends, however often cancelled: what it writes to is closed only then."""
    doing = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        while not doing.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({doing})
        raise


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


def _announced(request: dict[str, Any]) -> tuple[int, int, str, str]:
    """How many files, their bytes, what their folder is called where they come from, and its version."""
    carry = request.get("carry")
    told = carry if isinstance(carry, dict) else {}
    files, size = told.get("files"), told.get("bytes")
    if not isinstance(files, int) or not isinstance(size, int) or files < 0 or size < 0:
        raise UsageError("the request does not say how many files and bytes are to come", "is zk0ctl as new as zk0d?")
    if files > _MOST_FILES:
        raise UsageError(f"it has {files} files: at most {_MOST_FILES} are taken in", "v3.0 needs far fewer")
    return files, size, str(told.get("folder") or "the folder")[:4096], str(told.get("version"))


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
