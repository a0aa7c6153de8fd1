"""Both ends of the link over real sockets and TLS: asking, pushing, fetching, breaking, refusing."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from linked import FAST, Proxy, World, hello, until, world

from zk0d.errors import LinkClosedError, LinkLostError, PayloadError, RefusedError
from zk0d.link.state import LinkLimits
from zk0d.link.storing import Storing
from zk0d.model.blobs import BlobStore, name_of

BLOB = os.urandom(3 * 1024 * 1024 + 17)


def test_two_nodes_ask_push_and_transfer_both_ways(tmp_path: Path) -> None:
    async def run() -> None:
        pushed: list[tuple[str, str]] = []
        async with (
            world(tmp_path) as w,
            w.node("alice", on_push=lambda kind, body: pushed.append(("alice", body["federation"]))) as alice,
            w.node("bob", on_push=lambda kind, body: pushed.append(("bob", body["federation"]))) as bob,
        ):
            assert (await hello(alice))["node_id"] == "alice"
            assert (await hello(bob))["node_id"] == "bob"
            assert set(w.hub.nodes()) == {"alice", "bob"}
            body = {"federation": "f", "number": 1, "digest": "d"}
            assert await w.hub.push("bob", "version.new", body)
            assert not await w.hub.push("carol", "version.new", body)
            await until(lambda: pushed == [("bob", "f")], "bob has his push and alice none")

            store = BlobStore(tmp_path / "blobs-alice", reserve=0)
            digest = store.add_bytes(BLOB)
            with pytest.raises(RefusedError) as refused:
                await w.hub.fetch("alice", digest, 1 << 30)
            assert refused.value.reason == "not_found"  # it was never shared
            alice.share(digest)
            with pytest.raises(PayloadError):
                await w.hub.fetch("alice", digest, len(BLOB) - 1)
            await until(lambda: "alice" not in w.hub.nodes(), "the hub dropped who offered too much")
            await alice.wait_connected(30)
            got = await w.hub.fetch("alice", digest, len(BLOB))
            assert got.read_bytes() == BLOB
            assert (await bob.fetch(digest)).read_bytes() == BLOB
            assert alice.state.bytes_up > len(BLOB) and bob.state.bytes_down > len(BLOB)
            assert w.hub.nodes()["bob"].bytes_up > len(BLOB)

    asyncio.run(run())


def test_refusals_and_failures_reach_the_one_who_asked(tmp_path: Path) -> None:
    async def answer(node_id: str, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        if kind == "task.request":
            raise RefusedError("no such federation", "look at hello", reason="unknown_federation")
        if kind == "receipt.get":
            raise ZeroDivisionError
        await asyncio.sleep(30)
        return {}

    async def run() -> None:
        async with world(tmp_path) as w, w.node("alice") as alice:
            w.answer = answer
            with pytest.raises(RefusedError, match="no such federation") as refused:
                await alice.request("task.request", {"federation": "f"})
            assert refused.value.reason == "unknown_federation" and refused.value.hint == "look at hello"
            with pytest.raises(RefusedError) as refused:
                await alice.request("receipt.get", {"update": "u"})
            assert refused.value.reason == "internal"
            with pytest.raises(LinkLostError):
                await alice.request("version.latest", {"federation": "f"}, timeout=0.2)
            with pytest.raises(RefusedError):
                await alice.fetch("blob:" + "0" * 64)
            waiting = asyncio.ensure_future(alice.request("version.latest", {"federation": "f"}))
            await asyncio.sleep(0)
            await alice.close()
            with pytest.raises(LinkClosedError):
                await waiting
            with pytest.raises(LinkClosedError):
                await hello(alice)

    asyncio.run(run())


@pytest.mark.parametrize("direction", ["up", "down"])
def test_resets_in_the_middle_lose_nothing_and_double_nothing(tmp_path: Path, direction: str) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            proxy = Proxy(w.port)
            try:
                async with w.node("alice", port=proxy.port) as alice:
                    store = BlobStore(tmp_path / "blobs-alice", reserve=0) if direction == "up" else w.blobs
                    digest = store.add_bytes(BLOB)
                    if direction == "up":
                        alice.share(digest)
                    proxy.cut_at = [proxy.passed + i * 600_000 for i in (1, 2, 3, 4)]
                    asked = [alice.request("task.request", {"federation": str(i)}, timeout=60) for i in range(8)]
                    fetching = w.hub.fetch("alice", digest, 1 << 30) if direction == "up" else alice.fetch(digest)
                    path, *replies = await asyncio.gather(fetching, *asked)
                    assert path.read_bytes() == BLOB
                    assert len(replies) == 8
                    heard = sorted(body["federation"] for _, kind, body in w.requests if kind == "task.request")
                    assert heard == [str(i) for i in range(8)]
                    assert proxy.cuts >= 4
            finally:
                await asyncio.to_thread(proxy.close)

    asyncio.run(run())


def test_a_hub_that_restarts_finds_its_nodes_again(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w, w.node("alice") as alice:
            digest = w.blobs.add_bytes(BLOB)
            await w.hub.close()
            await until(lambda: alice.state.phase == "waiting", "alice sees that the hub is away")
            assert "cannot be reached" in alice.state.reason or "lost" in alice.state.reason
            fetching = asyncio.create_task(alice.fetch(digest))
            asking = asyncio.create_task(hello(alice))  # type: ignore[arg-type]
            await asyncio.sleep(0.1)
            await w.open()
            assert (await fetching).read_bytes() == BLOB
            assert (await asking)["node_id"] == "alice"

    asyncio.run(run())


def test_a_request_is_answered_while_a_slow_upload_runs(tmp_path: Path) -> None:
    """The upload limit holds bulk back, not control."""

    async def run() -> None:
        limits = LinkLimits(**{**FAST.__dict__, "max_upload": 1_000_000.0})
        async with world(tmp_path) as w, w.node("alice", limits=limits) as alice:
            digest = BlobStore(tmp_path / "blobs-alice", reserve=0).add_bytes(BLOB)
            alice.share(digest)
            loop = asyncio.get_running_loop()
            began = loop.time()
            fetching = asyncio.create_task(w.hub.fetch("alice", digest, 1 << 30))
            await until(lambda: bool(alice.state.transfers), "the upload has begun")
            progress = alice.state.transfers[0]
            assert progress.direction == "up" and progress.size == len(BLOB)
            taken: list[float] = []
            while not fetching.done():
                asked = loop.time()
                await hello(alice)
                taken.append(loop.time() - asked)
                await asyncio.sleep(0.05)
            await fetching
            assert loop.time() - began > 0.8 * (len(BLOB) / 1_000_000 - 1)
            # The usual one, as any single one may meet a machine that stands still.
            assert len(taken) >= 3 and sorted(taken)[len(taken) // 2] < 0.5, taken
            await until(lambda: not alice.state.transfers, "the transfer is over")

    asyncio.run(run())


def test_requests_among_bulk_never_cut_into_it(tmp_path: Path) -> None:
    """Both ways at once, with a crowd of requests between the chunks: the one link stands from beginning to end."""

    async def run() -> None:
        async with world(tmp_path, replace(FAST, chunk_size=1 << 20)) as w, w.node("alice") as alice:
            store, data = BlobStore(tmp_path / "blobs-alice", reserve=0), os.urandom(64 * 1024 * 1024)
            up = store.add_bytes(data)
            down = w.hub._blobs.add_bytes(data[::-1])
            alice.share(up)
            since = w.hub.nodes()["alice"].since
            both = asyncio.gather(w.hub.fetch("alice", up, 1 << 30), alice.fetch(down))
            while not both.done():
                await hello(alice)
            there, here = await both
            assert there.read_bytes() == data and here.read_bytes() == data[::-1]
            assert w.hub.nodes()["alice"].since == since, "the link broke on the way"

    asyncio.run(run())


def test_a_receiver_cuts_no_coarser_than_it_likes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 4 MiB, each under way for as long as the sender likes, would be memory that others wait for."""
    sizes: list[int] = []
    put = Storing.put

    def noted(self: Storing, index: int, data: bytes | memoryview) -> None:
        sizes.append(len(data))
        put(self, index, data)

    monkeypatch.setattr(Storing, "put", noted)

    async def run() -> None:
        async with world(tmp_path) as w, w.node("alice", limits=replace(FAST, chunk_size=4 << 20)) as alice:
            digest = BlobStore(tmp_path / "blobs-alice", reserve=0).add_bytes(BLOB)
            alice.share(digest)
            assert (await w.hub.fetch("alice", digest, 1 << 30)).read_bytes() == BLOB
            assert max(sizes) == FAST.chunk_size < len(BLOB), "the hub asked as coarsely as the node would have it"
            sizes.clear()
            down = w.blobs.add_bytes(BLOB[::-1])
            assert (await alice.fetch(down)).read_bytes() == BLOB[::-1]
            assert max(sizes) == FAST.chunk_size, "the hub's cut is the finer one"

    asyncio.run(run())


