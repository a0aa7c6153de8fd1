"""What one end waits for of a peer's raw frames: on a hub's link no others are held, so that nobody fills its memory.

Belongs to the event loop; the link's Inbox carries the number to the wire's thread. Not for whose turn it is to ask
(transfer.Credit).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from zk0d.link.lane import Inbox


class Expected:
    """Of one peer, over all its links."""

    def __init__(self) -> None:
        self._inbox: Inbox | None = None
        self._lasting = 0

    def up(self, inbox: Inbox | None) -> None:
        """A link stands; `inbox` None: it holds whatever comes."""
        self._inbox = inbox
        self.add(self._lasting)

    def down(self) -> None:
        """The link is gone, and what was expected on it."""
        self._inbox = None

    def add(self, size: int) -> None:
        """So many bytes more (or less) are waited for on this link."""
        if self._inbox is not None and self._inbox.asked is not None:
            self._inbox.asked += size

    @contextlib.contextmanager
    def lasting(self, size: int) -> Iterator[None]:
        """While a question is out whose answer has up to `size` bytes: it is asked again on the next link."""
        self._lasting += size
        self.add(size)
        try:
            yield
        finally:
            self._lasting -= size
            self.add(-size)

    @property
    def coming(self) -> bool:
        """Whether a raw frame is half here: the peer is slow, not silent."""
        return self._inbox is not None and self._inbox.coming > 0
