"""What a federation does when the database fails it as it looks for a merge. Not for merges themselves (rounds live)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hub_cast import TOML, free_port, make_parts

from zk0d.hub import merging
from zk0d.hub.main import main
from zk0d.hub.service import Hub


def test_a_database_that_fails_once_is_told_and_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "_MERGE_RETRY_S", 0.02)
    make_parts(tmp_path / "parts", elements=100)
    assert main(["--dir", str(tmp_path / "hub"), "init", "--listen", f"127.0.0.1:{free_port()}", "--name", "t"]) == 0

    async def play() -> None:
        hub = Hub(tmp_path / "hub")
        try:
            parts = [tmp_path / "parts" / n for n in ("spec.json", "base.safetensors", "exchange.safetensors")]
            toml = TOML.format(nodes=1, versions=0, dtype="bfloat16", deadline_s=600)
            await hub.create_from_files("fed", toml, "admin:me", *parts)
            federation = hub.federations["fed"]
            with hub.store.write() as db:
                db.execute("ALTER TABLE merges RENAME TO merges_away")
            federation.consider()
            assert federation.problem == "the next merge cannot be begun: no such table: merges"
            await asyncio.sleep(0.05)  # it looks again, and goes on saying so
            assert federation.problem
            with hub.store.write() as db:
                db.execute("ALTER TABLE merges_away RENAME TO merges")
            async with asyncio.timeout(10):
                while federation.problem:  # nobody calls it: it looks by itself
                    await asyncio.sleep(0.01)
        finally:
            await hub.close()

    asyncio.run(play())