def test_a_download_keeps_to_the_limits_of_either_end(tmp_path: Path) -> None:
    """The node asks no faster than it may; the hub sends to one node no faster than that, control goes on."""

    async def run() -> None:
        slow = LinkLimits(**{**FAST.__dict__, "node_upload": 2_000_000.0})
        async with world(tmp_path, slow) as w:
            digest = w.blobs.add_bytes(BLOB[:2_000_000])
            limits = LinkLimits(**{**FAST.__dict__, "max_download": 1_000_000.0})
            loop = asyncio.get_running_loop()
            for name, own, rate in (("alice", limits, 1e6), ("bob", FAST, 2e6)):
                async with w.node(name, limits=own) as node:
                    began = loop.time()
                    fetching = asyncio.create_task(node.fetch(digest))
                    while not fetching.done():
                        await hello(node)
                        await asyncio.sleep(0.02)
                    assert (await fetching).read_bytes() == BLOB[:2_000_000]
                    # A second's worth may go at once where nothing went before; no machine makes it faster than that.
                    assert loop.time() - began > 0.9 * (2_000_000 - FAST.chunk_size) / rate - 1

    asyncio.run(run())


def test_the_tap_sees_everything_that_the_node_says(tmp_path: Path) -> None:
    async def run() -> None:
        said: list[bytes] = []
        async with world(tmp_path) as w, w.node("alice", tap=said.append) as alice:
            await alice.request("task.request", {"federation": "canary-in-a-request"})
            digest = BlobStore(tmp_path / "blobs-alice", reserve=0).add_bytes(b"canary-in-a-blob" * 10)
            alice.share(digest)
            await w.hub.fetch("alice", digest, 1 << 20)
        everything = b"".join(said)
        assert b"canary-in-a-request" in everything and b"canary-in-a-blob" in everything

    asyncio.run(run())


