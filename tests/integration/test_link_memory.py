"""A hub's memory while many nodes send at a time: bytes, not nodes, bound it, and everybody has his turn."""

from __future__ import annotations

import asyncio
from pathlib import Path

from crowd import crowd

BUDGET = 8 << 20
SLACK = 24 << 20
"""What links, TLS and the C library keep, and a chunk or two of each thread."""


def test_many_that_send_at_once_share_a_budget_of_bytes_and_all_come_through(tmp_path: Path) -> None:
    nodes, chunk = 48, 1 << 20

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
