"""TLS settings for both ends, and what a TLS failure means in words. TLS 1.3 only, mutual for the link.

Not for moving bytes (pump.py). Only `enroll_probe_context` disables a check: it is for reading one public certificate.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from zk0d.errors import ConfigError

if TYPE_CHECKING:
    from zk0d.link.identity import ServerIdentity
    from zk0d.link.node_identity import NodeIdentity

HUB_NAME = "hub.zk0"
"""The one name in every hub's server certificate: addresses may change, the pinned authority says which hub it is."""
ALPN_LINK = "zk0/1"
LINK_PROTOCOLS = (ALPN_LINK,)
"""Every version of the link that this software speaks, newest first; TLS agrees on the newest that both know."""
ALPN_ENROLL = "zk0-enroll/1"


def server_context(ca: Path, server: ServerIdentity) -> ssl.SSLContext:
    """The hub's: asks for a client certificate; the terminator requires one for ALPN `zk0/1`."""
    context = _base(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.num_tickets = 0  # a resumed session would skip the certificate checks
    context.set_alpn_protocols([*LINK_PROTOCOLS, ALPN_ENROLL])
    try:
        context.load_verify_locations(cafile=str(ca))
        context.load_cert_chain(str(server.certificate), str(server.key))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the hub's certificates cannot be used: {error}", f"look at {ca} and {server.certificate}"
        ) from None
    return context


def link_context(identity: NodeIdentity) -> ssl.SSLContext:
    """A node's, for ALPN `zk0/1`: shows its certificate, trusts the one pinned authority."""
    context = _pinned(identity.ca_path.read_text() if identity.ca_path.is_file() else "")
    context.set_alpn_protocols(list(LINK_PROTOCOLS))
    try:
        with identity.switching:
            context.load_cert_chain(str(identity.certificate_path), str(identity.key_path))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the node's certificate cannot be used: {error}", f"look at {identity.directory}, or enrol again"
        ) from None
    return context


def enroll_context(ca_pem: str) -> ssl.SSLContext:
    """For ALPN `zk0-enroll/1`: no client certificate, trusts the authority whose fingerprint was checked."""
    context = _pinned(ca_pem)
    context.set_alpn_protocols([ALPN_ENROLL])
    return context


def enroll_probe_context() -> ssl.SSLContext:
    """Trusts nobody and nothing: only to read the authority's certificate, to hold against its fingerprint."""
    context = _base(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([ALPN_ENROLL])
    return context


def _pinned(ca_pem: str) -> ssl.SSLContext:
    context = _base(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(cadata=ca_pem)
    except (ValueError, ssl.SSLError) as error:
        raise ConfigError(f"the hub's authority certificate cannot be used: {error}", "enrol again") from None
    return context


def _base(protocol: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context


_NOT_TLS = {
    "WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG",
    "BAD_RECORD_TYPE", "UNEXPECTED_MESSAGE", "ENCRYPTED_LENGTH_TOO_LONG", "UNKNOWN_PROTOCOL",
    "BAD_PROTOCOL_VERSION_NUMBER",
}  # fmt: skip
_ALERTS = {
    "UNKNOWN_CA": ("wrong_ca", "the hub does not know the authority that signed this node's certificate"),
    "CERTIFICATE_EXPIRED": ("expired", "the hub says that this node's certificate has expired"),
    "CERTIFICATE_REVOKED": ("not_allowed", "the hub says that this node's certificate was revoked"),
    "BAD_CERTIFICATE": ("bad_certificate", "the hub says that this node's certificate is not good"),
    "UNSUPPORTED_CERTIFICATE": ("bad_certificate", "the hub does not accept this kind of certificate"),
    "CERTIFICATE_UNKNOWN": ("bad_certificate", "the hub could not check this node's certificate"),
    "CERTIFICATE_REQUIRED": ("no_certificate", "the hub wants a certificate and this node showed none"),
    "ACCESS_DENIED": ("not_allowed", "the hub refuses this node's certificate"),
}


def explain_peer_failure(error: ssl.SSLError) -> tuple[str, str]:
    """(code, sentence) for the hub's log when a node's handshake failed."""
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == 10:  # X509_V_ERR_CERT_HAS_EXPIRED
            return "expired", "its certificate has expired"
        if error.verify_code == 9:
            return "not_yet_valid", "its certificate is not valid yet (look at both clocks)"
        if error.verify_code in (18, 19, 20, 21, 2, 24):
            return "wrong_ca", "its certificate is not from this hub's authority"
        return "bad_certificate", f"its certificate does not verify: {error.verify_message}"
    if reason in _NOT_TLS:
        return "not_tls", "what it sent is not TLS"
    if reason in ("UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE", "VERSION_TOO_LOW"):
        return "old_tls", "it does not speak TLS 1.3"
    if "ALERT" in reason:
        return "peer_refused", f"it refused this hub's certificate ({reason.lower().replace('_', ' ')})"
    return "tls", f"TLS failed: {reason.lower().replace('_', ' ') or error}"


def explain_hub_failure(error: ssl.SSLError, where: str) -> tuple[str, str]:
    """(code, sentence) for the node's state when TLS to the hub at `where` failed, in the handshake or afterwards."""
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == 10:
            return "hub_expired", f"the certificate of the hub at {where} has expired; tell its maintainer"
        if error.verify_code == 9:
            return (
                "not_yet_valid",
                f"the certificate of the hub at {where} is not valid yet; is this machine's clock right?",
            )
        return "wrong_hub", f"the server at {where} is not the hub this node enrolled with ({error.verify_message})"
    for word, explained in _ALERTS.items():
        if word in reason:
            return explained
    if reason in _NOT_TLS:
        return "not_tls", f"what answers at {where} is not a hub (it does not speak TLS)"
    return "tls", f"TLS to {where} failed: {reason.lower().replace('_', ' ') or error}"
