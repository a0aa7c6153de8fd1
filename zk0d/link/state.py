"""What a link says about itself: its limits, its state, its transfers. Plain data, shared by both ends.

Not the code that changes any of it (node.py, hub.py, peer.py do).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from zk0d.link.rates import Rate

Phase = Literal["connecting", "connected", "waiting", "refused", "closed"]


@dataclass(frozen=True)
class LinkLimits:
    """Times in seconds, sizes in bytes. The defaults suit a home line; tests make them short."""

    connect_s: float = 10.0
    handshake_s: float = 10.0
    ping_s: float = 15.0
    silence_s: float = 90.0
    """A link that moves no byte for so long is dropped. Well above the bytes in flight ÷ the slowest line."""
    retry_min_s: float = 0.25
    retry_max_s: float = 30.0
    refused_min_s: float = 5.0
    refused_max_s: float = 600.0
    reask_s: float = 10.0
    """A transfer that receives nothing for so long asks again."""
    stall_s: float = 300.0
    """A transfer without progress for so long, reconnects included, fails with LinkLostError (what came is kept)."""
    chunk_size: int = 1 << 20
    window_max: int = 8
    """Chunks asked for and not yet here, per transfer; adapts below this."""
    max_wrong: int = 5
    """Chunks with a wrong digest before a transfer is given up."""
    max_upload: Rate | float | None = None
    """Bytes per second of bulk that this end sends, to all peers together; None: no limit."""
    max_download: Rate | float | None = None
    """Bytes per second of bulk that this end asks for, of all peers together."""
    node_upload: Rate | float | None = None
    """As `max_upload`, to each node. A hub's."""
    node_download: Rate | float | None = None
    """As `max_download`, of each node. A hub's."""
    max_blob: int = 16 << 30
    max_requests: int = 16
    """Requests of one peer being answered at once; more get `busy`."""
    receive_bytes: int = 256 << 20
    """Bytes of chunks that a hub has asked for of all nodes together, and so those that its memory holds of them."""
    requests_per_s: float | None = None
    """Requests of one peer in the long run (a burst of `requests_at_once` before); more get `busy`. None: any."""
    requests_at_once: int = 400
    max_links: int = 4096
    max_handshakes: int = 64


@dataclass
class Progress:
    """One transfer. `rate` is bytes per second over its life; `remaining_s` None while it cannot be told."""

    digest: str
    direction: Literal["up", "down"]
    size: int
    done: int
    started: float = field(default_factory=time.time)
    skipped: int = 0
    """Bytes of `done` that were here before this transfer began."""

    moved: float = field(default_factory=time.time)
    """When the last chunk came or went."""

    @property
    def rate(self) -> float:
        return (self.done - self.skipped) / max(time.time() - self.started, 1e-3)

    @property
    def remaining_s(self) -> float | None:
        rate = self.rate
        return (self.size - self.done) / rate if rate > 0 else None

    def row(self) -> dict[str, Any]:
        """For status documents and progress events: bytes, bytes per second, seconds left."""
        return {
            "digest": self.digest, "direction": self.direction, "done": self.done, "size": self.size,
            "rate": self.rate, "remaining_s": self.remaining_s,
        }  # fmt: skip


@dataclass
class LinkState:
    """A node's link, for people: `reason` is a sentence; times are seconds since the epoch."""

    phase: Phase = "closed"
    reason: str = "not started"
    code: str = ""
    """Why it is refused, in one word (docs/protocol.md §5, or of TLS: `expired`, `wrong_hub` …)."""
    since: float = field(default_factory=time.time)
    next_attempt: float | None = None
    bytes_up: int = 0
    """Ciphertext bytes sent to the hub since start, all links together."""
    bytes_down: int = 0
    transfers: list[Progress] = field(default_factory=list)


@dataclass(frozen=True)
class NodeLinkInfo:
    """One live link, as the hub sees it."""

    node_id: str
    since: float
    address: str
    bytes_up: int
    bytes_down: int
