"""Files that survive `kill -9` and a power cut: written whole or not at all.

The order is temporary file, write, fsync, rename, fsync of the folder. Not for large streamed blobs,
which have their own store (zk0d/model/blobs.py) built from the pieces here.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import os
from collections.abc import Buffer
from pathlib import Path
from typing import Any

_READ = 1 << 20
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


class Unbuffered(io.FileIO):
    """A file without a buffer that writes all it is given, or raises OSError.

    A bare one writes as much as a disk that is nearly full still takes, and says so in its result, which who hands the
    file on to a library cannot look at: what follows when there is room again would follow a torn piece.
    """

    def write(self, data: Buffer, /) -> int:
        view, done = memoryview(data).cast("B"), 0
        while done < len(view):
            done += super().write(view[done:]) or 0
        return done


def fsync_dir(folder: Path) -> None:
    """Make a rename, creation or removal inside `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def mkdir(folder: Path) -> None:
    """Make `folder` and what of its parents is missing, each durable in its own: a file that is flushed in a folder
    whose name is not on the disk is lost with it. Nothing where it is there already."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for made in reversed(missing):
        made.mkdir(exist_ok=True)
        fsync_dir(made.parent)


def write_bytes(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `data` atomically and durably. The old content stays if anything fails."""
    mkdir(path.parent)
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """As `write_bytes`, UTF-8."""
    write_bytes(path, text.encode(), mode)


def write_json(path: Path, value: Any, mode: int = 0o644) -> None:
    """As `write_bytes`, indented JSON with a final newline."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(), mode)


def publish(tmp: Path, path: Path) -> None:
    """Make the finished file or folder `tmp` appear at `path`, durably; `path` may be an existing file."""
    if tmp.is_file():
        fd = os.open(tmp, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    else:
        flush_tree(tmp)
    os.replace(tmp, path)
    fsync_dir(path.parent)


def flush_tree(top: Path) -> None:
    """Make every file and name below the folder `top` durable."""
    for folder, _, names in os.walk(top):
        for name in names:
            fd = os.open(os.path.join(folder, name), os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        fsync_dir(Path(folder))


def exchange(one: Path, other: Path) -> None:
    """Swap two files or folders of one file system in one step, durably (renameat2(2), RENAME_EXCHANGE).

    Raises OSError where the kernel or the file system cannot; nothing has changed then.
    """
    rename = ctypes.CDLL(None, use_errno=True).renameat2
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one))
    for folder in {one.parent, other.parent}:
        fsync_dir(folder)


def sha256_file(path: Path) -> str:
    """Lower-case hex SHA-256 of a file, read in 1 MiB blocks."""
    digest = hashlib.sha256()
    buffer = bytearray(_READ)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as f:
        while n := f.readinto(buffer):
            digest.update(view[:n])
    return digest.hexdigest()


def digest_of(data: bytes) -> str:
    """`sha256:<64 hex>` of `data`, the name of a statement. What a blob is called: zk0d/model/leaves.py."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one byte string that stands for `value`: sorted keys, no spaces, UTF-8. Digests are taken over it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
