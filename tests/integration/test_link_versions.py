"""An older and a newer peer agree on what both know, or part with a sentence that says so."""

from __future__ import annotations

import asyncio
import ssl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgpack
import pytest
from linked import FAST, hello, until, world

from zk0d.errors import RefusedError
from zk0d.link import hub as hub_module
from zk0d.link import node as node_module
from zk0d.link.messages import VERSION
from zk0d.link.peer import Peer
from zk0d.link.tls import ALPN_ENROLL, link_context, server_context
from zk0d.link.transfer import Bucket
from zk0d.model.blobs import BlobStore


def node_speaks(monkeypatch: pytest.MonkeyPatch, *protocols: str) -> None:
    def context(identity: object) -> ssl.SSLContext:
        made = link_context(identity)  # type: ignore[arg-type]
        made.set_alpn_protocols(list(protocols))
        return made

    monkeypatch.setattr(node_module, "link_context", context)


def hub_speaks(monkeypatch: pytest.MonkeyPatch, *protocols: str) -> None:
    def context(ca: object, server: object) -> ssl.SSLContext:
        made = server_context(ca, server)  # type: ignore[arg-type]
        made.set_alpn_protocols([*protocols, ALPN_ENROLL])
        return made

    monkeypatch.setattr(hub_module, "server_context", context)


@pytest.mark.parametrize("newer", ["node", "hub"])
def test_a_newer_end_falls_back_to_what_both_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newer: str) -> None:
    (node_speaks if newer == "node" else hub_speaks)(monkeypatch, "zk0/2", "zk0/1")

    async def run() -> None:
        async with world(tmp_path) as w, w.node("a") as link:
            assert (await hello(link))["node_id"] == "a"

    asyncio.run(run())


@pytest.mark.parametrize("newer", ["node", "hub"])
def test_ends_without_a_common_version_part_with_a_clear_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newer: str
) -> None:
    (node_speaks if newer == "node" else hub_speaks)(monkeypatch, "zk0/2")

    async def run() -> None:
        async with world(tmp_path) as w, w.node("a", wait=False) as link:
            await until(lambda: link.state.phase == "refused", "the node gives up this hub")
            assert "no protocol version in common" in link.state.reason and "zk0/1" in link.state.reason
            assert link.state.next_attempt is not None and not w.requests

    asyncio.run(run())


def test_an_envelope_of_a_later_version_fails_its_request_and_nothing_else(tmp_path: Path) -> None:
    """Two Peers face to face; what the first says is rewritten as a later version would say it."""

    async def run() -> None:
        pool = ThreadPoolExecutor(1)
        blobs, later = BlobStore(tmp_path), True

        async def to_new(frames: list[bytes]) -> None:
            new.heard(list(frames))

        async def to_old(frames: list[bytes]) -> None:
            envelope = msgpack.unpackb(frames[0])
            old.heard([msgpack.packb({**envelope, "v": VERSION + later}), *frames[1:]])

        async def answer(kind: str, body: object) -> dict[str, object]:
            return {"kind": kind}

        def peer(name: str, transmit: object) -> Peer:
            return Peer(
                name, transmit=transmit, blobs=blobs, pool=pool, may_take=lambda d: False, limits=FAST,  # type: ignore[arg-type]
                upload=Bucket(None), download=Bucket(None), on_request=answer,
            )  # fmt: skip

        old, new = peer("new", to_new), peer("old", to_old)
        old.up(), new.up()
        with pytest.raises(RefusedError, match=f"protocol version {VERSION + 1}, this end speaks {VERSION}") as refused:
            await new.ask("hello", {"software": "later", "federations": []}, 60)
        assert refused.value.reason == "unsupported_version"
        later = False
        assert (await new.ask("hello", {"software": "x", "federations": []}, 60)).body == {"kind": "hello"}
        await asyncio.gather(old.close(), new.close())
        pool.shutdown()

    asyncio.run(run())
