"""A hub whose disk has not room for all that arrives at a time: what begins can end, and no part keeps another out.

A recorder's full disk: test_full_disk.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hub_cast import HubProcess, cast, make_parts
from linked import FAST, world
from small_disk import small_disk

from zk0d.durable import Unbuffered
from zk0d.errors import LinkLostError
from zk0d.model.blobs import BlobStore, DiskFullError

SIZE = 8 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for two and a half blobs."""
    with small_disk(tmp_path / "disk", "20m") as folder:
        yield folder


def test_of_many_that_arrive_at_once_those_that_fit_become_whole(tmp_path: Path, disk: Path) -> None:
    async def run() -> None:
        slow = replace(FAST, max_upload=6e6)
        async with world(tmp_path) as w:
            w.hub._blobs = w.blobs = BlobStore(disk, reserve=0)
            links, digests = [], []
            for name in "abcd":
                digests.append(BlobStore(tmp_path / f"blobs-{name}", reserve=0).add_bytes(os.urandom(SIZE)))
                link = w.node(name, limits=slow)
                links.append(link)
                (await link.__aenter__()).share(digests[-1])
            try:
                take = [w.hub.fetch(name, digest, SIZE) for name, digest in zip("abcd", digests, strict=True)]
                found = await asyncio.wait_for(asyncio.gather(*take, return_exceptions=True), 90)
                whole = [path for path in found if isinstance(path, Path)]
                assert len(whole) == 2 and sum(isinstance(e, DiskFullError) for e in found) == 2, found
                for path in whole:
                    w.blobs.delete(f"blob:{path.name}")
                take = [w.hub.fetch(n, d, SIZE) for n, d, f in zip("abcd", digests, found, strict=True)
                        if not isinstance(f, Path)]  # fmt: skip
                await asyncio.wait_for(asyncio.gather(*take), 90)
            finally:
                for link in links:
                    await link.__aexit__(None, None, None)

    asyncio.run(run())


def test_what_an_end_cuts_off_is_promised_no_room(tmp_path: Path, disk: Path) -> None:
    """A node that is lost leaves its part, and takes no more of the room than that."""

    async def run() -> None:
        async with world(tmp_path) as w:
            w.hub._blobs = w.blobs = BlobStore(disk, reserve=0)
            w.blobs.headroom = 10 << 20  # so one goes at a time
            digest = BlobStore(tmp_path / "blobs-a", reserve=0).add_bytes(os.urandom(SIZE))
            other = BlobStore(tmp_path / "blobs-b", reserve=0).add_bytes(os.urandom(SIZE))
            async with w.node("b") as good:
                good.share(other)
                async with w.node("a", limits=replace(FAST, max_upload=2e6)) as lost:
                    lost.share(digest)
                    taking = asyncio.create_task(w.hub.fetch("a", digest, SIZE))
                    end = time.monotonic() + 60
                    while not any(p.done > 1 << 20 for moving in w.hub.transfers().values() for p in moving):
                        assert time.monotonic() < end
                        await asyncio.sleep(0.01)
                    with pytest.raises(DiskFullError):
                        w.blobs.require_arrival(other, SIZE)
                    # Not before: a machine that halts for as long would end what comes.
                    w.hub._peer("a").limits = replace(FAST, stall_s=0.5)
                with pytest.raises(LinkLostError):
                    await asyncio.wait_for(taking, 60)
                part = next(w.blobs.partials.glob("*.part")).stat().st_blocks * 512
                w.blobs.headroom = (12 << 20) - part - (1 << 16)  # the part is still there, its promise is not
                assert (await w.hub.fetch("b", other, SIZE)).stat().st_size == SIZE
                w.blobs.headroom = (4 << 20) - (1 << 16)
                w.blobs.require_arrival(digest, SIZE)  # of which a part is here already

    asyncio.run(run())


@contextlib.contextmanager
def a_refusal_is_left(hub: HubProcess, folder: Path) -> Iterator[str]:
    """What a kill leaves between an update's refusal and what follows it → the payload that is still there."""
    spec = make_parts(folder / "parts")
    hub.create("fed", folder / "parts", nodes=2)

    async def play() -> str:
        nodes = await cast(hub, folder, 2, join="fed")
        try:
            task = await nodes[0].task("fed", 0)
            offer = nodes[0].prepare(spec, task, nodes[0].delta(spec, task))
            await nodes[0].give(offer)
            return str(json.loads(offer["statement"])["payload"])
        finally:
            for node in nodes:
                await node.close()

    payload = asyncio.run(play())
    hub.kill()
    # Open until the end: the write-ahead log stays, as it does after a kill.
    with contextlib.closing(sqlite3.connect(hub.folder / "hub.db")) as db:
        with db:
            db.execute("UPDATE updates SET state = 'refused', fault = 1, reason = 'bad', decided_at = 1")
        yield payload


@pytest.mark.parametrize("trouble", ["full", "quarantine"])
def test_a_hub_starts_though_a_refused_payload_cannot_be_kept_for_a_look(tmp_path: Path, trouble: str) -> None:
    """And the payload goes, which makes room."""
    with (
        small_disk(tmp_path / "disk", "200m") as disk,
        HubProcess(disk / "hub") as hub,
        a_refusal_is_left(hub, tmp_path) as payload,
    ):
        if trouble == "quarantine":
            (hub.folder / "quarantine").write_text("in the way")
        else:
            with contextlib.suppress(OSError), Unbuffered(disk / "fill", "w") as fill:
                while True:
                    fill.write(bytes(4096))
        hub.start()
        assert not BlobStore(hub.folder / "blobs").has(payload)
        assert not list(hub.folder.glob("quarantine/*.payload"))
        assert hub.ask("federation_show", name="fed")["updates_waiting"] == 0
