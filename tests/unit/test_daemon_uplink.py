"""Which federation is asked for a task first, and that leaving is told, over a link that is doubled: no training is run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from zk0d.daemon.config import Config
from zk0d.daemon.membership import Membership
from zk0d.daemon.paces import Paces
from zk0d.daemon.store import Store, Update
from zk0d.daemon.uplink import Uplink
from zk0d.errors import LinkLostError, RefusedError

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


class Hub:
    """Hears what the node says of its memberships; `knows`: whether it has ever heard of leaving."""

    def __init__(self, knows: bool = True) -> None:
        self.knows, self.heard, self.away = knows, list[str](), False

    async def request(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.away:
            raise LinkLostError("the line is cut")
        if kind == "federation.leave" and not self.knows:
            raise RefusedError("unknown message type 'federation.leave'", reason="unknown_type")
        self.heard.append(f"{kind} {body['federation']}")
        return {"state": "left"}


def test_the_hub_is_told_once_what_was_left(tmp_path: Path) -> None:
    """After what waits was delivered, also when the link or the daemon ends in between; what is joined again is not
    left; and a hub that does not know the word is asked once."""
    store, hub = Store(tmp_path / "zk0d.db"), Hub()
    membership = Membership(store, lambda: None)
    for name in ("pick", "place"):
        store.join(name)
    update = Update("sha256:u", "t", "pick", b"{}", b"", "sha256:p", 1, "waiting", "", 0.0)
    store.add_update(update)
    store.leave("pick")
    store.leave("place")
    store.join("place")
    asyncio.run(membership.part(hub))  # type: ignore[arg-type]
    assert hub.heard == [] and store.leaving() == ["pick"]  # its update goes first
    store.set_update("sha256:u", state="receipted")
    hub.away = True
    with pytest.raises(LinkLostError):
        asyncio.run(membership.part(hub))  # type: ignore[arg-type]
    store.close()
    store, hub.away = Store(tmp_path / "zk0d.db"), False
    membership = Membership(store, lambda: None)
    for _ in range(2):
        asyncio.run(membership.part(hub))  # type: ignore[arg-type]
    assert hub.heard == ["federation.leave pick"] and store.leaving() == []
    store.leave("place")
    asyncio.run(membership.part(Hub(knows=False)))  # type: ignore[arg-type]
    assert store.leaving() == [] and [f.name for f in store.federations()] == []
    store.close()
