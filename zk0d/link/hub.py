"""The hub's end of all links: one TLS port, one ROUTER behind it, one object the hub service holds.

Not for who may join or what requests mean (the hub's registry and service). TLS is in terminator.py, messages in peer.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from zk0d.link.identity import Authority, ServerIdentity
from zk0d.link.state import LinkLimits, NodeLinkInfo
from zk0d.model.blobs import BlobStore


class HubLink:
    """Listens for nodes. Create and use it inside a running event loop."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        authority: Authority,
        server_identity: ServerIdentity,
        run_dir: Path,
        blobs: BlobStore,
        allowed: Callable[[str, str], bool],
        on_request: Callable[[str, str, dict[str, Any]], Awaitable[dict[str, Any]]],
        may_fetch: Callable[[str, str], bool],
        on_enroll: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]],
        limits: LinkLimits | None = None,
    ) -> None:
        """The callbacks:

        allowed(node_id, certificate fingerprint): may this node link? Called in the terminator's thread, must be quick
            and must not touch the event loop (look in a set, not in SQLite).
        on_request(node_id, type, body) -> reply body; raise RefusedError(message, hint, reason=code) to refuse. Cancelled at close.
        may_fetch(node_id, digest): may this node download this blob? In the event loop.
        on_enroll(request) -> reply; request has `csr` and whatever the peer sent, and `address` (set here). RefusedError refuses.
        """
        self.port = port
        raise NotImplementedError

    async def start(self) -> None:
        """Listen; `port` is then the real one. ConfigError if the address cannot be had."""

    async def close(self) -> None:
        """End all links; leaves no thread, descriptor or file."""

    async def push(self, node_id: str, type: str, body: dict[str, Any]) -> bool:
        """Say something to a node, unanswered. False (and nothing raised) when it is not linked now."""
        raise NotImplementedError

    async def fetch(self, node_id: str, digest: str, size_limit: int) -> Path:
        """Take a blob that the node shares into the store; resumes over reconnects and restarts, verified.

        PayloadError (too large, wrong chunks; the node's link is then closed), RefusedError (the node does not share it),
        LinkLostError (no progress for `limits.stall_s`, node away or not; call again when it is back, what came is kept).
        """
        raise NotImplementedError

    def disconnect(self, node_id: str, reason: str) -> None:
        """Close the node's live link, if any. It may come back unless `allowed` says no."""

    def nodes(self) -> dict[str, NodeLinkInfo]:
        """The links that are open now."""
        raise NotImplementedError
