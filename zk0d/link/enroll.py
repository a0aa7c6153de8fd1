"""Enrolment: how a node without a certificate asks the hub for one, knowing only the authority's fingerprint.

Not for who is approved (the hub's registry decides). One framed msgpack map each way over ALPN `zk0-enroll/1`, after
the hub has sent its authority's certificate; docs/protocol.md, "Enrolment".
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import msgpack  # type: ignore[import-untyped]
import structlog

from zk0d.errors import LinkLostError, ProtocolError, RefusedError, Zk0Error, os_reason
from zk0d.link.identity import fingerprint
from zk0d.link.messages import Body, MessageError, unpack
from zk0d.link.session import FRAME_HEAD, MAX_ENROLL
from zk0d.link.tls import ALPN_ENROLL, HUB_NAME, enroll_context, enroll_probe_context, explain_hub_failure

log = structlog.get_logger("zk0d.link.enroll")

VERSION = 1
_REQUEST_FIELDS = {"csr": bytes, "secret": str, "label": str}
_MAX_CSR = 4096
_MAX_TEXT = 256


async def enroll(
    host: str,
    port: int,
    request: dict[str, Any],
    ca_fingerprint: str,
    *,
    timeout: float = 30,
    tap: Callable[[bytes], None] | None = None,
) -> dict[str, Any]:
    """Send `request` ({csr, secret?, label?}) to the hub whose authority has `ca_fingerprint`; its reply.

    The request leaves only after the server has proved itself. Reply: {state: "approved", node_id, certificate, ca,
    receipt_key} or {state: "pending", phrase}. RefusedError (`.reason`) when the hub says no or is another hub,
    LinkLostError when it cannot be reached.
    """
    frame = request_frame(request)
    where = f"{host}:{port}"
    try:
        async with asyncio.timeout(timeout):
            ca_pem = await _authority(host, port, ca_fingerprint, where)
            reply = await _exchange(host, port, enroll_context(ca_pem), frame, tap)
    except ssl.SSLError as error:
        code, reason = explain_hub_failure(error, where)
        raise RefusedError(reason, "check the address, and the fingerprint you were given", reason=code) from None
    except TimeoutError:
        raise LinkLostError(f"the hub at {where} did not answer within {timeout:g} s") from None
    except (OSError, asyncio.IncompleteReadError) as error:
        why = os_reason(error) if isinstance(error, OSError) else "it closed the connection"
        raise LinkLostError(
            f"the hub at {where} cannot be reached: {why}", "check the address, and that the hub runs"
        ) from None
    if reply.get("state") == "refused":
        raise RefusedError(
            str(reply.get("message", "")), str(reply.get("hint", "")), reason=str(reply.get("code", "refused"))
        )
    if reply.get("state") == "approved" and reply.get("ca") is not None:
        ca = reply["ca"].encode() if isinstance(reply["ca"], str) else reply["ca"]
        if fingerprint(ca) != normal_fingerprint(ca_fingerprint):
            raise RefusedError("the hub's reply carries another authority than it showed", reason="wrong_hub")
    return reply


def normal_fingerprint(text: str) -> str:
    """`sha256:<64 hex>` from what a person typed (case, prefix, colons, spaces do not matter), or ProtocolError."""
    digits = text.strip().lower().removeprefix("sha256:").replace(":", "").replace(" ", "")
    if len(digits) != 64 or any(c not in "0123456789abcdef" for c in digits):
        raise ProtocolError(
            f"{text[:80]!r} is not a fingerprint",
            "it looks like sha256: and 64 hexadecimal digits; the maintainer has it",
        )
    return "sha256:" + digits


def request_frame(request: dict[str, Any]) -> bytes:
    """The one frame that leaves the node; ProtocolError if it holds anything but csr, secret and label."""
    body = {k: v for k, v in request.items() if v is not None}
    for name, value in body.items():
        if name not in _REQUEST_FIELDS or not isinstance(value, _REQUEST_FIELDS[name]):
            raise ProtocolError(f"an enrolment request has no field {name} of type {type(value).__name__}")
    _check_request(body)
    return _frame({"v": VERSION, **body})


def hello_frame(ca_pem: bytes) -> bytes:
    """The body of the hub's first frame on an enrolment connection."""
    packed: bytes = msgpack.packb({"v": VERSION, "ca": ca_pem})
    return packed


