"""Enrolment over a real TLS port: nothing is said before the hub has proved itself."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from linked import World, hello, until, world

from zk0d.errors import LinkLostError, ProtocolError, RefusedError
from zk0d.link.enroll import enroll, hello_frame
from zk0d.link.identity import Authority, NodeIdentity


def test_from_nothing_to_a_link(tmp_path: Path) -> None:
    async def run() -> None:
        seen: list[dict[str, Any]] = []
        said: list[bytes] = []
        async with world(tmp_path) as w:
            usual = w.enroll

            async def on_enroll(request: dict[str, Any]) -> dict[str, Any]:
                seen.append(request)
                if request.get("secret") == "wait":
                    return {"state": "pending", "phrase": "one two"}
                if request.get("secret") == "no":
                    raise RefusedError("the invitation has expired", "ask for another", reason="expired_invitation")
                if request.get("secret") == "bug":
                    raise ZeroDivisionError
                return await usual(request)

            w.enroll = on_enroll
            identity = NodeIdentity.create(tmp_path / "new")

            def ask(**more: Any) -> Any:
                request = {"csr": identity.csr(), **more}
                return enroll("127.0.0.1", w.port, request, w.authority.fingerprint, timeout=60, tap=said.append)

            assert (await ask(secret="wait"))["phrase"] == "one two"
            for secret, reason in (("no", "expired_invitation"), ("bug", "internal")):
                with pytest.raises(RefusedError) as refused:
                    await ask(secret=secret)
                assert refused.value.reason == reason
            reply = await ask(label="my den")
            assert seen[-1]["label"] == "my den" and seen[-1]["address"].startswith("127.0.0.1:")
            assert len(said) == 4 and b"my den" in said[-1] and reply["receipt_key"] == b"key"
            identity.install(reply["certificate"], reply["ca"], reply["node_id"])
            async with w.node("enrolled", identity=identity) as node:
                assert (await hello(node))["node_id"] == "enrolled"

    asyncio.run(run())


def test_another_hub_learns_nothing(tmp_path: Path) -> None:
    """Neither one that shows its own authority, nor one that shows ours but cannot prove it."""

    async def run() -> None:
        said: list[bytes] = []
        ours, theirs = World(tmp_path / "a"), World(tmp_path / "b")
        await theirs.open()
        try:
            csr = NodeIdentity.create(tmp_path / "new").csr()

            def ask() -> Any:
                request = {"csr": csr, "secret": "canary"}
                return enroll(
                    "127.0.0.1", theirs.port, request, ours.authority.fingerprint, timeout=60, tap=said.append
                )

            with pytest.raises(RefusedError, match="fingerprint") as refused:
                await ask()
            assert refused.value.reason == "wrong_hub"
            theirs.hub._terminator.enroll_hello = hello_frame(ours.authority.pem)
            with pytest.raises(RefusedError) as refused:
                await ask()
            assert refused.value.reason == "wrong_hub"
        finally:
            await theirs.hub.close()
        assert said == []

    asyncio.run(run())


def test_an_unreachable_or_silent_or_foreign_server(tmp_path: Path) -> None:
    async def run() -> None:
        csr = NodeIdentity.create(tmp_path / "new").csr()
        fingerprint = Authority.create(tmp_path / "ca").fingerprint

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"SSH-2.0-OpenSSH\r\n")
            await reader.read(100)
            writer.close()

        with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(LinkLostError, match="did not answer"):
            await enroll("127.0.0.1", silent.getsockname()[1], {"csr": csr}, fingerprint, timeout=0.3)
        with socket.socket() as deaf:  # bound and not listening: nobody else can come to listen there
            deaf.bind(("127.0.0.1", 0))
            port = deaf.getsockname()[1]
            with pytest.raises(LinkLostError, match="cannot be reached"):
                await enroll("127.0.0.1", port, {"csr": csr}, fingerprint)
        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            with pytest.raises(RefusedError) as refused:
                await enroll("127.0.0.1", server.sockets[0].getsockname()[1], {"csr": csr}, fingerprint)
            assert refused.value.reason == "not_tls"
        for request, mark in (({"csr": csr, "hostname": "den"}, fingerprint), ({}, fingerprint), ({"csr": csr}, "abc")):
            with pytest.raises(ProtocolError):
                await enroll("127.0.0.1", port, request, mark)

    asyncio.run(run())


def test_bad_requests_are_refused_and_the_hub_goes_on(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:

            def knock(frame: bytes) -> bytes:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.load_verify_locations(cadata=w.authority.pem.decode())
                context.set_alpn_protocols(["zk0-enroll/1"])
                with (
                    socket.create_connection(("127.0.0.1", w.port), timeout=60) as raw,
                    context.wrap_socket(raw, server_hostname="hub.zk0") as tls,
                ):
                    tls.sendall(frame)
                    heard = b""
                    while data := tls.recv(4096):
                        heard += data
                    return heard

            for body in (os.urandom(100), b"\x81\xa1v\x02", b"\x82\xa1v\x01\xa3csr\xc4\x02hi", b""):
                heard = await asyncio.to_thread(knock, len(body).to_bytes(4, "big") + body)
                assert b"refused" in heard or b"protocol" in heard or b"internal" in heard
            await asyncio.to_thread(knock, (1 << 30).to_bytes(4, "big"))
            identity = NodeIdentity.create(tmp_path / "new")
            reply = await enroll(
                "127.0.0.1", w.port, {"csr": identity.csr()}, w.authority.fingerprint.upper(), timeout=60
            )
            assert reply["state"] == "approved"
            await until(lambda: not w.hub.nodes(), "nobody is linked")

    asyncio.run(run())
