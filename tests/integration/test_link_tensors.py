"""Single tensors that the receiver has in another blob are not sent, and a sender that lies about them gains nothing."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from linked import FAST, world

from zk0d.errors import PayloadError
from zk0d.model import tensors
from zk0d.model.blobs import BlobStore
from zk0d.model.payload import PayloadWriter

SIZES = {"a.frozen": 900_000, "b.bias": 7, "c.trained": 40_000, "d.frozen": 600_000, "e.trained": 30_000}


def version(path: Path, number: int, names: list[str] | None = None) -> bytes:
    """A file of float32 tensors: those named frozen are the same in all versions."""
    made: dict[str, np.ndarray] = {}
    for name in names or list(SIZES):
        seed = 0 if "frozen" in name or "bias" in name else number
        rng = np.random.default_rng([seed, ord(name[0])])
        made[name] = rng.standard_normal(SIZES[name], dtype=np.float32)
    with PayloadWriter(path, {n: ("F32", v.shape) for n, v in made.items()}) as out:
        for name, value in made.items():
            out.write(name, value)
    return path.read_bytes()


@pytest.mark.parametrize("same_layout", [True, False])
def test_frozen_tensors_do_not_travel_again(tmp_path: Path, same_layout: bool) -> None:
    """Two versions of one layout; and a base that has the frozen tensors elsewhere, among others."""
    old = version(tmp_path / "old", 1, None if same_layout else ["a.frozen", "d.frozen"])
    new = version(tmp_path / "new", 2)

    async def run() -> None:
        async with world(tmp_path) as w, w.node("alice") as alice:
            here = BlobStore(tmp_path / "blobs-alice", reserve=0).add_bytes(old)
            digest = w.blobs.add_bytes(new)
            before = alice.state.bytes_down
            path = await alice.fetch(digest, [here, "blob:" + "0" * 64])
            assert path.read_bytes() == new
            came = alice.state.bytes_down - before
            trained = 4 * (SIZES["c.trained"] + SIZES["e.trained"])
            # Besides what changed: the chunks that hold an end of it, and the manifest.
            assert trained < came < trained + 6 * FAST.chunk_size < len(new) / 2
            other = w.blobs.add_bytes(b"no tensors in this" * 1000)
            assert (await alice.fetch(other, [here])).stat().st_size == 18_000

    asyncio.run(run())


def test_lies_about_tensors_are_simply_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = version(tmp_path / "old", 1), version(tmp_path / "new", 2)
    honest = tensors.pieces(tmp_path / "new")
    theirs = tensors.pieces(tmp_path / "old")
    lying = [replace(p, digest=q.digest) for p, q in zip(honest, theirs, strict=True)]  # "all of it is as before"
    packed = {"lie": tensors.pack(lying), "outside": tensors.pack([tensors.Piece(0, 1 << 40, b"x" * 32)])}
    told = ""
    monkeypatch.setattr("zk0d.link.peer._packed", lambda path: packed[told])

    async def run() -> None:
        nonlocal told
        async with world(tmp_path) as w, w.node("alice") as alice:
            here = BlobStore(tmp_path / "blobs-alice", reserve=0).add_bytes(old)
            digest = w.blobs.add_bytes(new)
            told = "outside"
            with pytest.raises(PayloadError, match="outside the blob"):
                await alice.fetch(digest, [here])
            told = "lie"
            assert (await alice.fetch(digest, [here])).read_bytes() == new

    asyncio.run(run())


def test_pieces_cover_the_file(tmp_path: Path) -> None:
    data = version(tmp_path / "v", 1)
    found = tensors.pieces(tmp_path / "v")
    assert (found[0].start, found[-1].end) == (0, len(data)) and len(found) == 6
    for piece, following in zip(found, [*found[1:], None], strict=True):
        assert hashlib.sha256(data[piece.start : piece.end]).digest() == piece.digest
        assert following is None or piece.end == following.start
    assert tensors.unpack(tensors.pack(found), len(data)) == found
    (tmp_path / "x").write_bytes(b"\xff" * 100)
    assert tensors.pieces(tmp_path / "x") == tensors.pieces(tmp_path / "absent") == ()


@given(st.binary(max_size=300), st.integers(0, 1 << 64))
def test_what_is_no_list_of_tensors_is_refused(data: bytes, size: int) -> None:
    try:
        found = tensors.unpack(data, size)
    except PayloadError:
        return
    assert all(0 <= p.start < p.end <= size for p in found)
    assert all(p.end <= q.start for p, q in itertools.pairwise(found))
