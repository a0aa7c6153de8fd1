"""Peers that say nothing, one byte at a time, or everything at once, at every stage of a real connection.

Each is turned away in its time or held within bounds, and the honest node beside it is served all the while.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from pathlib import Path

import psutil
import pytest
from linked import FAST, World, hello, world

from zk0d.link.state import LinkLimits

LIMITS = LinkLimits(**{**FAST.__dict__, "handshake_s": 0.6, "silence_s": 1.5})
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_READY = b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\x03bad"
READY = b"\x04" + bytes([len(_READY)]) + _READY
PIECE = 0.05
FLOOD = 48 << 20


def connect(w: World, stage: str) -> socket.socket:
    """A socket at `stage`: TCP stands; TLS stands (link or enrolment); the gate is open."""
    if stage == "tcp":
        return socket.create_connection(("127.0.0.1", w.port), timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=w.authority.pem.decode())
    context.set_alpn_protocols(["zk0-enroll/1" if stage == "enroll" else "zk0/1"])
    if stage != "enroll":
        keys = w.identity("bad")
        context.load_cert_chain(keys.certificate_path, keys.key_path)
    end = time.monotonic() + 60
    while True:
        raw = socket.create_connection(("127.0.0.1", w.port), timeout=60)
        try:
            tls = context.wrap_socket(raw, server_hostname="hub.zk0")
            if stage == "open":
                tls.sendall(GREETING + READY)
            return tls
        except OSError:  # the hub has little patience here, and a machine that halts uses it up
            raw.close()
            if time.monotonic() > end:
                raise


def behave(sock: socket.socket, manner: str, seconds: float, payload: bytes, limit: int) -> str:
    """Misbehave until the hub ends it: `closed`; or, after `seconds` or `limit` bytes, `alive`. Reads nothing but the end."""
    end, sent = time.monotonic() + seconds, 0
    sock.settimeout(PIECE)
    try:
        while time.monotonic() < end and sent < limit:
            if manner == "flood":
                try:
                    sent += sock.send(payload)
                except TimeoutError:
                    pass
                continue
            if manner == "drip":
                sock.send(payload[sent : sent + 1] or b"\0")
                sent += 1
            try:
                while sock.recv(65536):
                    pass
                return "closed"
            except TimeoutError:
                pass
    except OSError:
        return "closed"
    finally:
        sock.close()
    return "alive"


@pytest.mark.parametrize("stage", ["tcp", "tls", "enroll", "open"])
@pytest.mark.parametrize("manner", ["silent", "drip", "flood"])
def test_a_rude_peer_harms_nobody(tmp_path: Path, stage: str, manner: str) -> None:
    payload = {"silent": b"", "drip": b"\x16" + bytes(200), "flood": os.urandom(1 << 16)}[manner]
    if stage == "open":
        # A frame that is allowed and never ends; or pings without end, whose answers are never read.
        payload = (
            b"\x02\0\0\0\0\0\x10\0\0" + bytes(200)
            if manner == "drip"
            else b"\0\x0f\x83\xa1v\x02\xa1t\xa4ping\xa2id\x01" * 4096
        )

    async def run() -> None:
        async with world(tmp_path, LIMITS) as w, w.node("good") as link:
            before = psutil.Process().memory_info().rss
            sock = await asyncio.to_thread(connect, w, stage)
            lawful = (stage, manner) in (("open", "drip"), ("open", "flood"))  # these two keep to the protocol's letter
            rude = asyncio.create_task(
                asyncio.to_thread(
                    behave, sock, manner, 4.0 if lawful else 60.0, payload, FLOOD if stage == "open" else 1 << 40
                )
            )
            while not rude.done():
                assert (await hello(link))["node_id"] == "good"
                await asyncio.sleep(0.05)
            how = await rude
            assert lawful or how == "closed"
            assert (await hello(link))["node_id"] == "good" and link.state.phase == "connected"
            assert psutil.Process().memory_info().rss - before < 48 << 20

    asyncio.run(run())
