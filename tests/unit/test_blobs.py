"""The blob store: whole and right, or not there; resumes what is good and finds what is torn."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zk0d.errors import ConfigError, PayloadError
from zk0d.model import leaves
from zk0d.model.blobs import CHUNK, LEAF, MAX_CHUNK, BlobStore, DiskFullError, Manifest, hex_of, name_of

DATA = os.urandom(10 * LEAF + 5)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs", reserve=0)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    other = BlobStore(tmp_path / "other", reserve=0)
    return other.manifest(other.add_bytes(DATA), LEAF)


def chunk(manifest: Manifest, index: int) -> bytes:
    return DATA[index * LEAF : (index + 1) * LEAF]


def test_files_and_bytes(store: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    digest = store.add_file(source)
    assert digest == name_of(DATA) == store.add_bytes(DATA) and store.has(digest)
    assert store.path(digest).stat().st_mode & 0o777 == 0o444
    assert store.read_bytes(digest) == DATA and store.size(digest) == len(DATA)
    assert store.read_chunk(digest, 10, LEAF) == DATA[-5:]
    for bad in (11, -1):
        with pytest.raises(PayloadError):
            store.read_chunk(digest, bad, LEAF)
    assert list(store.digests()) == [digest] and store.total_bytes() == len(DATA)
    assert store.add_file(source, move=True) == digest and not source.exists()
    assert store.delete(digest) and not store.delete(digest) and not store.has(digest)
    assert list(store.partials.iterdir()) == []
    with pytest.raises(PayloadError):
        store.size(digest)


@pytest.mark.parametrize(
    "bad",
    ["", "blob:", "blob:" + "A" * 64, "blob:../../etc/passwd", "sha256:" + "a" * 64, "blob:" + "a" * 64 + "\n", None],
)
def test_only_digests_name_blobs(store: BlobStore, bad: str) -> None:
    with pytest.raises(PayloadError):
        store.path(bad)


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(11)), restarts=st.sets(st.integers(0, 10)))
def test_chunks_in_any_order_over_any_restarts(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], restarts: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("blobs")
    other = BlobStore(folder / "o", reserve=0)
    manifest = other.manifest(other.add_bytes(DATA), LEAF)
    store = BlobStore(folder / "s", reserve=0)
    partial = store.partial(manifest.digest, manifest)
    for n, index in enumerate(order):
        if n in restarts:
            partial.close()
            partial = BlobStore(folder / "s", reserve=0).partial(manifest.digest, manifest)
            assert partial.have == set(order[:n])
        assert not partial.write(index, b"x" * manifest.length(index))
        assert partial.write(index, chunk(manifest, index))
    assert partial.finish().read_bytes() == DATA
    assert list(store.partials.iterdir()) == []
    shutil.rmtree(folder)


def test_a_torn_chunk_is_found_again(store: BlobStore, manifest: Manifest) -> None:
    partial = store.partial(manifest.digest, manifest)
    for index in range(5):
        partial.write(index, chunk(manifest, index))
    partial.close()
    part, have = sorted(store.partials.iterdir(), key=lambda p: p.suffix, reverse=True)
    with part.open("r+b") as f:  # as a power cut leaves it: the log says yes, the data did not make it
        f.seek(2 * LEAF + 7)
        f.write(bytes(100))
    with have.open("ab") as f:
        f.write(b"\x09\0\0\0" + b"\x01\0")  # an index whose data never came, and half an entry
    partial = store.partial(manifest.digest, manifest)
    assert partial.have == {0, 1, 3, 4}
    partial.close()


def test_another_cut_starts_anew(store: BlobStore, manifest: Manifest) -> None:
    partial = store.partial(manifest.digest, manifest)
    partial.write(0, chunk(manifest, 0))
    partial.close()
    coarser = replace(manifest, chunk_size=4 * LEAF)
    again = store.partial(manifest.digest, coarser)
    assert again.have == set() and coarser.count == 3
    assert all(again.write(i, DATA[i * 4 * LEAF : (i + 1) * 4 * LEAF]) for i in range(3))
    assert again.finish().read_bytes() == DATA


def test_no_bit_of_size_or_leaves_can_be_another(manifest: Manifest) -> None:
    rng = random.Random(1)
    for at in [0, len(manifest.leaves) - 1, *(rng.randrange(len(manifest.leaves)) for _ in range(40))]:
        lie = bytearray(manifest.leaves)
        lie[at] ^= 1 << rng.randrange(8)
        with pytest.raises(PayloadError, match="not that of blob:"):
            replace(manifest, leaves=bytes(lie))
    for size in (manifest.size - 1, manifest.size + 1, 11 * LEAF):
        with pytest.raises(PayloadError, match="not that of blob:"):
            replace(manifest, size=size)
    with pytest.raises(PayloadError, match="not that of blob:"):
        replace(manifest, digest=name_of(b""))
    assert replace(manifest, chunk_size=LEAF * 2).count == 6, "how it is cut is the sender's own affair"


def test_one_wrong_bit_in_a_chunk_is_seen_in_whichever_leaf(store: BlobStore, manifest: Manifest) -> None:
    wide, rng = replace(manifest, chunk_size=4 * LEAF), random.Random(2)
    partial = store.partial(manifest.digest, wide)
    for index in range(3):
        good = DATA[index * 4 * LEAF : (index + 1) * 4 * LEAF]
        for leaf in range(-(-len(good) // LEAF)):
            bad = bytearray(good)
            bad[min(leaf * LEAF + rng.randrange(LEAF), len(good) - 1)] ^= 1 << rng.randrange(8)
            assert not partial.write(index, bytes(bad)) and index not in partial.have
        assert not partial.write(index, good[:-1]) and not partial.write(index, good + b"x")
        assert partial.write(index, good)
    assert partial.finish().read_bytes() == DATA


def test_what_arrives_is_hashed_once_and_served_without_reading_it_again(
    store: BlobStore, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[int] = []
    real = leaves.leaves_of
    monkeypatch.setattr("zk0d.model.manifest.leaves_of", lambda data: hashed.append(len(data)) or real(data))  # type: ignore[func-returns-value]
    partial = store.partial(manifest.digest, manifest)
    for index in range(manifest.count):
        assert partial.write(index, chunk(manifest, index))
    path = partial.finish()
    assert sum(hashed) == len(DATA)
    path.rename(path.with_name("away"))
    assert store.manifest(manifest.digest, LEAF) == manifest, "it was read again"


@given(st.lists(st.integers(0, 3 * LEAF // 2), max_size=6))
def test_a_name_does_not_depend_on_the_pieces(cuts: list[int]) -> None:
    grown, at = leaves.Leaves(), 0
    for size in [*cuts, len(DATA)]:
        grown.update(memoryview(DATA)[at : at + size])
        at = min(len(DATA), at + size)
    assert (grown.size, grown.name, grown.digests) == (len(DATA), name_of(DATA), leaves.leaves_of(DATA))


def test_blobs_of_before_are_not_taken_for_these(tmp_path: Path) -> None:
    (tmp_path / "sha256").mkdir()
    with pytest.raises(ConfigError, match="earlier"):
        BlobStore(tmp_path)


def test_sigkill_while_chunks_come_loses_none_that_was_written(tmp_path: Path, manifest: Manifest) -> None:
    script = (
        "import sys; from pathlib import Path; from zk0d.model.blobs import BlobStore\n"
        f"o = BlobStore(Path(sys.argv[1]), reserve=0); d = next(o.digests()); m = o.manifest(d, {LEAF})\n"
        "p = BlobStore(Path(sys.argv[2]), reserve=0).partial(d, m)\n"
        f"for i in range(7): assert p.write(i, o.read_chunk(d, i, {LEAF}))\n"
        "print('written', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "other"), str(tmp_path / "blobs")]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root) as process:
        assert process.stdout is not None and process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    partial = BlobStore(tmp_path / "blobs", reserve=0).partial(manifest.digest, manifest)
    assert partial.have == set(range(7))
    partial.close()


def test_killed_between_read_only_and_rename_goes_on(store: BlobStore, manifest: Manifest) -> None:
    partial = store.partial(manifest.digest, manifest)
    assert all(partial.write(i, chunk(manifest, i)) for i in range(manifest.count))
    partial.close()
    [part] = store.partials.glob("*.part")
    part.chmod(0o444)
    again = store.partial(manifest.digest, manifest)
    assert part.stat().st_mode & 0o777 == 0o600  # else nobody but root could open it for writing
    assert again.complete and again.finish().read_bytes() == DATA


def test_no_room_is_said_before_anything_is_written(tmp_path: Path, manifest: Manifest) -> None:
    store = BlobStore(tmp_path / "blobs", reserve=1 << 60)
    with pytest.raises(DiskFullError, match="free"):
        store.partial(manifest.digest, manifest)
    with pytest.raises(DiskFullError):
        store.add_bytes(DATA)
    assert not store.has(manifest.digest)


def test_damage_on_disk_is_not_served(store: BlobStore) -> None:
    digest = store.add_bytes(DATA)
    path = store.path(digest)
    path.chmod(0o600)
    path.write_bytes(DATA[:-1] + b"!")
    with pytest.raises(PayloadError, match="damaged"):
        store.manifest(digest)


def test_a_blob_is_read_once_however_many_ask(store: BlobStore) -> None:
    digest = store.add_bytes(DATA)
    before = store.manifest(digest)
    with ThreadPoolExecutor(4) as pool:
        assert all(m is before for m in pool.map(lambda _: store.manifest(digest), range(4)))
    assert BlobStore(store.directory, reserve=0).manifest(digest) == before
    assert store.manifest(digest, LEAF) == replace(before, chunk_size=LEAF)


def test_a_file_that_is_added_is_cut_in_the_same_reading(store: BlobStore, tmp_path: Path) -> None:
    data = os.urandom(2 * CHUNK + 5)
    (tmp_path / "given").write_bytes(data)
    digest = store.add_file(tmp_path / "given")
    (tmp_path / "given").unlink()  # as a job's folder goes; the file's ctime is another then
    known = store.manifest(digest)
    assert (
        known == BlobStore(store.directory, reserve=0).manifest(digest)
        and known.count == 3
        and len(known.leaves) == 9 * 32
    )
    store.path(digest).rename(tmp_path / "away")
    assert store.manifest(digest) is known, "it was read again"
    (tmp_path / "none").write_bytes(b"")
    assert store.manifest(store.add_file(tmp_path / "none")).leaves == b""


def test_what_a_killed_process_was_adding_is_cleared(store: BlobStore) -> None:
    dead, alive = store.partials / "add-99999999-1", store.partials / f"add-{os.getpid()}-1"
    for path in (dead, alive):
        path.write_bytes(b"half")
    BlobStore(store.directory)
    assert not dead.exists() and alive.exists()


def test_an_empty_blob(store: BlobStore, tmp_path: Path) -> None:
    other = BlobStore(tmp_path / "o", reserve=0)
    digest = other.add_bytes(b"")
    partial = store.partial(digest, other.manifest(digest))
    assert partial.complete and partial.finish().read_bytes() == b""


@given(st.integers(-10, 1 << 40), st.integers(-10, 2 * MAX_CHUNK), st.binary(max_size=99))
def test_a_manifest_is_consistent_or_refused(size: int, chunk_size: int, given: bytes) -> None:
    try:
        made = Manifest(leaves.name_of_leaves(max(0, size), given), size, chunk_size, given)
    except PayloadError:
        return
    assert sum(made.length(i) for i in range(made.count)) == size
    assert hex_of(made.digest) and not made.matches(made.count, b"")


def test_the_reserve_is_kept_while_a_blob_arrives(tmp_path: Path) -> None:
    """Others fill the disk meanwhile: the transfer stops with the reason, what has come stays and counts."""
    there, store = BlobStore(tmp_path / "there", reserve=0), BlobStore(tmp_path / "here", reserve=0)
    data = bytes(range(256)) * 16 * 1024 * 5
    digest = there.add_bytes(data)
    manifest = there.manifest(digest, 1 << 20)
    partial = store.partial(digest, manifest)
    store._reserve = 1 << 60
    with pytest.raises(DiskFullError, match="reserve"):
        partial.write(0, data[: 1 << 20])
    store._reserve = 0
    for index in range(16):  # from the next flush on it is looked at again
        assert partial.write(index, data[index << 20 :][: 1 << 20])
    store._reserve = 1 << 60
    with pytest.raises(DiskFullError, match="reserve"):
        partial.write(16, data[16 << 20 :][: 1 << 20])
    partial.close()
    store._reserve = 0
    again = store.partial(digest, manifest)
    assert len(again.have) == 16
    for index in range(16, manifest.count):
        assert again.write(index, data[index << 20 :][: 1 << 20])
    assert again.finish().read_bytes() == data
