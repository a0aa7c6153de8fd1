"""Who is who: the hub's certificate authority, node keys and certificates, signatures, fingerprints for people.

All keys are Ed25519 (RFC 8032, RFC 8410). Not for TLS settings (tls.py) nor for who may join (the hub's registry).
Fingerprints are `sha256:<64 hex>`: of the DER certificate for certificates, of the SubjectPublicKeyInfo for keys.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from zk0d.durable import write_bytes
from zk0d.errors import ConfigError, ProtocolError
from zk0d.link.keyfiles import load_certificate, read_certificate, read_key, write_key
from zk0d.link.lifetime import span
from zk0d.link.node_identity import NodeIdentity as NodeIdentity
from zk0d.link.signature import verify as verify
from zk0d.link.tls import HUB_NAME as HUB_NAME
from zk0d.link.words import WORDS

NODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
NODE_DAYS, SERVER_DAYS = 825.0, 1825.0
"""How long certificates are good; both are renewed in time."""


def check_node_id(node_id: str) -> str:
    """`node_id` itself; ConfigError unless it is 1–64 of letters, digits, `.`, `_`, `-`."""
    if not NODE_ID.match(node_id):
        raise ConfigError(
            f"{node_id[:80]!r} cannot be a node id", "use 1 to 64 letters, digits, dots, dashes, underscores"
        )
    return node_id


def fingerprint(certificate: bytes | x509.Certificate) -> str:
    """`sha256:<hex>` of a certificate given as PEM, DER or object."""
    cert = certificate if isinstance(certificate, x509.Certificate) else load_certificate(certificate)
    return "sha256:" + hashlib.sha256(cert.public_bytes(Encoding.DER)).hexdigest()


def key_fingerprint(public_key: Ed25519PublicKey) -> str:
    """`sha256:<hex>` of a public key's SubjectPublicKeyInfo."""
    return (
        "sha256:" + hashlib.sha256(public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
    )


def csr_fingerprint(csr_der: bytes) -> str:
    """Key fingerprint of a certificate request whose self-signature is good; ProtocolError otherwise."""
    return key_fingerprint(_csr_key(csr_der))


def phrase(fingerprint: str) -> str:
    """Five short words (40 bits) that two people can compare over the phone; the same fingerprint, the same words."""
    digest = hashlib.sha256(b"zk0 phrase v1\0" + fingerprint.encode()).digest()
    return " ".join(WORDS[b] for b in digest[:5])


@dataclass(frozen=True)
class ServerIdentity:
    """The hub's TLS certificate and key, as files (what `ssl` wants)."""

    certificate: Path
    key: Path

    @classmethod
    def load(cls, directory: Path) -> ServerIdentity:
        """From `server.pem` and `server.key`; ConfigError when one is missing."""
        found = cls(directory / "server.pem", directory / "server.key")
        for path in (found.certificate, found.key):
            if not path.is_file():
                raise ConfigError(f"{path} is missing", "make it with Authority.issue_server (zk0-hub init)")
        return found


class Authority:
    """The hub's certificate authority: `ca.key` (0600) and `ca.pem` in a folder of its own."""

    def __init__(self, directory: Path, key: Ed25519PrivateKey, certificate: x509.Certificate) -> None:
        self.directory = directory
        self._key = key
        self.certificate = certificate

    @classmethod
    def create(cls, directory: Path, name: str = "zk0 hub", days: int = 7300) -> Authority:
        """A new authority; ConfigError if the folder already has one (it is never replaced: every node pins it)."""
        if (directory / "ca.key").exists() and (directory / "ca.pem").exists():
            raise ConfigError(
                f"{directory} already holds an authority", "load it; replacing it would lock every node out"
            )
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        # A key without a certificate is one that a kill left here: nobody has seen it, so it is taken up.
        left = directory / "ca.key"
        key = read_key(left) if left.exists() else Ed25519PrivateKey.generate()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} authority")])
        builder = (
            _builder(subject, subject, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(cert_sign=True), critical=True)
        )
        certificate = builder.sign(key, None)
        write_key(directory / "ca.key", key)
        write_bytes(directory / "ca.pem", certificate.public_bytes(Encoding.PEM))
        return cls(directory, key, certificate)

    @classmethod
    def load(cls, directory: Path) -> Authority:
        """From `ca.key` and `ca.pem`; ConfigError when they are missing or unreadable."""
        key = read_key(directory / "ca.key")
        return cls(directory, key, read_certificate(directory / "ca.pem"))

    @property
    def pem(self) -> bytes:
        """The authority's certificate, PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def fingerprint(self) -> str:
        """What an operator is given out of band to know the hub by."""
        return fingerprint(self.certificate)

    def issue_node(self, csr_der: bytes, node_id: str, days: float = NODE_DAYS) -> bytes:
        """A client certificate (PEM) with CN = node id for the key in the request; ProtocolError if that is bad."""
        check_node_id(node_id)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node_id)])
        return self._issue(subject, _csr_key(csr_der), ExtendedKeyUsageOID.CLIENT_AUTH, days, []).public_bytes(
            Encoding.PEM
        )

    def issue_server(self, directory: Path, names: tuple[str, ...] = (), days: float = SERVER_DAYS) -> ServerIdentity:
        """A new server key and certificate in `directory`, for `hub.zk0` and further DNS `names`."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = Ed25519PrivateKey.generate()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HUB_NAME)])
        wanted = list(dict.fromkeys((HUB_NAME, *names)))
        certificate = self._issue(subject, key.public_key(), ExtendedKeyUsageOID.SERVER_AUTH, days, wanted)
        write_key(directory / "server.key", key)
        write_bytes(directory / "server.pem", certificate.public_bytes(Encoding.PEM))
        return ServerIdentity(directory / "server.pem", directory / "server.key")

    def renew_server(self, server: ServerIdentity, days: float = SERVER_DAYS) -> None:
        """Another certificate for the same key and names in place of the old one; atomic, as only one file changes."""
        old = read_certificate(server.certificate)
        try:
            names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            wanted = names.get_values_for_type(x509.DNSName)
        except x509.ExtensionNotFound:
            wanted = [HUB_NAME]
        key = read_key(server.key).public_key()
        made = self._issue(old.subject, key, ExtendedKeyUsageOID.SERVER_AUTH, days, wanted)
        write_bytes(server.certificate, made.public_bytes(Encoding.PEM))

    def _issue(
        self, subject: x509.Name, key: Ed25519PublicKey, usage: x509.ObjectIdentifier, days: float, names: list[str]
    ) -> x509.Certificate:
        builder = (
            _builder(subject, self.certificate.subject, key, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(cert_sign=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False
            )
        return builder.sign(self._key, None)


def common_name(certificate: x509.Certificate) -> str:
    """The one CN of a certificate's subject; ProtocolError if there is none or several."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise ProtocolError(f"a certificate with {len(names)} common names")
    return str(names[0].value)


def _csr_key(csr_der: bytes) -> Ed25519PublicKey:
    try:
        csr = x509.load_der_x509_csr(csr_der)
        key = csr.public_key()
        good = csr.is_signature_valid
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"the certificate request cannot be read: {error}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ProtocolError("the certificate request is not for an Ed25519 key")
    if not good:
        raise ProtocolError("the certificate request is not signed by its own key")
    return key


def _builder(subject: x509.Name, issuer: x509.Name, key: Ed25519PublicKey, days: float) -> x509.CertificateBuilder:
    start, end = span(dt.datetime.now(dt.UTC), days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, cert_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not cert_sign, key_cert_sign=cert_sign, crl_sign=cert_sign, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
