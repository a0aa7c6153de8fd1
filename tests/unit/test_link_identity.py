"""Keys, certificates, signatures, fingerprints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from zk0d.errors import ConfigError, ProtocolError
from zk0d.link.identity import (
    Authority,
    NodeIdentity,
    csr_fingerprint,
    fingerprint,
    phrase,
    verify,
)
from zk0d.link.keyfiles import load_certificate
from zk0d.link.lifetime import Lifetime
from zk0d.link.tls import link_context, server_context
from zk0d.link.words import WORDS


def test_an_authority_makes_a_node(tmp_path: Path) -> None:
    Authority.create(tmp_path / "ca")
    authority = Authority.load(tmp_path / "ca")
    node = NodeIdentity.create(tmp_path / "node")
    assert (
        node.key_path.stat().st_mode & 0o777 == 0o600 and (tmp_path / "ca" / "ca.key").stat().st_mode & 0o777 == 0o600
    )
    assert not node.enrolled
    with pytest.raises(ConfigError):
        _ = node.node_id
    assert csr_fingerprint(node.csr()) == node.fingerprint
    certificate = authority.issue_node(node.csr(), "alice")
    node.install(certificate, authority.pem, "alice")
    again = NodeIdentity.load(tmp_path / "node")
    assert again.enrolled and again.node_id == "alice" and again.fingerprint == node.fingerprint
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", authority.fingerprint)
    assert fingerprint(certificate) != fingerprint(authority.pem) == authority.fingerprint

    signature = again.sign(b"statement")
    verify(certificate, b"statement", signature)
    for data, by, sig in (
        (b"other", certificate, signature),
        (b"statement", authority.pem, signature),
        (b"", b"junk", b""),
    ):
        with pytest.raises(ProtocolError):
            verify(by, data, sig)


def test_nothing_is_replaced_and_nothing_foreign_installed(tmp_path: Path) -> None:
    authority, other = Authority.create(tmp_path / "ca"), Authority.create(tmp_path / "other")
    alice, bob = NodeIdentity.create(tmp_path / "alice"), NodeIdentity.create(tmp_path / "bob")
    for again in (lambda: Authority.create(tmp_path / "ca"), lambda: NodeIdentity.create(tmp_path / "alice")):
        with pytest.raises(ConfigError):
            again()
    good = authority.issue_node(alice.csr(), "alice")
    for certificate, ca, name in (
        (authority.issue_node(bob.csr(), "alice"), authority.pem, "alice"),
        (good, other.pem, "alice"),
        (good, authority.pem, "bob"),
        (b"junk", authority.pem, "alice"),
    ):
        with pytest.raises(ProtocolError):
            alice.install(certificate, ca, name)
    assert not alice.enrolled
    for bad in ("", "a/b", "..", "x" * 65, "a\0b", "é"):
        with pytest.raises(ConfigError):
            authority.issue_node(alice.csr(), bad)
    damaged = bytearray(alice.csr())
    damaged[-1] ^= 1
    for csr in (bytes(damaged), b"junk"):
        with pytest.raises(ProtocolError):
            authority.issue_node(csr, "alice")
    alice.key_path.chmod(0o644)
    with pytest.raises(ConfigError, match="others"):
        NodeIdentity.load(tmp_path / "alice")


def test_phrases_are_words_people_can_compare() -> None:
    assert len(WORDS) == len(set(WORDS)) == 256
    assert all(re.fullmatch(r"[a-z]{3,8}", word) for word in WORDS)
    one, two = phrase("sha256:" + "0" * 64), phrase("sha256:" + "1" * 64)
    assert one == phrase("sha256:" + "0" * 64) != two and len(one.split()) == 5


def test_a_switch_of_keys_survives_a_kill(tmp_path: Path) -> None:
    """The next certificate on disk decides it: `load` finishes the switch, whatever was done of it."""
    authority = Authority.create(tmp_path / "ca")
    for moved in (False, True):
        node = NodeIdentity.create(tmp_path / f"n{moved}")
        node.install(authority.issue_node(node.csr(), "alice"), authority.pem, "alice")
        old = node.fingerprint
        request = node.csr(new_key=True)
        assert csr_fingerprint(request) == csr_fingerprint(node.csr(new_key=True)) != old
        assert NodeIdentity.load(node.directory).fingerprint == old, "asking is not switching"
        certificate = authority.issue_node(request, "alice")
        (node.directory / "node.next.pem").write_bytes(certificate)
        if moved:
            (node.directory / "node.next.key").rename(node.key_path)
        again = NodeIdentity.load(node.directory)
        assert again.fingerprint == csr_fingerprint(request) and again.certificate == certificate
        assert sorted(p.name for p in node.directory.iterdir()) == ["ca.pem", "node.key", "node.pem"]
        link_context(again)
    node = NodeIdentity.load(tmp_path / "nTrue")
    node.install(authority.issue_node(node.csr(new_key=True), "alice"), authority.pem, "alice")
    verify(node.certificate, b"x", node.sign(b"x"))
    link_context(node)


def test_a_hub_renews_its_certificate_for_the_same_key(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca")
    server = authority.issue_server(tmp_path / "keys", ("hub.example.org",), days=1)
    before, key = server.certificate.read_bytes(), server.key.read_bytes()
    assert not Lifetime.of(before).due(Lifetime.of(before).due_at - 1)
    assert Lifetime.of(before).due(Lifetime.of(before).end - 8 * 3600)
    authority.renew_server(server, days=100)
    after = server.certificate.read_bytes()
    assert Lifetime.of(after).end > Lifetime.of(before).end + 98 * 86400 and server.key.read_bytes() == key
    assert b"hub.example.org" in load_certificate(after).public_bytes(Encoding.DER)
    server_context(tmp_path / "ca" / "ca.pem", server)
