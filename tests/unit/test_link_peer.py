"""What a peer sends first when bulk has no room."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from zk0d.link.messages import Message, decode, encode
from zk0d.link.peer import Peer
from zk0d.link.rates import Bucket
from zk0d.link.state import LinkLimits
from zk0d.model.blobs import BlobStore


def test_control_does_not_wait_behind_a_manifest(tmp_path: Path) -> None:
    """The lane has no room for bulk: a manifest waits, and what is said in the same turn of the loop goes."""
    blobs = BlobStore(tmp_path, reserve=0)
    digest = blobs.add_bytes(bytes(5000))
    offered: list[str] = []

    async def scene() -> None:
        refused, said = asyncio.Event(), asyncio.Event()

        async def transmit(frames: list[Any]) -> None:
            await asyncio.Event().wait()  # no room, ever

        def offer(frames: list[Any]) -> bool:
            if len(frames) > 1:
                asyncio.get_running_loop().call_soon(pong)
                refused.set()
                return False
            offered.append(decode(frames).type)
            return True

        def pong() -> None:
            peer.say("pong", {}, 5)
            said.set()

        with ThreadPoolExecutor(1) as pool:
            peer = Peer(
                "node", transmit=transmit, offer=offer, blobs=blobs, pool=pool, may_take=lambda d: True,
                limits=LinkLimits(), upload=Bucket(None), download=Bucket(None),
            )  # fmt: skip
            peer.up()
            peer.heard([bytes(f) for f in encode(Message("manifest.get", 1, {"digest": digest}))])
            await asyncio.wait_for(refused.wait(), 60)
            await asyncio.wait_for(said.wait(), 60)
            await peer.close()

    asyncio.run(scene())
    assert offered == ["pong"]