def test_a_partial_survives_the_hub_and_only_the_rest_travels(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            store = BlobStore(tmp_path / "blobs-alice", reserve=0)
            digest = store.add_bytes(BLOB)
            manifest = store.manifest(digest, FAST.chunk_size)
            partial = w.blobs.partial(digest, manifest)
            for i in range(manifest.count - 3):
                assert partial.write(i, store.read_chunk(digest, i, FAST.chunk_size))
            partial.close()
            async with w.node("alice") as alice:
                alice.share(digest)
                before = alice.state.bytes_up
                assert (await w.hub.fetch("alice", digest, 1 << 30)).read_bytes() == BLOB
                assert alice.state.bytes_up - before < 5 * FAST.chunk_size
                assert name_of(BLOB) == digest

    asyncio.run(run())


def test_close_before_and_without_start(tmp_path: Path) -> None:
    async def run() -> None:
        w = World(tmp_path)
        w.port = 1
        async with w.node("alice", wait=False) as alice:
            await until(lambda: alice.state.phase == "waiting", "nothing listens there")
        assert alice.state.phase == "closed"
        await alice.close()

    asyncio.run(run())


def test_folders_of_any_depth_will_do(tmp_path: Path) -> None:
    """A unix socket's path has 108 bytes at most; a person's folder may have more."""

    async def run() -> None:
        deep = tmp_path / ("a" * 60) / ("b" * 60)
        async with world(deep) as w, w.node("alice") as alice:
            assert (await hello(alice))["node_id"] == "alice"
            assert (deep / "hub").stat().st_mode & 0o777 == 0o700
            assert (deep / "r-alice").stat().st_mode & 0o777 == 0o700
        assert list((deep / "hub").iterdir()) == list((deep / "r-alice").iterdir()) == []

    asyncio.run(run())


def test_a_half_open_link_is_left_for_a_new_one(tmp_path: Path) -> None:
    """The hub still believes in the old link when the node comes back over a new one."""

    async def run() -> None:
        async with world(tmp_path) as w:
            proxy = Proxy(w.port)
            try:
                limits = LinkLimits(**{**FAST.__dict__, "silence_s": 1.2, "ping_s": 0.3})
                async with w.node("alice", port=proxy.port, limits=limits) as alice:
                    digest = w.blobs.add_bytes(BLOB)
                    since = w.hub.nodes()["alice"].since
                    proxy.freeze()
                    fetching = asyncio.create_task(alice.fetch(digest))
                    assert (await hello(alice))["node_id"] == "alice"
                    assert (await fetching).read_bytes() == BLOB
                    assert w.hub.nodes()["alice"].since > since
            finally:
                await asyncio.to_thread(proxy.close)

    asyncio.run(run())
