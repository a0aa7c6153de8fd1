"""A blob that is arriving: chunks are proven, written at their place and counted in a have-set that survives a crash.

Not for finished blobs (blobs.py), nor for what to ask for (zk0d.link.transfer).
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from pathlib import Path
from typing import Protocol

from zk0d.durable import write_bytes
from zk0d.errors import PayloadError, Zk0Error
from zk0d.model.leaves import hex_of
from zk0d.model.manifest import Manifest
from zk0d.model.writeback import start_writeback

_HAVE_HEAD = struct.Struct("<8sQI")  # magic, size, chunk size; whose leaves they are is the file's name
_HAVE_MAGIC = b"zk0have2"
_SYNC_EVERY = 16 << 20
_WRITE_OUT_EVERY = 4 << 20
"""The disk works while more arrives, so that a flush finds little left to do."""


class DiskFullError(Zk0Error):
    """There is not room for what was to be stored; nothing was deleted to make some."""

    code = "disk_full"


class Shelf(Protocol):
    """What an arriving blob needs of its store."""

    partials: Path

    def require_space(self, size: int) -> None: ...

    def place(self, finished: Path, digest: str, manifest: Manifest | None = None) -> Path: ...

    def closed(self, partial: Partial) -> None: ...


class Partial:
    """A blob that is arriving. Thread-safe; one object per digest at a time; `close` keeps what has come.

    Each chunk is proven by the manifest, which its name proves: once all are here there is nothing left to hash. Data
    and have-set are flushed every 16 MiB, and the disk is told to begin every 4. A have-set may reach the disk before
    the data it speaks of, so it is only a hint: the next `BlobStore.partial` proves every chunk it names anew, and one
    that a crash tore is asked for again. The store's reserve is kept.
    """

    def __init__(self, store: Shelf, manifest: Manifest) -> None:
        self.manifest = manifest
        self.have: set[int] = set()
        self.missing = manifest.size
        """Bytes that have not come."""
        self._store = store
        self._lock = threading.Lock()
        name = hex_of(manifest.digest)
        self._part, self._log = store.partials / f"{name}.part", store.partials / f"{name}.have"
        self._unsynced = 0
        self._dirty: tuple[int, int] = (0, 0)  # start and end of a stretch that the disk has not been told of
        claimed = self._claimed()
        if self._part.exists():
            self._part.chmod(0o600)  # `finish` made it read-only, and was killed before the rename
        self._fd = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(self._fd, manifest.size)
            self.have = {i for i in claimed if manifest.matches(i, self._read(i))}
            self.missing = manifest.size - self.done_bytes
            write_bytes(self._log, self._head() + b"".join(struct.pack("<I", i) for i in sorted(self.have)), 0o600)
            self._log_fd = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except BaseException:
            os.close(self._fd)
            raise
        self._open = True

    def _head(self) -> bytes:
        return _HAVE_HEAD.pack(_HAVE_MAGIC, self.manifest.size, self.manifest.chunk_size)

    def _claimed(self) -> set[int]:
        """The chunk indexes an earlier run logged for this cut."""
        try:
            raw = self._log.read_bytes()
        except FileNotFoundError:
            return set()
        head = self._head()
        if not raw.startswith(head) or not self._part.exists():
            return set()
        log = raw[len(head) :]
        return {i for (i,) in struct.iter_unpack("<I", log[: len(log) // 4 * 4]) if i < self.manifest.count}

    @property
    def done_bytes(self) -> int:
        """Bytes that have come and are proven."""
        return sum(self.manifest.length(i) for i in self.have)

    @property
    def complete(self) -> bool:
        return len(self.have) == self.manifest.count

    def write(self, index: int, data: bytes | memoryview) -> bool:
        """Prove chunk `index` and put it at its place; False (and nothing written) when it is not that chunk."""
        if not self.manifest.matches(index, data):
            return False
        with self._lock:
            if not self._open:
                raise PayloadError(f"the partial of {self.manifest.digest} is closed")
            if index in self.have:
                return True
            if not self._unsynced:  # others fill the disk too, while this arrives
                self._store.require_space(len(data))
            try:
                _pwrite_all(self._fd, data, index * self.manifest.chunk_size)
                os.write(self._log_fd, struct.pack("<I", index))
                self.have.add(index)
                self.missing -= len(data)
                self._unsynced += len(data)
                self._write_out(index * self.manifest.chunk_size, len(data))
                if self._unsynced >= _SYNC_EVERY:
                    self._sync()
            except OSError as error:
                raise disk_error(error, self._part) from error
        return True

    def _write_out(self, start: int, size: int) -> None:
        """Have the disk begin with what has come, a stretch at a time."""
        if self._dirty[1] != start:
            self._dirty = (start, start)
        self._dirty = (self._dirty[0], start + size)
        if self._dirty[1] - self._dirty[0] >= _WRITE_OUT_EVERY:
            start_writeback(self._fd, self._dirty[0], self._dirty[1] - self._dirty[0])
            self._dirty = (self._dirty[1], self._dirty[1])

    def _read(self, index: int) -> bytes:
        return os.pread(self._fd, self.manifest.length(index), index * self.manifest.chunk_size)

    def _sync(self) -> None:
        os.fdatasync(self._fd)
        os.fdatasync(self._log_fd)
        self._unsynced = 0

    def finish(self) -> Path:
        """Make the blob appear, durably. PayloadError while a chunk is missing."""
        with self._lock:
            if not self.complete:
                raise PayloadError(
                    f"{self.manifest.digest} is not complete: {len(self.have)} of {self.manifest.count} chunks"
                )
            os.fchmod(self._fd, 0o444)
            os.fsync(self._fd)
            self._close()
        path = self._store.place(self._part, self.manifest.digest, self.manifest)
        self._log.unlink(missing_ok=True)
        return path

    def _close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._fd)
            os.close(self._log_fd)
            self._store.closed(self)

    def close(self) -> None:
        """Flush and let go; what has come stays for the next `BlobStore.partial`."""
        with self._lock:
            if self._open:
                self._sync()
            self._close()


def disk_error(error: OSError, path: Path) -> Zk0Error:
    """What the system refused, for people."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            f"no space left while writing {path}", "free some space; the transfer then goes on by itself"
        )
    return Zk0Error(f"{path}: {error.strerror}", "look at the disk")


def _pwrite_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        n = os.pwrite(fd, view, offset)
        view, offset = view[n:], offset + n
