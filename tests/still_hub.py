"""A hub in this process that listens to nobody, and one federation in it. Not a test itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from hub_cast import free_port, make_parts

from zk0d.hub import founding
from zk0d.hub.main import main
from zk0d.hub.service import Hub


def play_on(folder: Path, toml: str, play: Callable[[Hub], Awaitable[None]]) -> None:
    """Play on a hub in `folder` with a federation `fed` of these settings, which gathers."""
    make_parts(folder / "parts", elements=100)
    assert main(["--dir", str(folder / "hub"), "init", "--listen", f"127.0.0.1:{free_port()}", "--name", "t"]) == 0

    async def run() -> None:
        hub = Hub(folder / "hub")
        try:
            parts = [folder / "parts" / n for n in ("spec.json", "base.safetensors", "exchange.safetensors")]
            await founding.from_files(hub, "fed", toml, "admin:me", *parts)
            await play(hub)
        finally:
            await hub.close()

    asyncio.run(run())
