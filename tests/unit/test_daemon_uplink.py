"""Which federation is asked for a task first, over a link that is doubled: a training and its end are told, not run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from zk0d.daemon.config import Config
from zk0d.daemon.paces import Paces
from zk0d.daemon.store import Store
from zk0d.daemon.uplink import Uplink

DIGESTS = dict.fromkeys(("version_digest", "spec_digest", "base_digest"), "blob:" + "0" * 64)


class Link:
    """Answers `task.request` of each federation with a task, or with none where it is in `without`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.without: set[str] = set()

    async def request(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        name = body["federation"]
        self.asked.append(name)
        if name in self.without:
            return {"task": None, "reason": "merged when 2 more are in", "retry_s": 60}
        return {"task": {"id": f"{name}-{len(self.asked)}", "federation": name, "version": 1, "local_steps": 10,
                         "batch_size": 1, "lr": 0.0, "mu": 0.0, "seed": 0, **DIGESTS}}  # fmt: skip


def test_training_time_is_shared_among_federations(tmp_path: Path) -> None:
    """One whose steps take three times as long gets its task a third as often; one without a task is left out."""
    store = Store(tmp_path / "zk0d.db")
    uplink = Uplink(store, tmp_path, Config.load([]), lambda: None, lambda: True)
    link = Link()
    uplink.link = link  # type: ignore[assignment]
    step_s = {"slow": 30.0, "fast": 10.0, "resting": 10.0}
    for name in step_s:
        store.join(name)
        store.set_federation(name, state="open")
    link.without.add("resting")
    served = dict.fromkeys(step_s, 0)
    for _ in range(24):
        task = asyncio.run(uplink._ask())
        assert task is not None
        served[task.federation] += 1
        paces = Paces(store)
        paces.begin(task)
        assert paces._meter is not None
        paces._meter.trained_s = 10 * step_s[task.federation]
        paces.end()
        store.set_task(task.id, state="done")
    assert served["resting"] == 0 and link.asked.count("resting") == 1  # asked again when the hub said
    assert 5 <= served["slow"] <= 7 and served["fast"] == 24 - served["slow"]
    store.close()
