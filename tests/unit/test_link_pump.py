"""TLS without a socket, and what waits for one: pieces of any size, in order, and little kept for each of many links."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

import pytest

from zk0d.link.buffers import SLICE, OutBuffer, Scratch
from zk0d.link.identity import Authority, NodeIdentity, ServerIdentity
from zk0d.link.pump import TlsPump
from zk0d.link.tls import HUB_NAME, link_context, server_context


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
