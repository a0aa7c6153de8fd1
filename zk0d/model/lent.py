"""Chunks of a finished blob, lent where they lie: read only when they go out, straight from the page cache.

Not for data that is not in memory: that would make the reader wait for the disk, so `LentBlob.chunk` says None.
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
        start = index * chunk_size
        size = min(chunk_size, self.size - start)
        if index < 0 or size <= 0:
            raise PayloadError(f"there is no chunk {index}")
        probe = bytearray(1)
        try:
            for at in (*range(start, start + size, _PROBE), start + size - 1) if self._nowait else ():
                os.preadv(self.fd, [probe], at, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                self._nowait = False  # a file system that cannot say
            return None
        return LentChunk(self, start, size) if self._nowait else None


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
