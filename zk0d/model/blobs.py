"""Content-addressed files that survive a power cut: models, updates, specs, each named by its SHA-256.

Not a cache (nothing is deleted but by `delete`) and not a parser: what is in a blob is for others to judge.
Layout: `sha256/ab/<hex>` (0444), `partial/<hex>.part` with `partial/<hex>.have` while one is arriving.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from zk0d.durable import fsync_dir, write_bytes
from zk0d.errors import PayloadError, Zk0Error

CHUNK = 1 << 20
MAX_CHUNKS = 32768
MIN_CHUNK, MAX_CHUNK = 1024, 4 << 20
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})\Z")
_HAVE_HEAD = struct.Struct("<8sQI32s")  # magic, size, chunk size, SHA-256 of what follows up to the index log
_HAVE_MAGIC = b"zk0have1"
_SYNC_EVERY = 16 << 20
_MANIFESTS_KEPT = 16


class DiskFullError(Zk0Error):
    """There is not room for what was to be stored; nothing was deleted to make some."""

    code = "disk_full"


def hex_of(digest: str) -> str:
    """The 64 hex digits of `sha256:<64 hex>`; PayloadError for anything else (no path can be smuggled in)."""
    if not isinstance(digest, str) or not (match := _DIGEST.match(digest)):
        raise PayloadError(
            f"{str(digest)[:80]!r} is not a digest", "digests look like sha256:<64 lower-case hex digits>"
        )
    return match[1]


def digest_of(data: bytes | memoryview) -> str:
    """`sha256:<64 hex>` of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """How a blob is cut: every chunk is `chunk_size` bytes but the last; `chunks[i]` is its SHA-256 (32 bytes)."""

    digest: str
    size: int
    chunk_size: int
    chunks: tuple[bytes, ...] = field(repr=False)

    def __post_init__(self) -> None:
        hex_of(self.digest)
        if self.size < 0 or not MIN_CHUNK <= self.chunk_size <= MAX_CHUNK:
            raise PayloadError(
                f"manifest of {self.digest}: size {self.size}, chunk size {self.chunk_size}",
                f"chunks are {MIN_CHUNK} to {MAX_CHUNK} bytes",
            )
        if len(self.chunks) != -(-self.size // self.chunk_size) or len(self.chunks) > MAX_CHUNKS:
            raise PayloadError(f"manifest of {self.digest}: {len(self.chunks)} chunks do not make {self.size} bytes")
        if any(len(c) != 32 for c in self.chunks):
            raise PayloadError(f"manifest of {self.digest}: a chunk's digest is not 32 bytes")

    def length(self, index: int) -> int:
        """Bytes in chunk `index`; IndexError outside."""
        if not 0 <= index < len(self.chunks):
            raise IndexError(index)
        return min(self.chunk_size, self.size - index * self.chunk_size)

    def matches(self, index: int, data: bytes | memoryview) -> bool:
        """Whether `data` is chunk `index`, by length and SHA-256."""
        return (
            0 <= index < len(self.chunks)
            and len(data) == self.length(index)
            and hashlib.sha256(data).digest() == self.chunks[index]
        )


class Partial:
    """A blob that is arriving. Thread-safe; one object per digest at a time; `close` keeps what has come.

    Data and have-set are flushed every 16 MiB. What a crash tore is found when the next `BlobStore.partial` re-hashes
    every chunk the have-set names, so a chunk is either whole or asked for again. The store's reserve is kept.
    """

    def __init__(self, store: BlobStore, manifest: Manifest) -> None:
        self.manifest = manifest
        self.have: set[int] = set()
        self._store = store
        self._lock = threading.Lock()
        name = hex_of(manifest.digest)
        self._part, self._log = store.partials / f"{name}.part", store.partials / f"{name}.have"
        self._unsynced = 0
        self._hash = hashlib.sha256()
        self._hashed = 0  # chunks 0…_hashed-1 are in _hash
        claimed = self._claimed()
        if self._part.exists():
            self._part.chmod(0o600)  # `finish` made it read-only, and was killed before the rename
        self._fd = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(self._fd, manifest.size)
            self.have = {
                i
                for i in claimed
                if manifest.matches(i, os.pread(self._fd, manifest.length(i), i * manifest.chunk_size))
            }
            write_bytes(self._log, self._head() + b"".join(struct.pack("<I", i) for i in sorted(self.have)), 0o600)
            self._log_fd = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except BaseException:
            os.close(self._fd)
            raise
        self._open = True

    def _head(self) -> bytes:
        body = b"".join(self.manifest.chunks)
        return (
            _HAVE_HEAD.pack(_HAVE_MAGIC, self.manifest.size, self.manifest.chunk_size, hashlib.sha256(body).digest())
            + body
        )

    def _claimed(self) -> set[int]:
        """The chunk indexes an earlier run logged for exactly this manifest."""
        try:
            raw = self._log.read_bytes()
        except FileNotFoundError:
            return set()
        head = self._head()
        if not raw.startswith(head) or not self._part.exists():
            return set()
        log = raw[len(head) :]
        return {i for (i,) in struct.iter_unpack("<I", log[: len(log) // 4 * 4]) if i < len(self.manifest.chunks)}

    @property
    def done_bytes(self) -> int:
        """Bytes that have come and verified."""
        return sum(self.manifest.length(i) for i in self.have)

    @property
    def complete(self) -> bool:
        return len(self.have) == len(self.manifest.chunks)

    def write(self, index: int, data: bytes | memoryview) -> bool:
        """Verify chunk `index` and put it at its place; False (and nothing written) when it is not that chunk."""
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
                self._unsynced += len(data)
                if self._unsynced >= _SYNC_EVERY:
                    self._sync()
            except OSError as error:
                raise _disk_error(error, self._part) from error
            if index == self._hashed:
                self._hash.update(data)
                self._hashed += 1
        return True

    def _sync(self) -> None:
        os.fdatasync(self._fd)
        os.fdatasync(self._log_fd)
        self._unsynced = 0

    def finish(self) -> Path:
        """Check the whole digest and make the blob appear. PayloadError (and the partial is dropped) if it is wrong."""
        with self._lock:
            if not self.complete:
                raise PayloadError(
                    f"{self.manifest.digest} is not complete: {len(self.have)} of {len(self.manifest.chunks)} chunks"
                )
            for i in range(self._hashed, len(self.manifest.chunks)):
                self._hash.update(os.pread(self._fd, self.manifest.length(i), i * self.manifest.chunk_size))
            if self._hash.hexdigest() != hex_of(self.manifest.digest):
                self._close()
                self.drop()
                raise PayloadError(
                    f"all chunks of {self.manifest.digest} came, but the whole has another digest",
                    "the sender's manifest was wrong; nothing was kept",
                )
            os.fchmod(self._fd, 0o444)
            os.fsync(self._fd)
            self._close()
        path = self._store.place(self._part, self.manifest.digest)
        self._log.unlink(missing_ok=True)
        return path

    def _close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._fd)
            os.close(self._log_fd)

    def close(self) -> None:
        """Flush and let go; what has come stays for the next `BlobStore.partial`."""
        with self._lock:
            if self._open:
                self._sync()
            self._close()

    def drop(self) -> None:
        """Remove what has come."""
        self._part.unlink(missing_ok=True)
        self._log.unlink(missing_ok=True)


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
                if _DIGEST.match(f"sha256:{path.name}"):
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
                digest = "sha256:" + _hash_fd(fd)
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
        if move:
            path.unlink()
            with self._lock:
                if digest in self._fresh:  # the link that went changed the file's ctime
                    self._fresh[digest] = _look(self.path(digest).stat())
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
            with self._lock:
                self._manifests[key] = manifest
                self._fresh.pop(digest, None)
                while len(self._manifests) > _MANIFESTS_KEPT:
                    self._manifests.popitem(last=False)
            return manifest

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


def _disk_error(error: OSError, path: Path) -> Zk0Error:
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


def _hash_fd(fd: int) -> str:
    digest = hashlib.sha256()
    while data := os.read(fd, CHUNK):
        digest.update(data)
    return digest.hexdigest()
