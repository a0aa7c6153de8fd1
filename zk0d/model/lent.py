"""Chunks of a finished blob, lent where they lie: read only when they go out, straight from the page cache.

What is not in memory would make the reader wait for the disk: `LentBlob.chunk` says None, `from_disk` reads it first.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from zk0d.errors import PayloadError

_PROBE = 256 * 1024


class LentBlob:
    """An open blob. The descriptor closes with the last chunk that is lent of it."""

    def __init__(self, path: Path) -> None:
        """FileNotFoundError when there is none."""
        self.path = str(path)
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.fd).st_size
        self._nowait = True

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)

    def chunk(self, index: int, chunk_size: int) -> LentChunk | None:
        """Chunk `index`, None when the disk would have to be asked for it (or we cannot tell); PayloadError outside."""
        start, size = self._extent(index, chunk_size)
        probe = bytearray(1)
        try:
            for at in (*range(start, start + size, _PROBE), start + size - 1) if self._nowait else ():
                os.preadv(self.fd, [probe], at, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                self._nowait = False  # a file system that cannot say
            return None
        return LentChunk(self, start, size) if self._nowait else None

    def from_disk(self, index: int, chunk_size: int) -> LentChunk:
        """Chunk `index` once the disk was asked for it, from a thread: it lies in the page cache then, so that however
        many slow peers wait for chunks, none lies in this process's memory. PayloadError outside; OSError."""
        start, size = self._extent(index, chunk_size)
        room = memoryview(bytearray(min(size, _PROBE)))
        at, end = start, start + size
        while at < end:
            n = os.preadv(self.fd, [room[: end - at]], at)
            if not n:
                raise PayloadError(f"{self.path} became shorter")
            at += n
        return LentChunk(self, start, size)

    def _extent(self, index: int, chunk_size: int) -> tuple[int, int]:
        start = index * chunk_size
        size = min(chunk_size, self.size - start)
        if index < 0 or size <= 0:
            raise PayloadError(f"there is no chunk {index}")
        return start, size


class LentChunk:
    """See zk0d.link.messages.Lent."""

    __slots__ = ("_blob", "_size", "_start")

    def __init__(self, blob: LentBlob, start: int, size: int) -> None:
        self._blob, self._start, self._size = blob, start, size

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        whole = bytearray(self._size)
        self.read_into(0, memoryview(whole))
        return bytes(whole)

    def read_into(self, at: int, into: memoryview) -> None:
        """Fill `into` from byte `at` on; OSError when the file does not hold as much any more."""
        if os.preadv(self._blob.fd, [into], self._start + at) != len(into):
            raise OSError(errno.EIO, "a blob became shorter")
