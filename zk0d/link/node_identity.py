"""A node's own key and certificate, as files and as what it signs with.

Loads the cryptography package only when there is something to sign, to request or to install. Not for the hub's
authority, nor for checking what others signed (identity.py).
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from zk0d.durable import write_bytes
from zk0d.errors import ConfigError, ProtocolError
from zk0d.link.certificate import Certificate
from zk0d.link.keyfiles import check_key, finish_switch, load_certificate, read_key, write_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class NodeIdentity:
    """A node's key and, once enrolled, its certificate and the hub's authority, in a folder of their own (0700).

    A renewal for a new key leaves `node.next.key` and then `node.next.pem` there; when the latter exists the switch is
    decided, and `load` finishes one that a kill interrupted.
    """

    def __init__(self, directory: Path, key: Ed25519PrivateKey | None = None) -> None:
        """`key`: as it is in `node.key`, read from there when it is needed if it is not given."""
        self.directory = directory
        self._read = key
        self.switching = threading.Lock()
        """Held while key and certificate change: whoever needs both files of one pair takes it."""

    @classmethod
    def create(cls, directory: Path) -> NodeIdentity:
        """A new key; ConfigError if there is one already (it is the node's identity, never silently replaced)."""
        if (directory / "node.key").exists():
            raise ConfigError(
                f"{directory / 'node.key'} already exists", "load it, or move it away to become a new node"
            )
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = Ed25519PrivateKey.generate()
        write_key(directory / "node.key", key)
        return cls(directory, key)

    @classmethod
    def load(cls, directory: Path) -> NodeIdentity:
        """From `node.key`; ConfigError when it is missing, others can read it, or it is no Ed25519 key."""
        finish_switch(directory)
        check_key(directory / "node.key")
        return cls(directory)

    @property
    def _key(self) -> Ed25519PrivateKey:
        if self._read is None:
            self._read = read_key(self.key_path)
        return self._read

    @property
    def key_path(self) -> Path:
        return self.directory / "node.key"

    @property
    def certificate_path(self) -> Path:
        return self.directory / "node.pem"

    @property
    def ca_path(self) -> Path:
        return self.directory / "ca.pem"

    @property
    def enrolled(self) -> bool:
        """Whether a certificate and an authority are installed."""
        return self.certificate_path.is_file() and self.ca_path.is_file()

    @property
    def node_id(self) -> str:
        """The certificate's CN; ConfigError before enrolment."""
        try:
            names = Certificate.of(self.certificate).names
        except OSError as error:
            raise ConfigError(f"{self.certificate_path}: {error.strerror}", "enrol first") from None
        except ValueError as error:
            raise ConfigError(f"{self.certificate_path} is not a certificate: {error}") from None
        if len(names) != 1:
            raise ConfigError(f"{self.certificate_path} has {len(names)} common names", "enrol again")
        return names[0]

    @property
    def certificate(self) -> bytes:
        """The node's certificate, PEM."""
        return self.certificate_path.read_bytes()

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the node's key: the same before and after enrolment; `phrase` of it is what people compare."""
        from zk0d.link.identity import key_fingerprint

        return key_fingerprint(self._key.public_key())

    def csr(self, *, new_key: bool = False) -> bytes:
        """A certificate request (DER, RFC 2986). Its subject says nothing: the hub chooses the node id.

        `new_key`: for the key that is to replace this one; it is durable before anybody hears of it, and asking again
        names the same.
        """
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding

        key, following = self._key, self.directory / "node.next.key"
        if new_key:
            if not following.exists():
                write_key(following, Ed25519PrivateKey.generate())
            key = read_key(following)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "zk0 node")])
        return x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, None).public_bytes(Encoding.DER)

    def install(self, cert_pem: bytes, ca_pem: bytes, node_id: str) -> None:
        """Keep what enrolment or a renewal gave, for our key or the next one, which then is ours.

        ProtocolError, and nothing changes, unless it is for one of the two and `node_id`, by that authority.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.serialization import Encoding

        from zk0d.link.identity import common_name

        try:
            cert, ca = load_certificate(cert_pem), load_certificate(ca_pem)
            cert.verify_directly_issued_by(ca)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise ProtocolError(f"the certificate from the hub is not good: {error}") from None
        following = self.directory / "node.next.key"
        key = self._key
        if cert.public_key() != key.public_key():
            key = read_key(following) if following.exists() else key
        if cert.public_key() != key.public_key():
            raise ProtocolError("the certificate from the hub is for another key")
        if common_name(cert) != node_id:
            raise ProtocolError(f"the certificate from the hub names {common_name(cert)!r}, not {node_id!r}")
        with self.switching:
            if not self.ca_path.exists() or self.ca_path.read_bytes() != ca.public_bytes(Encoding.PEM):
                write_bytes(self.ca_path, ca.public_bytes(Encoding.PEM))
            if key is self._key:
                write_bytes(self.certificate_path, cert.public_bytes(Encoding.PEM))
                return
            write_bytes(self.directory / "node.next.pem", cert.public_bytes(Encoding.PEM))
            finish_switch(self.directory)
            self._read = key

    def sign(self, data: bytes) -> bytes:
        """Ed25519 signature, 64 bytes. Callers prefix `data` with what kind of statement it is."""
        return self._key.sign(data)
