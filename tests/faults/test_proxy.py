"""The same faults through a TCP proxy of our own, where there are no namespaces: delay, 1 MB/s, standstill, resets, half-open."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from linked import until, world
from proxy import FaultProxy
from watched import Watched, limits, losses

from zk0d.link.node import NodeLink

PART = 32 * 1024
Chunks = Callable[[], int]
Trouble = Callable[[FaultProxy, Chunks, NodeLink], Awaitable[int]]


async def no_trouble(proxy: FaultProxy, chunks: Chunks, link: NodeLink) -> int:
    phases: list[str] = []
    link.on_state.append(lambda state: phases.append(state.phase))
    await until(lambda: chunks() > 1, "chunks come", 60)
    assert not phases, "the link was given up on a line that is only slow"
    return 0


async def standstill(proxy: FaultProxy, chunks: Chunks, link: NodeLink) -> int:
    """Nothing passes until after both ends have given up."""
    await until(lambda: chunks() >= 2, "2 chunks are here", 60)
    proxy.stopped = True
    await until(lambda: link.state.phase != "connected", "the silence is noticed", 60)
    proxy.stopped = False
    await until(lambda: link.state.phase == "connected", "a new link stands", 60)
    return 1


async def half_open(proxy: FaultProxy, chunks: Chunks, link: NodeLink) -> int:
    await until(lambda: chunks() >= 2, "2 chunks are here", 60)
    lost = losses(link)
    proxy.half_open()
    await until(lambda: bool(lost), "the silence is noticed", 60)
    await until(lambda: link.state.phase == "connected", "a new link stands", 60)
    return 1


async def resets(proxy: FaultProxy, chunks: Chunks, link: NodeLink) -> int:
    """Five resets at random points of the stream."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    rng, at = random.Random(seed), proxy.passed
    proxy.reset_at = sorted(at + rng.randrange(10 * PART + i * 40 * PART, 40 * PART + i * 40 * PART) for i in range(5))
    await until(lambda: not proxy.reset_at, "all five resets were made", 60)
    return 5


CASES: dict[str, tuple[dict[str, Any], int, Trouble]] = {
    "200 ms": ({"delay": 0.1}, 1 << 20, no_trouble),
    "1 MB/s": ({"rate": 1e6}, 2 << 20, no_trouble),
    "standstill": ({"rate": 4e6}, 2 << 20, standstill),
    "half-open": ({"rate": 4e6}, 2 << 20, half_open),
    "resets": ({}, 8 << 20, resets),
}


@pytest.mark.parametrize(
    ("case", "direction"),
    [
        ("200 ms", "up"),
        ("1 MB/s", "down"),
        *[(case, way) for case in ("standstill", "half-open", "resets") for way in ("up", "down")],
    ],
    ids=lambda word: word.replace(" ", "-"),
)
def test_a_transfer_through_a_bad_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, direction: str
) -> None:
    settings, size, trouble = CASES[case]
    more = {"silence_s": 20.0} if trouble is no_trouble else {}

    async def run() -> None:
        async with world(tmp_path, limits(**more)) as w:
            watched, proxy = Watched(w, monkeypatch), FaultProxy(w.port, **settings)
            try:
                async with w.node("a", port=proxy.port) as link:
                    await watched.move(
                        link, tmp_path / "blobs-a", direction, size, lambda chunks: trouble(proxy, chunks, link)
                    )
            finally:
                proxy.close()

    asyncio.run(run())
