"""Whoever waits for a version sees how far it is: bytes, share, rate, time left."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from linked import FAST, world

from zk0d.ctl.render import transfer
from zk0d.daemon.models import Models
from zk0d.daemon.store import Version
from zk0d.link.state import LinkLimits
from zk0d.model.blobs import BlobStore


def test_a_pull_says_how_far_it_is(tmp_path: Path) -> None:
    async def run() -> None:
        limits = LinkLimits(**{**FAST.__dict__, "max_download": 800_000.0})
        async with world(tmp_path) as w, w.node("a", limits=limits) as link:
            spec, base, data = (w.blobs.add_bytes(d) for d in (b"spec", b"base", os.urandom(2_000_000)))
            blobs, events = BlobStore(tmp_path / "blobs-a", reserve=0), []

            async def pull(version: Version, base: bool) -> None:
                for digest in (version.spec_digest, version.digest, version.base_digest):
                    await link.fetch(digest)

            async def emit(event: str, **fields: Any) -> None:
                events.append({"event": event, **fields})

            uplink = SimpleNamespace(blobs=blobs, link=link, exchange=SimpleNamespace(pull=pull))
            version = SimpleNamespace(number=3, spec_digest=spec, digest=data, base_digest=base)
            models = Models(cast(Any, None), tmp_path, cast(Any, None), cast(Any, uplink))
            await models.pull(cast(Version, version), emit)
            assert all(blobs.has(d) for d in (spec, base, data))
            rows = [e for e in events if e["digest"] == data]
            assert rows and all(e["event"] == "transfer" and e["size"] == 2_000_000 for e in rows)
            assert [e["done"] for e in rows] == sorted(e["done"] for e in rows) and rows[-1]["done"] > 0
            assert rows[-1]["rate"] > 0 and rows[-1]["remaining_s"] is not None
            assert " of 2.0 MB (" in transfer(rows[-1]) and " left" in transfer(rows[-1])

    asyncio.run(run())
