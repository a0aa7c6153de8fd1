"""Who may link: impostors, replaced links, bad certificates, revocation, false hubs, strangers at the port. Over real TLS."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
import structlog
from linked import FAST, hello, until, world

from zk0d.errors import LinkLostError
from zk0d.link.identity import HUB_NAME, Authority
from zk0d.link.messages import Frame, Message, encode
from zk0d.link.peer import MAX_MALFORMED, MAX_UNASKED
from zk0d.link.state import LinkLimits
from zk0d.link.terminator import Terminator
from zk0d.link.tls import link_context


def refusals(logs: list[Any]) -> list[str]:
    return [entry["code"] for entry in logs if entry["event"] == "link.refused"]


def test_an_impostor_is_refused_and_the_victim_goes_on(tmp_path: Path) -> None:
    """Mallory's certificate is good, but her DEALER announces Alice's identity."""

    async def run() -> None:
        async with world(tmp_path) as w, w.node("alice") as alice:
            since = w.hub.nodes()["alice"].since
            mallory = w.identity("mallory")

            class Lying(type(mallory)):  # type: ignore[misc]
                node_id = "alice"

            mallory.__class__ = Lying
            with structlog.testing.capture_logs() as logs:
                async with w.node("mallory", identity=mallory, wait=False, name="m") as liar:
                    for _ in range(20):
                        assert (await hello(alice))["node_id"] == "alice"
                    await until(lambda: liar.state.phase == "refused", "the impostor knows")
                    assert "certificate says" in liar.state.reason
            assert "identity_mismatch" in refusals(logs)
            assert w.hub.nodes()["alice"].since == since
            assert {node for node, _, _ in w.requests} == {"alice"}

    asyncio.run(run())


def test_a_connection_that_cannot_be_welcomed_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is short for a moment, or a peer that is gone already, must not end the thread that serves all."""
    welcome, refused = Terminator._welcome, []

    def short(self: Terminator, sock: socket.socket, address: str) -> None:
        if not refused:
            refused.append(address)
            raise MemoryError
        welcome(self, sock, address)

    monkeypatch.setattr(Terminator, "_welcome", short)

    async def run() -> None:
        async with world(tmp_path) as w, w.node("alice") as alice:
            assert refused and (await hello(alice))["node_id"] == "alice"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("frames", "most", "why"),
    [
        pytest.param(
            encode(Message("chunk", 0, {"digest": "blob:" + "0" * 64, "index": 0}, None, bytes(1 << 20))),
            MAX_UNASKED, "nobody asked for", id="chunks",
        ),
        pytest.param([msgpack.packb({"v": [[[]] * 60] * 4000})], MAX_MALFORMED, "cannot be parsed", id="lists"),
        pytest.param([b""], MAX_MALFORMED, "cannot be parsed", id="nothing"),
    ],
)  # fmt: skip
def test_a_node_that_floods_the_hub_loses_its_link(tmp_path: Path, frames: list[Frame], most: int, why: str) -> None:
    """Limits of bandwidth hold for what is asked for: what is not, is the end of the link, and of no other."""

    async def run() -> None:
        async with world(tmp_path) as w, w.node("bad") as bad, w.node("good") as good:
            since = w.hub.nodes()["bad"].since
            with structlog.testing.capture_logs() as logs:
                async with asyncio.timeout(60):
                    while (here := w.hub.nodes().get("bad")) is not None and here.since == since:
                        assert here.bytes_down < 4 * most, "it goes on and on"
                        if not bad._tunnel.offer(frames):
                            await asyncio.sleep(0.001)
                        await asyncio.sleep(0)
                await until(lambda: any(why in str(entry) for entry in logs), "the reason is logged")
            assert (await hello(good))["node_id"] == "good"

    asyncio.run(run())


