"""The chunks one peer wants, from a real store. The queues around it are the peer's (test_link_peer.py)."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from zk0d.link.serving import Ask, Serving
from zk0d.link.transfer import Bucket
from zk0d.model.blobs import BlobStore


def held(path: Path) -> list[str]:
    """The descriptors this process has on a file, deleted or not."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # the listing's own
            continue
    return [found for found in links if found.startswith(str(path))]


def say(ask: Ask, lent: Any) -> list[Any]:
    return [b"", lent]


def test_a_deleted_blob_is_not_held_open_for_a_peer_that_took_a_part(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path, reserve=0)
    digest = blobs.add_bytes(os.urandom(4 << 20))

    async def play() -> None:
        with ThreadPoolExecutor(1) as pool:
            serving = Serving(blobs, pool, Bucket(None), {}, say, lambda ask: None)
            serving.begin(digest, 4 << 20)
            assert serving.want((digest, 0, 1 << 20, 1))  # it had the others of an earlier version
            assert serving.from_memory() or await serving.from_disk()
            assert held(blobs.path(digest))
            serving.let_go()
            assert held(blobs.path(digest))  # still there: it may be asked for more
            blobs.delete(digest)
            serving.let_go()
            assert not held(blobs.path(digest))

    asyncio.run(play())


def test_a_chunk_that_the_disk_was_asked_for_is_lent_as_well(tmp_path: Path) -> None:
    """Else each slow node that fetches what is not in the page cache costs the hub some chunks' memory."""
    blobs, data, refused = BlobStore(tmp_path, reserve=0), os.urandom((1 << 20) + 5), []
    digest = blobs.add_bytes(data)

    async def play() -> None:
        with ThreadPoolExecutor(1) as pool:
            serving = Serving(blobs, pool, Bucket(None), {}, say, refused.append)
            serving._lend(digest)._nowait = False  # as on a file system that cannot say what is in memory
            for index in (0, 1, 2):
                assert serving.want((digest, index, 1 << 20, 1))
                assert serving.from_memory() is None
                frames = await serving.from_disk()
                if index < 2:
                    assert frames is not None and not isinstance(frames[1], bytes)
                    assert bytes(frames[1]) == data[index << 20 : (index + 1) << 20]
            assert [ask[1] for ask in refused] == [2]

    asyncio.run(play())
