"""Arriving chunks and the pool: order, turns, what is wrong, and nothing after the end. Real threads, a real disk."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from zk0d.errors import PayloadError
from zk0d.link.storing import _TURN, Storing
from zk0d.model.blobs import LEAF, BlobStore, Manifest, Partial, name_of
from zk0d.model.leaves import leaves_of


def arriving(store: BlobStore, chunks: int) -> tuple[bytes, Partial]:
    data = os.urandom(chunks * LEAF)
    return data, store.partial(name_of(data), Manifest(name_of(data), len(data), LEAF, leaves_of(data)))


def test_each_blob_in_its_order_and_all_in_turn(tmp_path: Path) -> None:
    async def run() -> None:
        store, seen = BlobStore(tmp_path, reserve=0), []
        with ThreadPoolExecutor(1) as pool:
            held = threading.Event()
            pool.submit(held.wait, 60)  # nothing begins before all is put in
            blobs = [arriving(store, 2 * _TURN) for _ in range(2)]
            done = asyncio.Event()

            def stored(blob: int, index: int, good: bool | None) -> None:
                assert good
                seen.append((blob, index))
                if len(seen) == 4 * _TURN:
                    done.set()

            storings = [
                Storing(pool, partial, lambda i, size, good, error, blob=blob: stored(blob, i, good))  # type: ignore[misc]
                for blob, (_, partial) in enumerate(blobs)
            ]
            for index in range(2 * _TURN):
                for storing, (data, _) in zip(storings, blobs, strict=True):
                    storing.put(index, data[index * LEAF : (index + 1) * LEAF])
            held.set()
            await asyncio.wait_for(done.wait(), 60)
            for storing, (data, partial) in zip(storings, blobs, strict=True):
                await storing.close()
                assert partial.finish().read_bytes() == data
        assert [i for blob, i in seen if blob == 0] == [i for blob, i in seen if blob == 1] == list(range(2 * _TURN))
        assert {blob for blob, _ in seen[: 2 * _TURN]} == {0, 1}, "one blob had the pool to itself"

    asyncio.run(run())


def test_what_is_wrong_is_told_and_after_the_end_nothing_is_written(tmp_path: Path) -> None:
    async def run() -> None:
        told: list[tuple[int, bool | None, BaseException | None]] = []
        with ThreadPoolExecutor(1) as pool:
            data, partial = arriving(BlobStore(tmp_path, reserve=0), 4)
            storing = Storing(pool, partial, lambda i, size, good, error: told.append((i, good, error)))
            storing.put(0, data[LEAF : 2 * LEAF])
            storing.put(1, data[LEAF : 2 * LEAF])
            while len(told) < 2:
                await asyncio.sleep(0.001)
            assert told == [(0, False, None), (1, True, None)] and partial.have == {1}
            held = threading.Event()
            pool.submit(held.wait, 60)
            storing.put(2, data[2 * LEAF : 3 * LEAF])
            closing = asyncio.create_task(storing.close())
            await asyncio.sleep(0)
            held.set()
            await asyncio.wait_for(closing, 60)
            assert partial.have == {1} and len(told) == 2, "what had not begun was stored all the same"
            partial.close()
            again = Storing(pool, partial, lambda i, size, good, error: told.append((i, good, error)))
            again.put(3, data[3 * LEAF :])
            while len(told) < 3:
                await asyncio.sleep(0.001)
            assert isinstance(told[2][2], PayloadError), "a partial that is closed"
            await again.close()

    asyncio.run(run())
