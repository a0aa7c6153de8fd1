"""Names and dates of a certificate, against the cryptography package's reading; and what is none."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from zk0d.errors import ConfigError
from zk0d.link.certificate import Certificate
from zk0d.link.identity import NodeIdentity
from zk0d.link.keyfiles import check_key, write_key

KEY = Ed25519PrivateKey.generate()
names = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=16), max_size=3
)
dates = st.datetimes(dt.datetime(1951, 1, 1), dt.datetime(9999, 1, 1)).map(lambda d: d.replace(microsecond=0))


def made(common_names: list[str], start: dt.datetime, end: dt.datetime) -> x509.Certificate:
    subject = x509.Name(
        [x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "zk0"),
         *(x509.NameAttribute(x509.NameOID.COMMON_NAME, name) for name in common_names)]
    )  # fmt: skip
    builder = x509.CertificateBuilder(
        subject, subject, KEY.public_key(), x509.random_serial_number(), *sorted((start, end))
    )
    return builder.sign(KEY, None)


GOOD = made(["node-1"], dt.datetime(2026, 1, 1), dt.datetime(2027, 1, 1)).public_bytes(Encoding.DER)
"""Made once: a signature is of another length each time, and the examples are drawn by it."""


@given(names, dates, dates)
def test_it_reads_what_the_library_wrote(common_names: list[str], start: dt.datetime, end: dt.datetime) -> None:
    certificate = made(common_names, start, end)
    for form in (Encoding.DER, Encoding.PEM):
        found = Certificate.of(certificate.public_bytes(form))
        assert found.names == tuple(common_names)
        asked = [t.replace(microsecond=0, tzinfo=dt.UTC).timestamp() for t in sorted((start, end))]
        assert [found.start, found.end] == asked  # cryptography 41 has no not_valid_before_utc to ask


@given(st.data())
def test_what_is_damaged_is_refused_or_read_and_nothing_else(data: st.DataObject) -> None:
    bad = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    for text in (bytes(bad), GOOD[: data.draw(st.integers(0, len(GOOD) - 1))]):
        try:
            Certificate.of(text)
        except ValueError:
            pass
    with pytest.raises(ValueError, match=r"no certificate|cut off|DER"):
        Certificate.of(GOOD[:20])


def test_a_key_is_checked_before_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    write_key(path, KEY)
    check_key(path)
    identity = NodeIdentity.load(tmp_path)
    assert len(identity.sign(b"x")) == 64
    with pytest.raises(ConfigError, match=r"enrol first|No such file"):
        identity.node_id  # noqa: B018
    (tmp_path / "node.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    with pytest.raises(ConfigError, match="not a certificate"):
        identity.node_id  # noqa: B018
    path.write_bytes(path.read_bytes().replace(b"MC4", b"MC5"))
    with pytest.raises(ConfigError, match="not a private key"):
        NodeIdentity.load(tmp_path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="read by others"):
        NodeIdentity.load(tmp_path)
