"""Two ends in memory with a wire between them that loses, doubles, reorders, delays and spoils what it carries."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from zk0d.errors import PayloadError
from zk0d.link.download import download
from zk0d.link.peer import Peer
from zk0d.link.state import LinkLimits
from zk0d.link.transfer import Bucket
from zk0d.model.blobs import LEAF, BlobStore, Partial

LIMITS = LinkLimits(reask_s=0.05, stall_s=60.0, chunk_size=LEAF, max_wrong=10_000)


class Wire:
    """Frames from here to there, each after some turns of the loop: never (lost), once, twice, or with a wrong bit.

    How many frames go over it is a matter of timing; so that each run sees a loss, one of the first ten is always lost
    where any may be.
    """

    def __init__(self, rng: random.Random, loss: float, twice: float, spoil: float) -> None:
        self._rng, self._loss, self._twice, self._spoil = rng, loss, twice, spoil
        self._sure = rng.randrange(10) if loss else -1
        self.to: Peer
        self.carried = self.lost = self.spoilt = 0

    async def transmit(self, frames: list[bytes]) -> None:
        loop, rng = asyncio.get_running_loop(), self._rng
        self.carried += 1
        if rng.random() < self._loss or self.carried == self._sure + 1:
            self.lost += 1
            return
        sent = [bytes(f) for f in frames]
        # Not the manifest: over TLS a wrong bit is the sender's, and a wrong manifest is its own story (test_blobs.py).
        if len(sent) == 2 and b"manifest" not in sent[0] and rng.random() < self._spoil:
            self.spoilt += 1
            at = rng.randrange(len(sent[1]))
            sent[1] = sent[1][:at] + bytes([sent[1][at] ^ 1 << rng.randrange(8)]) + sent[1][at + 1 :]
        for _ in range(2 if rng.random() < self._twice else 1):
            loop.call_later(rng.choice((0, 0, 0.001, 0.003)), self.to.heard, list(sent))
        await asyncio.sleep(0)


class Ends:
    def __init__(self, folder: Path, seed: int, **wire: float) -> None:
        rng = random.Random(seed)
        self.pool = ThreadPoolExecutor(2)
        self.there, self.here = BlobStore(folder / "there", reserve=0), BlobStore(folder / "here", reserve=0)
        self.ran: list[int] = []
        self.up, self.down = Wire(rng, **wire), Wire(rng, **wire)
        common: dict[str, Any] = {"pool": self.pool, "limits": LIMITS, "upload": Bucket(None), "download": Bucket(None)}
        self.sender = Peer(
            "receiver",
            transmit=self.down.transmit,
            blobs=self.there,
            may_take=lambda d: True,
            on_request=self._ran,
            **common,
        )
        self.receiver = Peer("sender", transmit=self.up.transmit, blobs=self.here, may_take=lambda d: False, **common)
        self.up.to, self.down.to = self.sender, self.receiver
        self.sender.up()
        self.receiver.up()

    async def _ran(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        self.ran.append(body["federations"][0])
        return {}

    async def close(self) -> None:
        await asyncio.gather(self.sender.close(), self.receiver.close())
        self.pool.shutdown()


@pytest.mark.parametrize("given", [1, 2, None], ids=["1", "2", "random"])
def test_a_blob_arrives_whole_over_the_worst_wire(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: int | None
) -> None:
    seed = random.SystemRandom().randrange(10**6) if given is None else given
    print(f"seed {seed}")  # pytest shows it when the test fails
    stored: list[int] = []
    write = Partial.write

    def counted(self: Partial, index: int, data: bytes) -> bool:
        new = index not in self.have
        good = write(self, index, data)
        if good and new:
            stored.append(index)
        return good

    monkeypatch.setattr(Partial, "write", counted)

    async def run() -> None:
        ends = Ends(tmp_path, seed, loss=0.03, twice=0.1, spoil=0.1)
        data = random.Random(seed).randbytes(40 * LEAF + 5)
        digest = ends.there.add_bytes(data)
        cutter = asyncio.create_task(_cuts(ends, seed))
        # The one message that is not asked for again by itself is the manifest: the peer does so when the link is back.
        path = await asyncio.wait_for(download(ends.receiver, digest, 1 << 24), 90)
        cutter.cancel()
        assert path.read_bytes() == data
        assert sorted(stored) == list(range(41)), "a chunk was stored twice, or never"
        assert ends.down.lost, "nothing was lost: the wire did not do its part"
        await ends.close()

    print(f"seed {seed}")
    asyncio.run(run())


async def _cuts(ends: Ends, seed: int) -> None:
    """Both ends lose the link and get it back, again and again."""
    rng = random.Random(seed)
    while True:
        await asyncio.sleep(rng.uniform(0.1, 0.3))
        for peer in (ends.sender, ends.receiver):
            peer.down()
        await asyncio.sleep(0.01)
        for peer in (ends.receiver, ends.sender):
            peer.up()


def test_a_request_runs_once_however_often_it_comes(tmp_path: Path) -> None:
    async def run() -> None:
        ends = Ends(tmp_path, 7, loss=0.1, twice=0.5, spoil=0.0)
        cutter = asyncio.create_task(_cuts(ends, 7))
        asks = [ends.receiver.ask("hello", {"software": "x", "federations": [n]}, 60) for n in range(40)]
        await asyncio.gather(*(asyncio.wait_for(a, 90) for a in asks))
        cutter.cancel()
        assert sorted(ends.ran) == list(range(40))
        await ends.close()

    asyncio.run(run())


def test_only_wrong_chunks_end_the_transfer_and_nothing_is_stored(tmp_path: Path) -> None:
    async def run() -> None:
        ends = Ends(tmp_path, 3, loss=0.0, twice=0.0, spoil=1.0)
        ends.receiver.limits = LinkLimits(reask_s=0.05, chunk_size=LEAF, max_wrong=5)
        digest = ends.there.add_bytes(bytes(3 * LEAF))
        with pytest.raises(PayloadError, match=r"5 chunks of .* wrong digest"):
            await download(ends.receiver, digest, 1 << 20)
        assert not ends.here.has(digest) and ends.down.spoilt >= 5
        await ends.close()

    asyncio.run(run())


def test_a_file_that_rots_after_its_manifest_was_made_reaches_nobody(tmp_path: Path) -> None:
    async def run() -> None:
        ends = Ends(tmp_path, 3, loss=0.0, twice=0.0, spoil=0.0)
        ends.receiver.limits = LinkLimits(reask_s=0.05, chunk_size=LEAF, max_wrong=5)
        digest = ends.there.add_bytes(bytes(3 * LEAF))
        ends.there.manifest(digest, LEAF)
        path = ends.there.path(digest)
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.seek(LEAF + 5)
            file.write(b"\1")
        with pytest.raises(PayloadError, match=r"5 chunks of .* wrong digest"):
            await download(ends.receiver, digest, 1 << 20)
        assert not ends.here.has(digest)
        await ends.close()

    asyncio.run(run())