def test_the_same_node_anew_replaces_its_old_link(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            identity = w.identity("alice")
            async with w.node("alice", identity=identity) as first:
                since = w.hub.nodes()["alice"].since
                phases: list[str] = []
                first.on_state.append(lambda state: phases.append(state.phase))
                slow = LinkLimits(**{**FAST.__dict__, "retry_min_s": 30.0, "retry_max_s": 30.0})
                async with w.node("alice", identity=identity, name="second", limits=slow) as second:
                    assert (await hello(second))["node_id"] == "alice"
                    assert w.hub.nodes()["alice"].since > since
                    await until(lambda: "waiting" in phases, "the first has lost its link")
                await until(lambda: first.state.phase == "connected", "the first is back")
                assert (await hello(first))["node_id"] == "alice"

    asyncio.run(run())


@pytest.mark.parametrize("case", ["wrong_ca", "expired", "revoked"])
def test_a_bad_certificate_is_refused_with_the_reason_at_both_ends(tmp_path: Path, case: str) -> None:
    async def run() -> None:
        async with world(tmp_path) as w, w.node("good") as good:
            if case == "wrong_ca":
                identity = w.identity("bad", Authority.create(tmp_path / "ca2"))
            else:
                identity = w.identity("bad", days=-1 if case == "expired" else 30)
            if case == "revoked":
                w.refused.add("bad")
            with structlog.testing.capture_logs() as logs:
                async with w.node("bad", identity=identity, wait=False) as bad:
                    await until(lambda: bad.state.phase == "refused" and bad.state.next_attempt is not None, "refused")
                    words = {"wrong_ca": "authority", "expired": "expired", "revoked": "not allowed"}
                    assert words[case] in bad.state.reason
                    with pytest.raises(LinkLostError, match=words[case]):
                        await bad.wait_connected(0.01)
                    await until(lambda: len(refusals(logs)) >= 6, "it tried again, and again")
            expected = {"wrong_ca": "wrong_ca", "expired": "expired", "revoked": "not_allowed"}[case]
            assert set(refusals(logs)) == {expected}
            waits = [e["retry_s"] for e in logs if e.get("retry_s") is not None]
            assert max(waits) > 1.5 * waits[0] or max(waits) >= FAST.refused_max_s / 2, waits
            assert (await hello(good))["node_id"] == "good"

    asyncio.run(run())


def test_revoking_closes_the_live_link_at_once(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w, w.node("alice") as alice, w.node("bob") as bob:
            w.refused.add("alice")
            w.hub.disconnect("alice", "revoked")
            await until(lambda: alice.state.phase == "refused", "alice knows")
            assert "alice" not in w.hub.nodes()
            assert (await hello(bob))["node_id"] == "bob"
            w.refused.clear()
            alice.retry_now()
            await alice.wait_connected(30)

    asyncio.run(run())


def test_a_node_does_not_talk_to_another_hub(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path / "a") as ours, world(tmp_path / "b") as theirs:
            said: list[bytes] = []
            with structlog.testing.capture_logs() as logs:
                async with ours.node("alice", port=theirs.port, wait=False, tap=said.append) as alice:
                    await until(lambda: alice.state.phase == "refused", "it sees that it is another hub")
                    assert "not the hub this node enrolled with" in alice.state.reason
            assert "wrong_hub" in refusals(logs) and "peer_refused" in refusals(logs)
            assert said == []

    asyncio.run(run())


def test_what_is_not_a_node_is_turned_away_and_nobody_notices(tmp_path: Path) -> None:
    async def run() -> None:
        hasty = replace(FAST, handshake_s=0.6)  # for the one that says nothing: the others get the time they need
        async with world(tmp_path) as w, w.node("alice") as alice, world(tmp_path / "hasty", hasty) as impatient:
            identity = w.identity("noalpn")
            with structlog.testing.capture_logs() as logs:
                garbage = socket.create_connection(("127.0.0.1", w.port))
                garbage.sendall(b"GET / HTTP/1.1\r\n\r\n" + os.urandom(4096))
                idle = socket.create_connection(("127.0.0.1", impatient.port))
                context = link_context(identity)
                context.set_alpn_protocols([])
                bare = link_context(identity)

                def knock(settings: ssl.SSLContext, then: bytes) -> bytes:
                    with (
                        socket.create_connection(("127.0.0.1", w.port)) as raw,
                        settings.wrap_socket(raw, server_hostname=HUB_NAME) as tls,
                    ):
                        tls.settimeout(60)
                        tls.sendall(then)
                        heard = b""
                        while data := tls.recv(4096):
                            heard += data
                        return heard

                anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                anonymous.load_verify_locations(cadata=w.authority.pem.decode())
                anonymous.set_alpn_protocols(["zk0/1"])
                assert b"ZKNO" in await asyncio.to_thread(knock, context, b"")
                assert b"no_certificate" in await asyncio.to_thread(knock, anonymous, b"")
                assert b"bad_zmtp" in await asyncio.to_thread(knock, bare, b"not zmtp at all, for sure")
                assert (await hello(alice))["node_id"] == "alice"
                await until(lambda: "idle" in refusals(logs), "the idle one is turned away")
                for sock in (garbage, idle):
                    sock.close()
            assert {"not_tls", "no_alpn", "no_certificate", "bad_zmtp", "idle"} <= set(refusals(logs))

    asyncio.run(run())
