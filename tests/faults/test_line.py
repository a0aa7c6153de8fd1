"""Real TCP between two network namespaces: loss, delay, little bandwidth, cuts, half-open links, a new address.

Times are those of a bad home line, scaled: cuts of 2 s where 1.2 s of silence end a link, for cuts of 30 s with 90 s and for longer ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from linked import World, until
from namespaces import HUB, Namespaces, inside, reason
from watched import Watched, limits, losses

from zk0d.link.node import NodeLink
from zk0d.model.blobs import BlobStore

Chunks = Callable[[], int]
Trouble = Callable[[Namespaces, Chunks, NodeLink], Awaitable[int]]


@contextmanager
def line(kind: str, **settings: Any) -> Iterator[Namespaces]:
    if why := reason(kind):
        pytest.skip(why)
    net = Namespaces(kind, **settings)
    try:
        yield net
    finally:
        net.close()


def run(
    folder: Path,
    patch: pytest.MonkeyPatch,
    net: Namespaces,
    direction: str,
    size: int,
    trouble: Trouble,
    **changed: Any,
) -> None:
    async def main() -> None:
        w = World(folder, limits(**changed))
        w.host = HUB
        watched = Watched(w, patch)
        with inside(net.hub):
            await w.open()
        link = NodeLink(
            host=HUB, port=w.port, identity=w.identity("a"), blobs=BlobStore(folder / "blobs-a", reserve=0), run_dir=folder / "r",
            on_push=lambda kind, body: None, limits=w.limits,
        )  # fmt: skip
        try:
            with inside(net.node):
                await link.start()
            await link.wait_connected(60)
            await watched.move(link, folder / "blobs-a", direction, size, lambda chunks: trouble(net, chunks, link))
        finally:
            net.cut(False)
            await link.close()
            await w.hub.close()

    asyncio.run(main())


async def no_trouble(net: Namespaces, chunks: Chunks, link: NodeLink) -> int:
    """The line is bad enough; the link stands all the while, though bytes crawl."""
    since, phases = link.state.since, []
    link.on_state.append(lambda state: phases.append(state.phase))
    await until(lambda: chunks() > 1, "chunks come", 60)
    assert not phases and link.state.since == since, "the link was given up on a line that is only slow"
    return 0


async def two_cuts(net: Namespaces, chunks: Chunks, link: NodeLink) -> int:
    for after in (2, 5):
        await until(lambda after=after: chunks() >= after, f"{after} chunks are here", 60)  # type: ignore[misc]
        net.cut()
        await until(lambda: link.state.phase != "connected", "the silence is noticed", 60)
        await asyncio.sleep(0.5)
        net.cut(False)
        await until(lambda: link.state.phase == "connected", "the link is back", 60)
    return 2


async def short_cut(net: Namespaces, chunks: Chunks, link: NodeLink) -> int:
    """Shorter than the silence that ends a link: TCP goes on by itself."""
    await until(lambda: chunks() >= 2, "2 chunks are here", 60)
    net.cut()
    await asyncio.sleep(0.6)
    net.cut(False)
    return 1


async def forgotten(net: Namespaces, chunks: Chunks, link: NodeLink) -> int:
    """A router forgets the connection: both ends think it stands, until silence tells."""
    await until(lambda: chunks() >= 2, "2 chunks are here", 60)
    lost = losses(link)
    net.dead_ports = {_port_of_node(net)}
    await until(lambda: bool(lost), "the silence is noticed", 60)
    await until(lambda: link.state.phase == "connected", "a new link stands", 60)
    return 1


def _port_of_node(net: Namespaces) -> int:
    """The node's end of its one connection."""
    with inside(net.node):
        rows = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
    return next(int(r.split()[1].split(":")[1], 16) for r in rows if r.split()[3] == "01")


async def moved(net: Namespaces, chunks: Chunks, link: NodeLink) -> int:
    await until(lambda: chunks() >= 2, "2 chunks are here", 60)
    lost = losses(link)
    net.move()
    await until(lambda: bool(lost), "the old address is noticed to be gone", 60)
    await until(lambda: link.state.phase == "connected", "a link from the new address stands", 60)
    return 1


CASES: dict[str, tuple[dict[str, Any], int, Trouble]] = {
    "1% loss": ({"loss": 0.01, "delay": 0.01}, 1 << 20, no_trouble),
    "200 ms": ({"delay": 0.1}, 1 << 20, no_trouble),
    "1 MB/s": ({"rate": 1e6, "delay": 0.005}, 2 << 20, no_trouble),
    "all three": ({"loss": 0.01, "delay": 0.1, "rate": 1e6}, 512 << 10, no_trouble),
    "cuts": ({"rate": 2e6, "delay": 0.01}, 2 << 20, two_cuts),
    "short cut": ({"rate": 2e6, "delay": 0.01}, 2 << 20, short_cut),
    "half-open": ({"rate": 2e6, "delay": 0.01}, 2 << 20, forgotten),
    "new address": ({"rate": 2e6, "delay": 0.01}, 2 << 20, moved),
}


@pytest.mark.parametrize("kind", ["netem", "tun"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.replace(" ", "-"))
def test_a_transfer_over_a_bad_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, case: str) -> None:
    settings, size, trouble = CASES[case]
    if kind == "netem" and case == "half-open":
        pytest.skip("netem drops packets of all connections, not of one; the TUN line does")
    direction = "up" if list(CASES).index(case) % 2 else "down"
    more = {"silence_s": 20.0} if trouble in (no_trouble, short_cut) else {}
    with line(kind, **settings) as net:
        run(tmp_path, monkeypatch, net, direction, size, trouble, **more)
