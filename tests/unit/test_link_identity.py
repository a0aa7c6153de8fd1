"""Keys, certificates, signatures, fingerprints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from zk0d.errors import ConfigError, ProtocolError
from zk0d.link.identity import Authority, NodeIdentity, csr_fingerprint, fingerprint, phrase, verify
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
