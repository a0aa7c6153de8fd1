"""What a blob is called: `blob:<hex>`, a hash over its size and the SHA-256 of each of its leaves.

So a name proves a list of leaves and the list each leaf, as it comes, whatever else is missing: bytes are hashed once.
Not the `sha256sum` of the file, and not for statements or receipts, whose digests are plain (durable.py).
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from zk0d.errors import PayloadError

LEAF = 256 << 10
"""Bytes of a leaf, all but the last one: small enough that a chunk may be as small, and stay in a core's cache; large
enough that the leaves of 32 GiB fit one message."""
LEAF_DIGEST = 32
NAME = re.compile(r"blob:([0-9a-f]{64})\Z")
_ROOT = b"zk0 blob v1\0"
"""What the root's hash begins with. The tree has two floors, and neither stands where the other may: no leaf can pass
for a root, so leaves need no mark of their own and are what `sha256sum` says of them."""


def hex_of(name: str) -> str:
    """The 64 hex digits of `blob:<64 hex>`; PayloadError for anything else (no path can be smuggled in)."""
    if not isinstance(name, str) or not (match := NAME.match(name)):
        raise PayloadError(f"{str(name)[:80]!r} is not a blob's name", "they look like blob:<64 lower-case hex digits>")
    return match[1]


def leaves_of(data: bytes | memoryview) -> bytes:
    """The SHA-256 of each leaf of `data`, 32 bytes each; `data` begins where a leaf begins."""
    view = memoryview(data)
    return b"".join(hashlib.sha256(view[i : i + LEAF]).digest() for i in range(0, len(view), LEAF))


def name_of_leaves(size: int, leaves: bytes | memoryview) -> str:
    """`blob:<hex>` of a blob of `size` bytes with these leaves: SHA-256 of a prefix, the size (u64, big-endian) and the
    leaves' digests in order."""
    return "blob:" + hashlib.sha256(_ROOT + size.to_bytes(8, "big") + leaves).hexdigest()


def name_of(data: bytes | memoryview) -> str:
    """`blob:<hex>` of `data`."""
    return name_of_leaves(len(data), leaves_of(data))


def name_of_file(path: Path) -> str:
    """`blob:<hex>` of a file, read once."""
    grown, buffer = Leaves(), bytearray(LEAF)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as f:
        while n := f.readinto(buffer):
            grown.update(view[:n])
    return grown.name


class Leaves:
    """The leaves of bytes that come piece by piece, in pieces of any length."""

    def __init__(self) -> None:
        self.size = 0
        self._done = bytearray()
        self._last = hashlib.sha256()
        self._room = LEAF  # bytes that the last leaf still takes

    def update(self, data: bytes | memoryview) -> None:
        """The next bytes. A view is one of bytes."""
        view = memoryview(data)
        self.size += len(view)
        while len(view) >= self._room:
            self._last.update(view[: self._room])
            self._done += self._last.digest()
            view, self._room, self._last = view[self._room :], LEAF, hashlib.sha256()
        if view:
            self._last.update(view)
            self._room -= len(view)

    @property
    def digests(self) -> bytes:
        """The SHA-256 of each leaf so far."""
        return bytes(self._done) + (self._last.digest() if self._room < LEAF else b"")

    @property
    def name(self) -> str:
        """What a blob of these bytes is called."""
        return name_of_leaves(self.size, self.digests)
