"""Transfers that step aside: while somebody records nothing large moves, and afterwards it goes on where it was."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest
from linked import FAST, hello, until, world

from zk0d.link.rates import Rate
from zk0d.model.blobs import BlobStore

BLOB = os.urandom(4 << 20)
SLOW = replace(FAST, max_upload=Rate.parse("3 MB/s"), max_download=Rate.parse("3 MB/s"))


@pytest.mark.parametrize("way", ["upload", "download"])
def test_a_transfer_under_way_stops_and_goes_on_while_messages_still_pass(tmp_path: Path, way: str) -> None:
    async def run() -> None:
        async with world(tmp_path) as w, w.node("alice", limits=SLOW) as alice:
            if way == "upload":
                digest = BlobStore(tmp_path / "blobs-alice", reserve=0).add_bytes(BLOB)
                alice.share(digest)
                moving = asyncio.ensure_future(w.hub.fetch("alice", digest, len(BLOB)))
            else:
                digest = w.blobs.add_bytes(BLOB)
                moving = asyncio.ensure_future(alice.fetch(digest))
            moved = lambda: alice.state.bytes_up if way == "upload" else alice.state.bytes_down  # noqa: E731
            await until(lambda: moved() > 256 * 1024, "some of it has moved")
            alice.hold(True)
            at, still = moved(), 0
            async with asyncio.timeout(60):
                while still < 20:  # what was on its way comes to rest: so many looks at the same figure
                    await hello(alice)  # a recording node still hears of its receipts, and says that it lives
                    await asyncio.sleep(0.02)
                    still = still + 1 if moved() - at < 8192 else 0
                    at = moved()
            assert not moving.done()
            alice.hold(False)
            assert (await asyncio.wait_for(moving, 60)).read_bytes() == BLOB

    asyncio.run(run())


def test_its_own_bandwidth_limit_is_no_stall(tmp_path: Path) -> None:
    """A node that may ask for a chunk only now and then does not blame the hub for the silence between."""

    async def run() -> None:
        async with world(tmp_path) as w:
            digest = w.blobs.add_bytes(BLOB[: 2 * FAST.chunk_size])
            own = replace(FAST, max_download=0.6 * FAST.chunk_size, stall_s=0.4)  # 1.7 s of silence after a chunk
            async with w.node("alice", limits=own) as alice:
                assert (await alice.fetch(digest)).stat().st_size == 2 * FAST.chunk_size

    asyncio.run(run())


def test_transfers_of_one_link_go_on_side_by_side(tmp_path: Path) -> None:
    """A large blob that came first does not keep a later one waiting until it is through."""

    async def run() -> None:
        async with world(tmp_path) as w:
            digests = [w.blobs.add_bytes(os.urandom(size << 20)) for size in (8, 1)]
            async with w.node("alice", limits=replace(FAST, max_download=4e6)) as alice:
                first = asyncio.ensure_future(alice.fetch(digests[0]))
                await until(lambda: any(p.done for p in alice.state.transfers), "the first is on its way")
                later = await asyncio.wait_for(alice.fetch(digests[1]), 60)
                assert later.stat().st_size == 1 << 20 and not first.done()
                assert (await asyncio.wait_for(first, 60)).stat().st_size == 8 << 20

    asyncio.run(run())
