"""The node's end of the link: one object the daemon holds, which connects, reconnects, asks, fetches and offers.

Not for what the answers mean (the daemon's uplink). TLS and sockets are in tunnel.py, messages in peer.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from zk0d.link.identity import NodeIdentity
from zk0d.link.state import LinkLimits, LinkState
from zk0d.model.blobs import BlobStore


class NodeLink:
    """Connects to one hub and stays connected. Create and use it inside a running event loop."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        identity: NodeIdentity,
        blobs: BlobStore,
        run_dir: Path,
        on_push: Callable[[str, dict[str, Any]], None],
        limits: LinkLimits | None = None,
        tap: Callable[[bytes], None] | None = None,
    ) -> None:
        """`on_push(type, body)` runs in the event loop. `tap` sees every byte string that goes into TLS (for tests)."""
        self.state = LinkState()
        self.on_state: list[Callable[[LinkState], None]] = []
        raise NotImplementedError

    async def start(self) -> None:
        """Begin connecting; returns at once."""

    async def close(self) -> None:
        """End the link and everything that waits on it (LinkClosedError); leaves no thread, descriptor or file."""

    async def wait_connected(self, timeout: float) -> None:
        """Until the hub has answered on this link; LinkLostError with the current reason after `timeout` seconds."""

    async def request(self, type: str, body: dict[str, Any], timeout: float = 30) -> dict[str, Any]:
        """Ask the hub and give its reply's body.

        Sent again over a new link if the link breaks while waiting; the hub answers a repeated request from memory,
        so a handler runs once per request (once more only if the hub itself restarted in between).
        RefusedError (`.reason` is the hub's code) for an error reply, LinkLostError when no answer came in `timeout` seconds.
        """
        raise NotImplementedError

    async def fetch(self, digest: str) -> Path:
        """The blob's path in the store, downloaded if need be: resumes over reconnects and restarts, verified.

        RefusedError when the hub has no such blob for us, PayloadError when what it sends is wrong, LinkLostError
        without progress for `limits.stall_s`, DiskFullError when it does not fit. What has come is kept in every case.
        """
        raise NotImplementedError

    def share(self, digest: str) -> None:
        """Let the hub take this blob (which is in the store). Nothing else can be taken."""

    def unshare(self, digest: str) -> None:
        """Take that back."""

    def retry_now(self) -> None:
        """Do not wait for the next attempt (a person asked, or the network came back)."""

    def set_max_upload(self, bytes_per_s: float | None) -> None:
        """Change the upload limit; None: no limit."""