async def serve_enroll(raw: bytes, address: str, on_enroll: Callable[[Body], Awaitable[Body]]) -> bytes:
    """The hub's side: parse, ask the application, pack its answer. Nothing raises; errors become a `refused` reply."""
    try:
        request = unpack(raw)
        if request.get("v") != VERSION:
            raise MessageError(
                "unsupported_version", f"enrolment version {str(request.get('v'))[:20]}, this hub speaks {VERSION}"
            )
        known = {k: v for k, v in request.items() if k in _REQUEST_FIELDS and v is not None}
        for name, value in known.items():
            if not isinstance(value, _REQUEST_FIELDS[name]):
                raise ProtocolError(f"`{name}` has the wrong type")
        _check_request(known)
        reply = await on_enroll({**known, "address": address})
    except Zk0Error as error:
        code = error.reason if isinstance(error, RefusedError) else error.code
        if isinstance(error, ProtocolError):
            code = error.wire_code if isinstance(error, MessageError) else "malformed"
        log.warning("enroll.refused", address=address, code=code, reason=error.message)
        reply = {"state": "refused", "code": code, "message": error.message, "hint": error.hint}
    except Exception:
        log.exception("enroll.failed", address=address)
        reply = {"state": "refused", "code": "internal", "message": "the hub failed; its log says more", "hint": ""}
    packed: bytes = msgpack.packb({"v": VERSION, **reply})
    return packed


def _check_request(body: Body) -> None:
    if not isinstance(body.get("csr"), bytes) or len(body["csr"]) > _MAX_CSR:
        raise ProtocolError(f"an enrolment request needs `csr`, at most {_MAX_CSR} bytes")
    for name in ("secret", "label"):
        if len(body.get(name, "")) > _MAX_TEXT:
            raise ProtocolError(f"`{name}` is longer than {_MAX_TEXT} characters")


def _frame(body: Body) -> bytes:
    packed: bytes = msgpack.packb(body)
    if len(packed) > MAX_ENROLL:
        raise ProtocolError(f"an enrolment request of {len(packed)} bytes, at most {MAX_ENROLL}")
    return FRAME_HEAD.pack(len(packed)) + packed


async def _read(reader: asyncio.StreamReader) -> Body:
    (size,) = FRAME_HEAD.unpack(await reader.readexactly(FRAME_HEAD.size))
    if size > MAX_ENROLL:
        raise ProtocolError(f"the hub sent a frame of {size} bytes, at most {MAX_ENROLL}")
    body = unpack(await reader.readexactly(size))
    if body.get("v") != VERSION:
        raise ProtocolError(f"the hub speaks enrolment version {str(body.get('v'))[:20]}, this node {VERSION}")
    return body


async def _authority(host: str, port: int, wanted: str, where: str) -> str:
    """The authority's certificate (PEM), from an unverified connection, held against its fingerprint."""
    wanted = normal_fingerprint(wanted)
    body = await _exchange(host, port, enroll_probe_context(), None, None)
    ca = body.get("ca")
    try:
        if not isinstance(ca, bytes):
            raise ValueError("no certificate")
        found = fingerprint(ca)
    except ValueError:
        raise RefusedError(f"what answers at {where} is not a hub", reason="not_zk0") from None
    if found != wanted:
        raise RefusedError(
            f"the hub at {where} has the fingerprint {found}, not {wanted}",
            "this is another hub, or someone is in between: ask the maintainer for the fingerprint again",
            reason="wrong_hub",
        )
    return ca.decode("ascii", errors="replace")


async def _exchange(
    host: str, port: int, context: ssl.SSLContext, frame: bytes | None, tap: Callable[[bytes], None] | None
) -> Body:
    """Connect; the hub's first frame, or with `frame` sent: the answer to it."""
    reader, writer = await asyncio.open_connection(
        host, port, ssl=context, server_hostname=HUB_NAME, limit=2 * MAX_ENROLL
    )
    try:
        tls = writer.get_extra_info("ssl_object")
        if tls.selected_alpn_protocol() != ALPN_ENROLL:
            raise RefusedError(f"what answers at {host}:{port} is not a hub", reason="no_alpn")
        body = await _read(reader)
        if frame is None:
            return body
        if tap is not None:
            tap(frame)
        writer.write(frame)
        await writer.drain()
        return await _read(reader)
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except (OSError, ssl.SSLError):
            pass
