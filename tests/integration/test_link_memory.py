"""A hub's memory while many nodes send at a time: bytes, not nodes, bound it, and everybody has his turn."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from crowd import Sender, crowd
from linked import FAST, until, world

from zk0d.link import session
from zk0d.model.leaves import LEAF

BUDGET = 8 << 20
SLACK = 24 << 20
"""What links, TLS and the C library keep, and a chunk or two of each thread."""


def test_many_that_send_at_once_share_a_budget_of_bytes_and_all_come_through(tmp_path: Path) -> None:
    nodes, chunk = 32, 1 << 20

    async def run() -> None:
        async with crowd(tmp_path, BUDGET) as hub:
            senders = await hub.come(nodes, 3 * chunk + 100, chunk)
            before = hub.memory()
            hub.forget()
            async with asyncio.timeout(120):
                await asyncio.gather(*(node.serve(0.3) for node in senders))
            grown = hub.memory("VmHWM") - before
            print(f"{nodes} nodes, {grown / 1e6:.0f} MB")
            assert grown < BUDGET + SLACK, f"{grown / 1e6:.0f} MB for {nodes} nodes"

    asyncio.run(run())


def test_what_nobody_asked_for_is_not_held(tmp_path: Path) -> None:
    async def run() -> None:
        async with crowd(tmp_path, BUDGET) as hub:
            rude = await hub.come(24, 4 << 20, 4 << 20)
            good = await hub.come(2, 2 << 20, 1 << 20)
            before = hub.memory()
            hub.forget()
            async with asyncio.timeout(60):
                await asyncio.gather(*(node.flood(4 << 20) for node in rude))
                await asyncio.gather(*(node.serve(0.0) for node in good))
            grown = hub.memory("VmHWM") - before
            print(f"{grown / 1e6:.0f} MB")
            assert grown < BUDGET + SLACK, f"{grown / 1e6:.0f} MB are held for {len(rude)} rude nodes"

    asyncio.run(run())


def test_who_takes_the_room_and_lets_it_lie_loses_his_link_when_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "LOWEST", 1e6)  # bytes a second

    async def run() -> None:
        limits = replace(FAST, receive_bytes=2 * LEAF, reask_s=0.3)
        async with world(tmp_path, limits) as w:

            async def answer(node: str, kind: str, body: dict[str, Any]) -> dict[str, Any]:
                return await asyncio.Future()  # for then they would stop serving

            w.answer = answer
            nodes = [Sender(i, 3 * LEAF, LEAF) for i in range(4)]
            for node in nodes:
                await node.link(w.authority, tmp_path / "keys", w.port)
            slow, good = nodes[:2], nodes[2:]
            served = [asyncio.create_task(node.serve(3600.0 if node in slow else 0.0)) for node in nodes]
            try:
                taken = [asyncio.create_task(w.hub.fetch(slow[0].name, slow[0].digest, slow[0].size))]
                await until(lambda: w.hub._credit._free == 0, "one has all the room")
                await asyncio.sleep(1.0)
                assert len(w.hub.nodes()) == 4, "nobody waits: it may"
                taken.append(asyncio.create_task(w.hub.fetch(slow[1].name, slow[1].digest, slow[1].size)))
                paths = await asyncio.wait_for(
                    asyncio.gather(*(w.hub.fetch(n.name, n.digest, n.size) for n in good)), 60
                )
                assert all(path.stat().st_size == 3 * LEAF for path in paths)
                assert slow[0].name not in w.hub.nodes() and all(n.name in w.hub.nodes() for n in good)
            finally:
                for task in [*served, *taken]:
                    task.cancel()
                await asyncio.gather(*served, *taken, return_exceptions=True)
                for node in nodes:
                    node.close()

    asyncio.run(run())


def test_what_a_transfer_took_is_given_back_however_it_ends(tmp_path: Path) -> None:
    async def run() -> None:
        limits = replace(FAST, receive_bytes=4 * LEAF)
        async with world(tmp_path, limits) as w:

            async def answer(node: str, kind: str, body: dict[str, Any]) -> dict[str, Any]:
                return await asyncio.Future()

            w.answer = answer
            nodes = [Sender(i, 9 * LEAF, LEAF) for i in range(6)]
            for node in nodes:
                await node.link(w.authority, tmp_path / "keys", w.port)
            served = [asyncio.create_task(node.serve(0.01)) for node in nodes]
            taken = [asyncio.create_task(w.hub.fetch(n.name, n.digest, n.size)) for n in nodes]
            await until(lambda: nodes[0].chunks > 1, "they move")
            taken[0].cancel()
            taken[1].cancel()
            await asyncio.sleep(0)
            taken[1].cancel()
            nodes[2].close()  # its link breaks
            w.hub.disconnect(nodes[3].name, "revoked")
            await until(lambda: taken[4].done() and taken[5].done(), "the others are whole")
            for task in (*taken, *served):
                task.cancel()
            await asyncio.gather(*taken, *served, return_exceptions=True)
            credit = w.hub._credit
            await until(lambda: credit._free == limits.receive_bytes, "all is given back")
            assert not credit.waited_for and not credit.transfers
            for node in nodes:
                node.close()

    asyncio.run(run())
