"""Content-addressed files that survive a power cut: models, updates, specs, each named by its leaves (leaves.py).

Not a cache (nothing is deleted but by `delete`) and not a parser: what is in a blob is for others to judge.
Layout: `whole/ab/<hex>` (0444), `partial/<hex>.part` with `partial/<hex>.have` while one is arriving.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from zk0d.durable import fsync_dir, mkdir, write_bytes
from zk0d.errors import ConfigError, PayloadError
from zk0d.model.leaves import LEAF, NAME, Leaves, hex_of, name_of
from zk0d.model.lent import LentBlob
from zk0d.model.manifest import CHUNK, MAX_BLOB, MAX_CHUNK, MAX_CHUNKS, MIN_CHUNK, Manifest
from zk0d.model.partial import DiskFullError, Partial, disk_error

__all__ = [
    "CHUNK", "LEAF", "MAX_BLOB", "MAX_CHUNK", "MAX_CHUNKS", "MIN_CHUNK", "BlobStore", "DiskFullError", "Manifest",
    "Partial", "hex_of", "name_of",
]  # fmt: skip

_MANIFESTS_KEPT = 16 << 20
"""Bytes of manifests that are kept: whoever asks for those of all versions again and again makes no blob be read twice
(one of 200 MB takes 25 kB)."""
_MANIFEST = 1 << 10
"""Bytes that one takes beside its leaves, at most."""


class BlobStore:
    """A folder of blobs. Every method may be called from any thread; none needs an event loop."""

    def __init__(self, directory: Path, reserve: int = 64 << 20) -> None:
        """`reserve`: bytes of the file system that stay free whatever arrives."""
        self.directory = directory
        self.partials = directory / "partial"
        self._whole = directory / "whole"
        self._reserve = reserve
        self.headroom = 0
        """Bytes beyond the reserve that no arriving blob may take: what its owner needs to do something with them."""
        self._arriving: set[Partial] = set()
        self._manifests: dict[str, Manifest] = {}
        self._kept = 0
        self._making: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        if (directory / "sha256").is_dir():
            raise ConfigError(
                f"{directory} holds blobs of an earlier zk0d, which named them by another rule",
                "begin with an empty folder",
            )
        mkdir(self.partials)
        mkdir(self._whole)
        for leftover in [*self.partials.glob("add-*"), *self.partials.glob(".add-*")]:
            if not Path("/proc", leftover.name.split("-")[1]).exists():  # whoever was adding it was killed
                leftover.unlink(missing_ok=True)

    def path(self, digest: str) -> Path:
        """Where the blob is, or would be: pure name, see `has`."""
        name = hex_of(digest)
        return self._whole / name[:2] / name

    def has(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def size(self, digest: str) -> int:
        """Bytes of a blob that is here; PayloadError if it is not."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            raise _absent(digest) from None

    def read_bytes(self, digest: str) -> bytes:
        """The whole of a small blob; PayloadError if it is not here."""
        try:
            return self.path(digest).read_bytes()
        except FileNotFoundError:
            raise _absent(digest) from None

    def digests(self) -> Iterator[str]:
        """Every complete blob, in name order."""
        for folder in sorted(self._whole.iterdir()):
            for path in sorted(folder.iterdir()):
                if NAME.match(f"blob:{path.name}"):
                    yield f"blob:{path.name}"

    def total_bytes(self) -> int:
        """Bytes of all complete blobs."""
        return sum(self.size(d) for d in self.digests())

    def require_space(self, size: int) -> None:
        """DiskFullError when `size` more bytes would eat into the reserve."""
        free = shutil.disk_usage(self.directory).free
        if free < size + self._reserve:
            raise DiskFullError(
                f"{self.directory} has {free / 1e6:.0f} MB free, {size / 1e6:.0f} MB and a reserve of "
                f"{self._reserve / 1e6:.0f} MB are needed",
                "free some space; the transfer then goes on by itself",
            )

    def place(self, finished: Path, digest: str, manifest: Manifest | None = None) -> Path:
        """Rename a file that is known to be this blob, and already flushed, into the store. Whoever will serve it soon
        gives its manifest, if he has it: it is then not read for that again."""
        path = self.path(digest)
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
            fsync_dir(path.parent.parent)
        finished.replace(path)
        fsync_dir(path.parent)
        if manifest is not None:
            self._remember(manifest)
        return path

    def add_bytes(self, data: bytes) -> str:
        """Store `data`; its name."""
        digest = name_of(data)
        if not self.has(digest):
            self.require_space(len(data))
            tmp = self.partials / f"add-{os.getpid()}-{threading.get_ident()}"
            write_bytes(tmp, data, 0o444)
            self.place(tmp, digest)
        return digest

    def add_file(self, path: Path, *, move: bool = False) -> str:
        """Store a finished file; its name. Linked where it can be (the source then becomes read-only), else copied.

        `move` takes the source away. Never write to the source in place afterwards: it may be the same file.
        """
        tmp = self.partials / f"add-{os.getpid()}-{threading.get_ident()}"
        tmp.unlink(missing_ok=True)
        try:
            try:
                os.link(path, tmp)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                    raise
                self.require_space(path.stat().st_size)
                shutil.copyfile(path, tmp, follow_symlinks=False)
            fd = os.open(tmp, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                manifest = _cut(fd)
                os.fchmod(fd, 0o444)
                os.fsync(fd)
            finally:
                os.close(fd)
            if self.has(manifest.digest):
                tmp.unlink()
            else:
                self.place(tmp, manifest.digest)
        finally:
            tmp.unlink(missing_ok=True)
        self._remember(manifest)  # who adds a file will be asked for it, and it has just been read
        if move:
            path.unlink()
        return manifest.digest

    def partial(self, digest: str, manifest: Manifest) -> Partial:
        """Begin or resume the arrival of a blob; DiskFullError when what is missing does not fit."""
        if manifest.digest != digest:
            raise PayloadError(f"asked for {digest}, got the manifest of {manifest.digest}")
        try:
            partial = Partial(self, manifest)
        except OSError as error:
            raise disk_error(error, self.partials) from error
        try:
            with self._lock:
                self.require_space(partial.missing + self._promised())
                self._arriving.add(partial)
        except BaseException:
            partial.close()
            raise
        return partial

    def _promised(self) -> int:
        """Bytes that are spoken for. What is arriving counts with what it lacks: else all begin, and none can end."""
        return sum(p.missing for p in self._arriving) + self.headroom

    def require_arrival(self, digest: str, size: int) -> None:
        """DiskFullError when the rest of a blob of `size` bytes would not fit beside what is arriving already."""
        try:
            here = (self.partials / f"{hex_of(digest)}.part").stat().st_blocks * 512
        except FileNotFoundError:
            here = 0
        with self._lock:
            self.require_space(max(0, size - here) + self._promised())

    def closed(self, partial: Partial) -> None:
        """It does not arrive any more: what it was promised is free again."""
        with self._lock:
            self._arriving.discard(partial)

    def manifest(self, digest: str, chunk_size: int = CHUNK) -> Manifest:
        """What a blob that is here is made of, and cut in chunks of this size; reads all of it once, however many ask
        at a time. PayloadError if it is absent or damaged on disk."""
        with self._lock:
            making = self._making.setdefault(digest, threading.Lock())
        with making:
            try:
                with self._lock:
                    found = self._manifests.get(digest)
                if found is None:
                    found = self._read_again(digest)
                self._remember(found)
            finally:
                with self._lock:
                    self._making.pop(digest, None)
        return found if found.chunk_size == chunk_size else replace(found, chunk_size=chunk_size)

    def _remember(self, manifest: Manifest) -> None:
        with self._lock:
            self._forget(manifest.digest)
            self._manifests[manifest.digest] = manifest
            self._kept += len(manifest.leaves) + _MANIFEST
            while self._kept > _MANIFESTS_KEPT and len(self._manifests) > 1:
                self._forget(next(iter(self._manifests)))

    def _forget(self, digest: str) -> None:
        if (manifest := self._manifests.pop(digest, None)) is not None:
            self._kept -= len(manifest.leaves) + _MANIFEST

    def _read_again(self, digest: str) -> Manifest:
        try:
            fd = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _absent(digest) from None
        try:
            found = _cut(fd)
        finally:
            os.close(fd)
        if found.digest != digest:
            raise PayloadError(
                f"the blob {digest} is damaged on disk", f"delete {self.path(digest)} and fetch it again"
            )
        return found

    def read_chunk(self, digest: str, index: int, chunk_size: int = CHUNK) -> bytes:
        """Chunk `index`, shorter at the end; PayloadError when the blob or the chunk is not there."""
        try:
            fd = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _absent(digest) from None
        try:
            data = os.pread(fd, chunk_size, index * chunk_size) if index >= 0 else b""
        finally:
            os.close(fd)
        if not data:
            raise PayloadError(f"{digest} has no chunk {index}")
        return data

    def lend(self, digest: str) -> LentBlob:
        """The blob, open for lending chunks; PayloadError if it is not here."""
        try:
            return LentBlob(self.path(digest))
        except FileNotFoundError:
            raise _absent(digest) from None

    def delete(self, digest: str) -> bool:
        """Remove a blob and whatever has come of it; whether there was one."""
        path, name = self.path(digest), hex_of(digest)
        for leftover in (self.partials / f"{name}.part", self.partials / f"{name}.have"):
            leftover.unlink(missing_ok=True)
        with self._lock:
            self._forget(digest)
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        fsync_dir(path.parent)
        return True


def _absent(digest: str) -> PayloadError:
    return PayloadError(f"the blob {digest} is not here")


def _cut(fd: int) -> Manifest:
    """The manifest of an open file, in chunks of CHUNK; in one reading."""
    leaves, buffer = Leaves(), bytearray(LEAF)
    view = memoryview(buffer)
    while n := os.readv(fd, [buffer]):
        leaves.update(view[:n])
    return Manifest(leaves.name, leaves.size, CHUNK, leaves.digests)
