"""Merkle tree over an append-only log: hashes, roots, inclusion and consistency proofs (RFC 6962 §2.1).

Pure functions; the nodes of the tree are read through a callback, so that a log of millions costs a few look-ups.
Not for what is logged or signed (zk0d/hub/receipt_log.py, zk0d/daemon/evidence.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

from zk0d.errors import ProtocolError

EMPTY = hashlib.sha256().digest()
"""Root of a log without entries."""
MAX_PATH = 64
Get = Callable[[int, int], bytes]
"""(level, position) → hash of the complete subtree of 2^level leaves at that position."""


def leaf_hash(data: bytes) -> bytes:
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def append(size: int, leaf: bytes, get: Get) -> Iterator[tuple[int, int, bytes]]:
    """The complete subtrees (level, position, hash) that the leaf hash `leaf` makes in a tree of `size` leaves."""
    level, position, made = 0, size, leaf
    yield level, position, made
    while position & 1:
        made = node_hash(get(level, position - 1), made)
        level, position = level + 1, position >> 1
        yield level, position, made


def root(size: int, get: Get) -> bytes:
    """Root of the first `size` leaves."""
    return _subtree(0, size, get) if size else EMPTY


def inclusion(index: int, size: int, get: Get) -> list[bytes]:
    """The audit path of leaf `index` in the tree of `size` leaves (PATH of RFC 6962 §2.1.1). ValueError if outside."""
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} of {size}")
    path, low, high = [], 0, size
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            path.append(_subtree(middle, high, get))
            high = middle
        else:
            path.append(_subtree(low, middle, get))
            low = middle
    return path[::-1]


def consistency(old: int, new: int, get: Get) -> list[bytes]:
    """Proof that the first `old` leaves of the tree of `new` leaves are its beginning (PROOF of RFC 6962 §2.1.2)."""
    if not 0 <= old <= new:
        raise ValueError(f"consistency of {old} and {new}")
    if old in (0, new):
        return []
    path, low, high, whole = [], 0, new, True
    while old != high:
        middle = low + _split(high - low)
        if old <= middle:
            path.append(_subtree(middle, high, get))
            high = middle
        else:
            path.append(_subtree(low, middle, get))
            low, whole = middle, False
    if not whole:
        path.append(_subtree(low, high, get))
    return path[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], head: bytes) -> None:
    """ProtocolError unless `path` leads from the leaf hash at `index` to the root `head` (RFC 9162 §2.1.3.2)."""
    if not 0 <= index < size or len(path) > MAX_PATH:
        raise ProtocolError(f"an inclusion proof for entry {index} of a log of {size}")
    position, last, made = index, size - 1, leaf
    for other in path:
        if last == 0:
            raise ProtocolError("an inclusion proof that is too long")
        if position & 1 or position == last:
            made = node_hash(other, made)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            made = node_hash(made, other)
        position, last = position >> 1, last >> 1
    if last or made != head:
        raise ProtocolError(f"entry {index} is not in the log of {size} entries that the hub signed")


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, path: Sequence[bytes]) -> None:
    """ProtocolError unless the tree of `new` leaves continues the tree of `old` leaves (RFC 9162 §2.1.4.2)."""
    if new < old:
        raise ProtocolError(f"the hub's log shrank from {old} to {new} entries")
    if old == new:
        if old_root != new_root or path:
            raise ProtocolError(f"the hub signed two different logs of {old} entries")
        return
    if old == 0:
        if path:
            raise ProtocolError("a consistency proof from an empty log has no hashes")
        return
    forked = ProtocolError(f"the hub's log of {new} entries does not continue the one of {old} that it signed")
    hashes = list(path) if old & (old - 1) else [old_root, *path]
    if not hashes or len(hashes) > MAX_PATH:
        raise forked
    first, second = old - 1, new - 1
    while first & 1:
        first, second = first >> 1, second >> 1
    a = b = hashes[0]
    for other in hashes[1:]:
        if second == 0:
            raise forked
        if first & 1 or first == second:
            a, b = node_hash(other, a), node_hash(other, b)
            while not first & 1 and first:
                first, second = first >> 1, second >> 1
        else:
            b = node_hash(b, other)
        first, second = first >> 1, second >> 1
    if second or a != old_root or b != new_root:
        raise forked


def _split(count: int) -> int:
    """The largest power of two below `count`."""
    return 1 << ((count - 1).bit_length() - 1)


def _subtree(low: int, high: int, get: Get) -> bytes:
    count = high - low
    if count & (count - 1) == 0:  # `low` is a multiple of it, as splits go by powers of two
        level = count.bit_length() - 1
        return get(level, low >> level)
    middle = low + _split(count)
    return node_hash(_subtree(low, middle, get), _subtree(middle, high, get))
