"""What a node tells its hub of its memberships, on a real store. The hub and its link are the integration tests'."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zk0d.daemon import membership
from zk0d.daemon.store import Store, Update
from zk0d.errors import RefusedError


def test_a_federation_that_was_removed_and_made_anew_is_joined_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, joins = {"pick": "gathering"}, []

    async def request(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        if kind == "hello":
            return {"federations": [{"name": n, "state": s, "version": -1} for n, s in hub.items()]}
        if body["federation"] not in hub:
            raise RefusedError(f"there is no federation {body['federation']!r} here", reason="no_federation")
        joins.append(body["federation"])
        return {"state": hub[body["federation"]], "spec_digest": None}

    store, link = Store(tmp_path / "db"), SimpleNamespace(request=request)
    monkeypatch.setattr(membership.datasets, "coarse_statistics", lambda own: {})
    monkeypatch.setattr(store, "datasets", lambda: [SimpleNamespace(name="d", train=True, episodes=5, frames=100)])
    says: Any = membership.Membership(store, lambda: None)

    async def tell() -> tuple[str, str]:
        await says.tell(link)
        found = store.federation("pick")
        assert found is not None
        return found.state, found.reason

    async def play() -> None:
        store.join("pick")
        assert await tell() == ("gathering", "")
        hub["pick"] = "finished"
        assert await tell() == ("finished", "") and joins == ["pick"]
        del hub["pick"]
        assert (await tell())[1] == "the hub refuses: there is no federation 'pick' here"
        hub["pick"] = "gathering"
        assert await tell() == ("gathering", "") and joins == ["pick", "pick"]

    try:
        asyncio.run(play())
    finally:
        store.close()


def test_a_federation_left_and_joined_again_over_one_link_is_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    async def request(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        heard.append(kind)
        if kind == "hello":
            return {"federations": [{"name": "pick", "state": "open", "version": 3}]}
        return {"state": "open", "spec_digest": "blob:" + "0" * 64}

    store, link = Store(tmp_path / "db"), SimpleNamespace(request=request)
    monkeypatch.setattr(membership.datasets, "coarse_statistics", lambda own: {})
    monkeypatch.setattr(store, "datasets", lambda: [SimpleNamespace(name="d", train=True, episodes=5, frames=100)])
    says: Any = membership.Membership(store, lambda: None)

    async def tell() -> str:
        await says.tell(link)
        await says.part(link)
        found = store.federation("pick")
        assert found is not None
        return found.state

    async def play() -> None:
        store.join("pick")
        assert await tell() == "open"
        assert await tell() == "open" and heard.count("federation.join") == 1  # said once
        store.add_update(Update("sha256:u", "t", "pick", b"{}", b"", "blob:p", 1, "waiting", "", 0.0))
        store.leave("pick")
        await says.part(link)  # not told yet: an update is on its way
        store.join("pick")
        assert await tell() == "open"
        assert heard.count("federation.join") == 2 and "federation.leave" not in heard

    try:
        asyncio.run(play())
    finally:
        store.close()
