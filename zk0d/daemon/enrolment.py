"""Enrolment from the node's side: make a key, ask the hub, wait for the maintainer's approval, keep what was given.

What is sent is a certificate request with an empty subject and the invitation's secret: nothing about this machine.
Not for the TLS of it (zk0d.link.enroll), nor for what comes after (uplink.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from zk0d.daemon.store import Hub, Store
from zk0d.errors import LinkLostError, ProtocolError, RefusedError, UsageError, Zk0Error
from zk0d.link.enroll import enroll
from zk0d.link.identity import NodeIdentity, csr_fingerprint, phrase

_ASK_AGAIN_S = 2.0


async def enrol(
    store: Store,
    state: Path,
    where: dict[str, Any],
    emit: Callable[..., Awaitable[None]],
    gone: Callable[[], bool],
) -> dict[str, Any]:
    """Enrol at the hub in `where` (host, port, ca_fingerprint, secret?, new_key?); events `pending {phrase}` meanwhile.

    Asking goes on until the maintainer decides or the caller is `gone`; enrolling again with the same key continues.
    """
    host, port, ca = str(where["host"]), int(where["port"]), str(where["ca_fingerprint"])
    known = store.hub()
    if known is not None and (known.host, known.port) != (host, port):
        raise Zk0Error(
            f"this node is enrolled at {known.host}:{known.port} as {known.node_id}",
            "a node belongs to one hub: use another state folder for another hub",
        )
    identity = _identity(state / "keys")
    request: dict[str, Any] = {"csr": identity.csr(new_key=bool(where.get("new_key")))}
    mark = csr_fingerprint(request["csr"])
    if where.get("secret"):
        request["secret"] = where["secret"]
    told = False
    while True:
        try:
            reply = await enroll(host, port, request, ca)
        except LinkLostError:
            if not told:
                raise  # while waiting for approval the hub may restart; before that the address may be wrong
            reply = {"state": "pending"}
        if reply.get("state") == "approved":
            return _install(store, identity, host, port, reply)
        if reply.get("state") != "pending":
            raise RefusedError(f"the hub answered {reply.get('state')!r}", str(reply.get("reason", "")))
        if not told:
            told = True
            words = phrase(mark)
            theirs = reply.get("phrase", words)
            if theirs != words:
                raise ProtocolError("the hub shows another phrase than this node's key has", "somebody may be between")
            store.event("enrol", f"asked {host}:{port} for enrolment")
            await emit("pending", phrase=words, fingerprint=mark)
        if gone():
            raise Zk0Error("nobody waits for the approval any more", "run the same enroll command again to go on")
        await asyncio.sleep(_ASK_AGAIN_S)


def _identity(folder: Path) -> NodeIdentity:
    return NodeIdentity.load(folder) if (folder / "node.key").exists() else NodeIdentity.create(folder)


def _install(store: Store, identity: NodeIdentity, host: str, port: int, reply: dict[str, Any]) -> dict[str, Any]:
    try:
        node_id = str(reply["node_id"])
        receipt_key = _bytes(reply["receipt_key"])
        identity.install(_bytes(reply["certificate"]), _bytes(reply["ca"]), node_id)
    except KeyError as error:
        raise ProtocolError(f"the hub's approval lacks {error}") from error
    if b"PUBLIC KEY" not in receipt_key:
        raise ProtocolError("the hub's receipt key is not a PEM public key")
    name = str(reply.get("hub") or f"{host}:{port}")[:200]
    store.set_hub(Hub(name, host, port, node_id, receipt_key, time.time()))
    store.event("enrol", f"enrolled at {host}:{port} as {node_id}")
    return {"node_id": node_id, "hub": name, "address": f"{host}:{port}"}


def _bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


def required(request: dict[str, Any]) -> dict[str, Any]:
    """The parts of an `enroll` request. Raises UsageError naming what is missing."""
    missing = [k for k in ("host", "port", "ca_fingerprint") if not request.get(k)]
    if missing:
        raise UsageError(
            f"enroll needs {', '.join(missing)}", "paste the whole invitation, or HOST:PORT --ca-fingerprint"
        )
    return {k: request.get(k) for k in ("host", "port", "ca_fingerprint", "secret", "new_key")}
