"""TLS without a socket, and what waits for one: pieces of any size, in order, and little kept for each of many links.

And the wire on real TCP: it may sleep until much is there only while so much is sure to come.
"""

from __future__ import annotations

import fcntl
import os
import random
import selectors
import socket
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from zk0d.link.buffers import SLICE, Buffers, Bytes, OutBuffer, Scratch
from zk0d.link.identity import Authority, NodeIdentity, ServerIdentity
from zk0d.link.lane import Splitter
from zk0d.link.pump import TlsPump
from zk0d.link.tls import HUB_NAME, link_context, server_context
from zk0d.link.wire import Wire


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub's and a node's keys."""
    folder = tmp_path_factory.mktemp("ends")
    authority = Authority.create(folder / "ca")
    authority.issue_server(folder / "keys")
    node = NodeIdentity.create(folder / "node")
    node.install(authority.issue_node(node.csr(), "a"), authority.pem, "a")
    return folder


def pair(folder: Path, links: int) -> tuple[TlsPump, TlsPump]:
    """A hub's pump, of a hub with so many links, and a node's."""
    authority = Authority.load(folder / "ca")
    server = ServerIdentity.load(folder / "keys")
    scratch = Scratch()
    scratch.share(links)
    hub = TlsPump(server_context(authority.directory / "ca.pem", server), server_side=True, scratch=scratch)
    context = link_context(NodeIdentity.load(folder / "node"))
    node = TlsPump(context, server_side=False, server_hostname=HUB_NAME, scratch=Scratch())
    node.shake()
    while not (hub.established and node.established):
        carry(node, hub)
        carry(hub, node)
    return hub, node


def carry(source: TlsPump, sink: TlsPump) -> list[int]:
    """Give what `source` has to `sink`; the sizes of its parts."""
    parts = source.take()
    data, piece = b"".join(parts), sink.scratch.piece
    for at in range(0, len(data), piece):
        sink.feed(data[at : at + piece])
        if sink.established:
            while plain := sink.read():
                heard.append(bytes(plain))
    return [len(part) for part in parts]


heard: list[bytes] = []


@pytest.mark.parametrize("links", [1, 16, 10_000])
def test_bytes_come_through_in_pieces_that_many_links_can_afford(ends: Path, links: int) -> None:
    hub, node = pair(ends, links)
    assert hub.scratch.piece == {1: SLICE, 16: 64 * 1024, 10_000: 32 * 1024}[links]
    data = os.urandom(3 * SLICE + 12345)
    for source, sink in ((hub, node), (node, hub)):
        heard.clear()
        source.write(b"small")
        source.write(memoryview(data)[:SLICE])
        source.write(data[SLICE:])
        source.write(b"last")
        sizes = carry(source, sink)
        assert b"".join(heard) == b"small" + data + b"last"
        if source is hub and links > 1:
            assert max(sizes) < hub.scratch.piece * 1.01 + 100, "OpenSSL's buffer has held more at once"


def test_what_a_socket_takes_in_parts_of_any_size_keeps_its_order() -> None:
    rng = random.Random(7)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        out, sent, got, told = OutBuffer(), bytearray(), bytearray(), 0
        for _ in range(300):
            part = rng.randbytes(rng.choice((0, 1, 7, 300, 5000, 70_000)))
            sent += part
            out.append(part)
            if rng.random() < 0.2:
                told += out.send(ours)
                assert out.size == len(sent) - told
            if rng.random() < 0.3 and told > len(got):
                got += theirs.recv(rng.randrange(1, 20_000))
        while len(got) < len(sent):
            told += out.send(ours)
            got += theirs.recv(1 << 16)
        assert got == sent and not out.size and told == len(sent)


def message(size: int) -> bytes:
    """An envelope of one byte, and a raw frame of `size`."""
    return b"\1\1e\2" + size.to_bytes(8, "big") + bytes(size)


@contextmanager
def wire_of(pump: TlsPump, heard: list[list[Bytes]]) -> Iterator[tuple[Wire, socket.socket, socket.socket]]:
    """A wire that gathers messages, its socket, and the one at the other end."""
    with socket.create_server(("127.0.0.1", 0)) as server, selectors.DefaultSelector() as selector:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        far = socket.create_connection(server.getsockname())
        near, _ = server.accept()
        with far, near:
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            near.setblocking(False)
            wire = Wire(selector, near, pump)
            wire.split = Splitter(heard.append, Buffers())
            wire.inbound = wire.split.feed
            yield wire, near, far


def take_in(wire: Wire, near: socket.socket, size: int) -> None:
    """Have the wire read the `size` bytes that are on their way to it, all at once."""
    deadline = time.monotonic() + 60
    while int.from_bytes(fcntl.ioctl(near, termios.FIONREAD, bytes(4)), sys.byteorder) < size:
        assert time.monotonic() < deadline, "the bytes did not come"
    wire.ready(near, selectors.EVENT_READ)


@pytest.mark.parametrize("first", [140_000, 180_000, 200_000, 262_144])
def test_a_wire_never_waits_for_more_than_will_come(ends: Path, first: int) -> None:
    """The end of a message, and nothing after it: whatever part of it came before, the rest wakes the wire."""
    for more in (-16_500, -16_000, -9_000, -22, 0, 1, 5, 22, 4_000, 9_000, 12_000, 16_000, 16_385, 16_500, 40_000):
        hub, node = pair(ends, 1)
        heard: list[list[Bytes]] = []
        size = first + (128 << 10) + more
        node.write(message(size))
        ciphertext = b"".join(node.take())
        with wire_of(hub, heard) as (wire, near, far):
            far.sendall(ciphertext[:first])
            take_in(wire, near, first)
            left = len(ciphertext) - first
            assert near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) <= left, f"{left} bytes are left, and no more"
            far.sendall(ciphertext[first:])
            take_in(wire, near, left)
            assert [[len(frame) for frame in frames] for frames in heard] == [[1, size]]


def test_a_wire_sleeps_while_much_is_sure_to_come(ends: Path) -> None:
    hub, node = pair(ends, 1)
    node.write(message(1 << 20))
    ciphertext = b"".join(node.take())
    with wire_of(hub, []) as (wire, near, far):
        far.sendall(ciphertext[: 256 << 10])
        take_in(wire, near, 256 << 10)
        assert near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 128 << 10
