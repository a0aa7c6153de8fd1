"""Content-addressed files that survive a power cut: models, updates, specs, each named by its SHA-256.

Not a cache (nothing is deleted but by `delete`) and not a parser: what is in a blob is for others to judge.
Layout: `sha256/ab/<hex>` (0444), `partial/<hex>.part` with `partial/<hex>.have` while one is arriving.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from zk0d.durable import fsync_dir, write_bytes
from zk0d.errors import PayloadError
from zk0d.model.lent import LentBlob
from zk0d.model.manifest import CHUNK, DIGEST, MAX_CHUNK, MAX_CHUNKS, MIN_CHUNK, Manifest, digest_of, hex_of
from zk0d.model.partial import DiskFullError, Partial

__all__ = [
    "CHUNK", "MAX_CHUNK", "MAX_CHUNKS", "MIN_CHUNK", "BlobStore", "DiskFullError", "Manifest", "Partial", "digest_of",
    "hex_of",
]  # fmt: skip

_MANIFESTS_KEPT = 16


class BlobStore:
    """A folder of blobs. Every method may be called from any thread; none needs an event loop."""

    def __init__(self, directory: Path, reserve: int = 64 << 20) -> None:
        """`reserve`: bytes of the file system that stay free whatever arrives."""
        self.directory = directory
        self.partials = directory / "partial"
        self._reserve = reserve
        self._manifests: OrderedDict[tuple[str, int], Manifest] = OrderedDict()
        self._making: dict[tuple[str, int], threading.Lock] = {}
        self._fresh: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        """Blobs whose digest this process has worked out, and what `_look` said of the file then: while it says so
        still, their first manifest need not hash the whole again."""
        self._lock = threading.Lock()
        self.partials.mkdir(parents=True, exist_ok=True)
        (directory / "sha256").mkdir(exist_ok=True)
        for leftover in [*self.partials.glob("add-*"), *self.partials.glob(".add-*")]:
            if not Path("/proc", leftover.name.split("-")[1]).exists():  # whoever was adding it was killed
                leftover.unlink(missing_ok=True)

    def path(self, digest: str) -> Path:
        """Where the blob is, or would be: pure name, see `has`."""
        name = hex_of(digest)
        return self.directory / "sha256" / name[:2] / name

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
        for folder in sorted((self.directory / "sha256").iterdir()):
            for path in sorted(folder.iterdir()):
                if DIGEST.match(f"sha256:{path.name}"):
                    yield f"sha256:{path.name}"

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

    def place(self, finished: Path, digest: str) -> Path:
        """Rename a file that is known to be this blob, and already flushed, into the store."""
        path = self.path(digest)
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
            fsync_dir(path.parent.parent)
        finished.replace(path)
        fsync_dir(path.parent)
        with self._lock:
            self._fresh[digest] = _look(path.stat())
            while len(self._fresh) > _MANIFESTS_KEPT:
                self._fresh.popitem(last=False)
        return path

    def add_bytes(self, data: bytes) -> str:
        """Store `data`; its digest."""
        digest = digest_of(data)
        if not self.has(digest):
            self.require_space(len(data))
            tmp = self.partials / f"add-{os.getpid()}-{threading.get_ident()}"
            write_bytes(tmp, data, 0o444)
            self.place(tmp, digest)
        return digest

    def add_file(self, path: Path, *, move: bool = False) -> str:
        """Store a finished file; its digest. Linked where it can be (the source then becomes read-only), else copied.

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
                shutil.copyfile(path, tmp)
            fd = os.open(tmp, os.O_RDONLY | os.O_CLOEXEC)
            try:
                digest, manifest = _hash_fd(fd)
                os.fchmod(fd, 0o444)
                os.fsync(fd)
            finally:
                os.close(fd)
            if self.has(digest):
                tmp.unlink()
            else:
                self.place(tmp, digest)
        finally:
            tmp.unlink(missing_ok=True)
        if manifest is not None:  # who adds a file will be asked for it, and it has just been read
            self._remember(manifest)
        if move:
            path.unlink()
        return digest

    def partial(self, digest: str, manifest: Manifest) -> Partial:
        """Begin or resume the arrival of a blob; DiskFullError when what is missing does not fit."""
        if manifest.digest != digest:
            raise PayloadError(f"asked for {digest}, got the manifest of {manifest.digest}")
        partial = Partial(self, manifest)
        try:
            self.require_space(manifest.size - partial.done_bytes)
        except BaseException:
            partial.close()
            raise
        return partial

    def manifest(self, digest: str, chunk_size: int = CHUNK) -> Manifest:
        """How a blob that is here is cut; reads all of it once, however many ask at a time. PayloadError if it is
        absent or damaged on disk."""
        key = (digest, chunk_size)
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                found, seen = self._manifests.get(key), self._fresh.get(digest)
                if found is not None:
                    self._manifests.move_to_end(key)
                    return found
            try:
                manifest = self._cut(digest, chunk_size, seen)
            finally:
                with self._lock:
                    self._making.pop(key, None)
            self._remember(manifest)
            return manifest

    def _remember(self, manifest: Manifest) -> None:
        with self._lock:
            self._manifests[manifest.digest, manifest.chunk_size] = manifest
            self._fresh.pop(manifest.digest, None)
            while len(self._manifests) > _MANIFESTS_KEPT:
                self._manifests.popitem(last=False)

    def _cut(self, digest: str, chunk_size: int, seen: tuple[int, ...] | None) -> Manifest:
        whole, chunks, size = hashlib.sha256(), [], 0
        buffer = bytearray(chunk_size)
        try:
            with self.path(digest).open("rb", buffering=0) as f:
                fresh = seen == _look(os.fstat(f.fileno()))
                while n := f.readinto(buffer):
                    data = memoryview(buffer)[:n]
                    if not fresh:
                        whole.update(data)
                    chunks.append(hashlib.sha256(data).digest())
                    size += n
        except FileNotFoundError:
            raise _absent(digest) from None
        if not fresh and whole.hexdigest() != hex_of(digest):
            raise PayloadError(
                f"the blob {digest} is damaged on disk", f"delete {self.path(digest)} and fetch it again"
            )
        return Manifest(digest, size, chunk_size, tuple(chunks))

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
            self._fresh.pop(digest, None)
            for key in [k for k in self._manifests if k[0] == digest]:
                del self._manifests[key]
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        fsync_dir(path.parent)
        return True


def _look(stat: os.stat_result) -> tuple[int, ...]:
    """What a write to the file, or another file in its place, would change."""
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _absent(digest: str) -> PayloadError:
    return PayloadError(f"the blob {digest} is not here")


def _hash_fd(fd: int) -> tuple[str, Manifest | None]:
    """The digest of a file, and its manifest in chunks of CHUNK unless it is too large for one; in one reading."""
    whole, chunks, size, even = hashlib.sha256(), [], 0, True
    buffer = bytearray(CHUNK)
    while n := os.readv(fd, [buffer]):
        data = memoryview(buffer)[:n]
        even = even and size % CHUNK == 0  # a reading that was cut short makes no chunk
        whole.update(data)
        chunks.append(hashlib.sha256(data).digest())
        size += n
    digest = "sha256:" + whole.hexdigest()
    return digest, Manifest(digest, size, CHUNK, tuple(chunks)) if even and len(chunks) <= MAX_CHUNKS else None
