"""A node that ends in the middle of a download, and a hub that has as many connections as it takes."""

from __future__ import annotations

import asyncio
import random
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from linked import FAST, hello, until, world

from zk0d.errors import LinkClosedError

BLOB = random.Random(7).randbytes(3 << 20)


def test_a_node_that_ends_in_a_download_fetches_only_the_rest(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            identity, digest = w.identity("alice"), w.blobs.add_bytes(BLOB)
            async with w.node("alice", identity=identity, limits=replace(FAST, max_download=2e6)) as first:
                fetching = asyncio.create_task(first.fetch(digest))
                await until(lambda: first.state.bytes_down > len(BLOB) // 2, "a half is there")
                came = first.state.bytes_down
                fetching.cancel()
            async with w.node("alice", identity=identity) as second:
                assert (await second.fetch(digest)).read_bytes() == BLOB
                assert second.state.bytes_down < len(BLOB) - came + (1 << 20), (
                    "what was under way may come again, no more"
                )

    asyncio.run(run())


def test_a_fetch_ends_with_the_link_that_is_closed(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            digest = w.blobs.add_bytes(BLOB)
            async with w.node("alice", limits=replace(FAST, max_download=1e6, stall_s=600.0)) as alice:
                fetching = asyncio.create_task(alice.fetch(digest))
                await until(lambda: alice.state.bytes_down > len(BLOB) // 4, "some of it is there")
                await alice.close()
                assert fetching.done(), "and its partial is put away"
                with pytest.raises(LinkClosedError, match="closed"):
                    await fetching

    asyncio.run(run())


def test_a_full_hub_takes_no_more_links_and_keeps_those_it_has(tmp_path: Path) -> None:
    async def run() -> None:
        one = replace(FAST, max_links=1)
        async with world(tmp_path, one) as w, w.node("alice") as alice, w.node("bob", wait=False) as bob:
            await until(lambda: bob.state.phase == "waiting", "bob is not taken")
            assert list(w.hub.nodes()) == ["alice"] and (await hello(alice))["node_id"] == "alice"
            await alice.close()
            await bob.wait_connected(30)

    asyncio.run(run())


def test_a_place_has_so_many_unfinished_handshakes_and_no_more(tmp_path: Path) -> None:
    def shut(sock: socket.socket) -> bool:
        sock.settimeout(60)
        try:
            return sock.recv(1) == b""
        except ConnectionResetError:
            return True

    async def run() -> None:
        async with world(tmp_path, replace(FAST, max_handshakes=2, handshake_s=30.0)) as w:
            silent = [socket.create_connection(("127.0.0.1", w.port)) for _ in range(2)]
            try:
                with socket.create_connection(("127.0.0.1", w.port)) as third:
                    assert await asyncio.to_thread(shut, third)
                silent.pop().close()
                async with w.node("alice") as alice:  # there is room again
                    assert (await hello(alice))["node_id"] == "alice"
            finally:
                for sock in silent:
                    sock.close()

    asyncio.run(run())
