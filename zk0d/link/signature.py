"""Checking Ed25519 signatures (RFC 8032). Not for keys as files (keyfiles.py) nor for whose they are (identity.py).

Loads of the cryptography package what the curve needs; a daemon that checks a receipt is 2 MB smaller without the rest.
"""

from __future__ import annotations

import base64
import binascii

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from zk0d.errors import ProtocolError

_PLAIN = bytes.fromhex("302a300506032b6570032100")
"""How the SubjectPublicKeyInfo of an Ed25519 key begins (RFC 8410, section 4); its 32 bytes follow."""


def verify(public_key_pem_or_cert: bytes, data: bytes, signature: bytes) -> None:
    """Check an Ed25519 signature by a PEM public key or PEM/DER certificate; ProtocolError if it is not good."""
    try:
        _public_key(public_key_pem_or_cert).verify(signature, data)
    except InvalidSignature:
        raise ProtocolError("the signature does not fit the data and the key") from None
    except ValueError as error:
        raise ProtocolError(f"the signer's key cannot be read: {error}") from None


def _public_key(given: bytes) -> Ed25519PublicKey:
    lines = given.split()
    if lines[:3] == [b"-----BEGIN", b"PUBLIC", b"KEY-----"] and len(lines) == 6:
        try:
            der = base64.b64decode(lines[3], validate=True)
        except binascii.Error:
            der = b""
        if len(der) == 44 and der.startswith(_PLAIN):
            return Ed25519PublicKey.from_public_bytes(der[len(_PLAIN) :])
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    from zk0d.link.keyfiles import load_certificate

    key = load_pem_public_key(given) if b"PUBLIC KEY" in given else load_certificate(given).public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise ProtocolError(f"a signature by a {type(key).__name__}, only Ed25519 is accepted")
    return key
