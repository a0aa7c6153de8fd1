"""What a blob is made of, proven: a `Manifest` that exists has the leaves of the blob that it names. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

from zk0d.errors import PayloadError
from zk0d.model.leaves import LEAF, LEAF_DIGEST, hex_of, leaves_of, name_of_leaves

CHUNK = 1 << 20
MIN_CHUNK, MAX_CHUNK = LEAF, 4 << 20
MAX_CHUNKS = 131072
"""Leaves, and so chunks, of the largest blob that travels."""
MAX_BLOB = MAX_CHUNKS * LEAF
"""Its bytes: 32 GiB."""


def may_be(index: int, chunk_size: int) -> bool:
    """Whether any blob has such a chunk."""
    return 0 <= index < MAX_CHUNKS and MIN_CHUNK <= chunk_size <= MAX_CHUNK and chunk_size % LEAF == 0


@dataclass(frozen=True)
class Manifest:
    """The leaves of the blob `digest`, 32 bytes each, and how it is cut for its way: every chunk is `chunk_size` bytes,
    whole leaves, but the last. PayloadError when they do not fit together, or are not those of this name."""

    digest: str
    size: int
    chunk_size: int
    leaves: bytes = field(repr=False)

    def __post_init__(self) -> None:
        hex_of(self.digest)
        if not 0 <= self.size < 1 << 63 or not may_be(0, self.chunk_size):
            raise PayloadError(
                f"manifest of {self.digest}: size {self.size}, chunk size {self.chunk_size}",
                f"chunks are {MIN_CHUNK} to {MAX_CHUNK} bytes, and whole leaves of {LEAF}",
            )
        if len(self.leaves) != -(-self.size // LEAF) * LEAF_DIGEST:
            raise PayloadError(
                f"manifest of {self.digest}: {len(self.leaves)} bytes are not the leaves of {self.size} bytes"
            )
        if name_of_leaves(self.size, self.leaves) != self.digest:
            raise PayloadError(
                f"the manifest is not that of {self.digest}: another blob has this size and these leaves",
                "the sender's copy or its software is bad; no chunk was asked for",
            )

    @property
    def count(self) -> int:
        """How many chunks there are."""
        return -(-self.size // self.chunk_size)

    def length(self, index: int) -> int:
        """Bytes in chunk `index`; IndexError outside."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        return min(self.chunk_size, self.size - index * self.chunk_size)

    def matches(self, index: int, data: bytes | memoryview) -> bool:
        """Whether `data` is chunk `index`, by length and the SHA-256 of each leaf."""
        if not 0 <= index < self.count or len(data) != self.length(index):
            return False
        first = index * (self.chunk_size // LEAF) * LEAF_DIGEST
        found = leaves_of(data)
        return self.leaves[first : first + len(found)] == found
