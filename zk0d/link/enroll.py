"""Enrolment: how a node without a certificate asks the hub for one, knowing only the authority's fingerprint.

Not for who is approved (the hub's registry decides). One framed msgpack map each way over ALPN `zk0-enroll/1`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


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

    The request leaves only after the server has proved itself. Reply: {state: "approved", node_id, certificate, ca, receipt_key} or
    {state: "pending", phrase}. RefusedError (`.reason`) when the hub says no or is another hub, LinkLostError when it cannot be reached.
    """
    raise NotImplementedError
