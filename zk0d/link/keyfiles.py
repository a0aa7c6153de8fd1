"""Private keys and certificates as files: 0600, atomic, read with errors a person can act on. All keys are Ed25519.

Whose they are and what they are for is identity.py's.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING

from zk0d.durable import fsync_dir, write_bytes
from zk0d.errors import ConfigError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_ED25519 = bytes.fromhex("302e020100300506032b657004220420")
"""How PKCS #8 of an Ed25519 key begins that holds nothing else (RFC 8410, section 7); its 32 bytes follow."""


def load_certificate(data: bytes) -> x509.Certificate:
    """A certificate from PEM or DER; ValueError if it is neither."""
    from cryptography import x509

    if data.lstrip().startswith(b"-----BEGIN"):
        return x509.load_pem_x509_certificate(data)
    return x509.load_der_x509_certificate(data)


def finish_switch(directory: Path) -> None:
    """Put the next key and its certificate in the place of the old ones, if that was decided; each step once only."""
    decided, key = directory / "node.next.pem", directory / "node.next.key"
    if decided.exists():
        if key.exists():
            os.replace(key, directory / "node.key")
        os.replace(decided, directory / "node.pem")
        fsync_dir(directory)


def write_key(path: Path, key: Ed25519PrivateKey) -> None:
    """PKCS #8, PEM, without a passphrase, readable by its user alone."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    write_bytes(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)


def _private(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(
            f"{path}: {os.strerror(error.errno or 0)}", "it is made by init (hub) or enroll (node)"
        ) from None
    if mode & 0o077:
        raise ConfigError(f"{path} can be read by others (mode {mode & 0o777:o})", f"chmod 600 {path}")
    return data


def plain_key(path: Path) -> bytes:
    """The 32 secret bytes of a key as `write_key` leaves it, else nothing. ConfigError as `read_key`."""
    lines = _private(path).split()
    try:
        der = base64.b64decode(lines[3], validate=True)
    except (IndexError, ValueError):
        der = b""
    plain = lines[:3] == [b"-----BEGIN", b"PRIVATE", b"KEY-----"] and len(der) == 48 and der.startswith(_ED25519)
    return der[len(_ED25519) :] if plain else b""


def check_key(path: Path) -> None:
    """What `read_key` checks, without the cryptography package for a key that we wrote."""
    if not plain_key(path):
        read_key(path)


def read_key(path: Path) -> Ed25519PrivateKey:
    """ConfigError when there is none, others can read it, or it is no Ed25519 key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if plain := plain_key(path):
        return Ed25519PrivateKey.from_private_bytes(plain)
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_private(path), None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not a private key: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} is not an Ed25519 key")
    return key


def read_certificate(path: Path) -> x509.Certificate:
    """ConfigError when there is none."""
    try:
        return load_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {os.strerror(error.errno or 0)}", "enrol first") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not a certificate: {error}") from None
