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


def test_a_deleted_blob_is_not_held_open_for_a_peer_that_took_a_part(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path, reserve=0)
    digest = blobs.add_bytes(os.urandom(4 << 20))

    def say(ask: Ask, data: bytes | None, lent: Any) -> list[Any]:
        return [b"", data if data is not None else bytes(lent)]

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
