"""Single tensors that are here already, found in other blobs by their digest, so that they need not be sent again.

A sender says where the tensors of a safetensors blob lie and what they hash to (`pieces`, `pack`); a receiver copies
what it has (`reuse`) and asks for the other chunks. Everything copied is checked against the manifest all the same.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from zk0d.errors import PayloadError
from zk0d.model.blobs import BlobStore, Partial
from zk0d.model.header import parse_header

MOST = 2048
"""Pieces in one manifest; of a blob with more tensors the largest are named."""
_PIECE = struct.Struct("!QQ32s")
_MAX_HEADER = 16 << 20


@dataclass(frozen=True)
class Piece:
    """A tensor's bytes in a file: from `start` to before `end`, and their SHA-256."""

    start: int
    end: int
    digest: bytes


def pieces(path: Path) -> tuple[Piece, ...]:
    """The header and the tensors of a safetensors file in file order, each read once; none of any other file."""
    try:
        with path.open("rb", buffering=0) as f:
            size = os.fstat(f.fileno()).st_size
            head = f.read(8)
            length = int.from_bytes(head, "little")
            if len(head) < 8 or length > min(_MAX_HEADER, size - 8):
                return ()
            header = f.read(length)
            entries, _ = parse_header(header, size - 8 - length)
            wanted = sorted((e for e in entries.values() if e.end > e.start), key=lambda e: e.start - e.end)[: MOST - 1]
            found = [Piece(0, 8 + length, hashlib.sha256(head + header).digest())]
            for entry in sorted(wanted, key=lambda e: e.start):
                start, left = 8 + length + entry.start, entry.end - entry.start
                f.seek(start)
                digest = hashlib.sha256()
                while left and (data := f.read(min(left, 1 << 20))):
                    digest.update(data)
                    left -= len(data)
                found.append(Piece(start, 8 + length + entry.end, digest.digest()))
            return tuple(found)
    except (OSError, PayloadError):
        return ()


def pack(found: Iterable[Piece]) -> bytes:
    """As they travel in a manifest: 48 bytes each (start, end: u64 big-endian; SHA-256)."""
    return b"".join(_PIECE.pack(p.start, p.end, p.digest) for p in found)


def unpack(data: bytes, size: int) -> tuple[Piece, ...]:
    """From a manifest of a blob of `size` bytes. PayloadError unless they are in order, apart, and inside it."""
    if len(data) % _PIECE.size or len(data) > MOST * _PIECE.size:
        raise PayloadError(f"{len(data)} bytes are no list of tensors")
    found = tuple(Piece(*values) for values in _PIECE.iter_unpack(data))
    at = 0
    for piece in found:
        if not at <= piece.start < piece.end <= size:
            raise PayloadError("the tensors of a manifest overlap or lie outside the blob")
        at = piece.end
    return found


def reuse(blobs: BlobStore, partial: Partial, offered: Iterable[Piece], like: Iterable[str]) -> int:
    """Put the chunks into `partial` that tensors of the blobs `like` make up → bytes that need not be sent."""
    known: dict[tuple[bytes, int], tuple[Path, int]] = {}
    for digest in like:
        path = blobs.path(digest)
        for piece in pieces(path):
            known[piece.digest, piece.end - piece.start] = (path, piece.start)
    here = [(p, *known[p.digest, p.end - p.start]) for p in offered if (p.digest, p.end - p.start) in known]
    manifest, before, first = partial.manifest, partial.done_bytes, 0
    for index in range(manifest.count):
        start = index * manifest.chunk_size
        end = start + manifest.length(index)
        while first < len(here) and here[first][0].end <= start:
            first += 1
        if index in partial.have:
            continue
        parts, at = [], start
        for piece, path, source in islice(here, first, None):
            if at >= end or piece.start > at:
                break
            upto = min(end, piece.end)
            parts.append(_read(path, source + at - piece.start, upto - at))
            at = upto
        if at >= end:
            partial.write(index, b"".join(parts))  # which looks at the chunk's digest: a lie is simply not used
    return partial.done_bytes - before


def _read(path: Path, offset: int, size: int) -> bytes:
    try:
        with path.open("rb", buffering=0) as f:
            return os.pread(f.fileno(), size, offset)
    except OSError:
        return b""  # deleted meanwhile: the chunk is then asked for
