"""Names and cuts of blobs: `sha256:<hex>`, and the manifest that says what each chunk is. No I/O."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

from zk0d.errors import PayloadError

CHUNK = 1 << 20
MAX_CHUNKS = 32768
MIN_CHUNK, MAX_CHUNK = 1024, 4 << 20
DIGEST = re.compile(r"sha256:([0-9a-f]{64})\Z")


def hex_of(digest: str) -> str:
    """The 64 hex digits of `sha256:<64 hex>`; PayloadError for anything else (no path can be smuggled in)."""
    if not isinstance(digest, str) or not (match := DIGEST.match(digest)):
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
