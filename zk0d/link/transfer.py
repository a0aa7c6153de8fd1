"""How a blob arrives: which chunks to ask for, when to ask again, when to give up. No I/O, no clock of its own.

The sender keeps no state: it serves any chunk of a blob it has. Proving and storing chunks is BlobStore's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from zk0d.errors import PayloadError
from zk0d.link.state import LinkLimits
from zk0d.model.blobs import Manifest

_FAST_S, _SLOW_S = 0.5, 3.0


class Receiver:
    """One arriving blob. `now` is any clock in seconds that does not go back."""

    def __init__(self, manifest: Manifest, have: Iterable[int], limits: LinkLimits, now: float) -> None:
        done = set(have)
        self.manifest = manifest
        self._limits = limits
        self._missing = deque(i for i in range(manifest.count) if i not in done)
        self._asked: dict[int, float] = {}
        self._done = done
        self._window = min(2, limits.window_max)
        self._wrong = 0
        self._latency = 0.0
        self._heard = now
        self._silences = 0
        self.progressed = now
        """When a good chunk last came."""

    @property
    def done(self) -> bool:
        return len(self._done) == self.manifest.count

    @property
    def outstanding(self) -> int:
        """Chunks that were asked for and have not come."""
        return len(self._asked)

    @property
    def window(self) -> int:
        return self._window

    def expects(self, index: int) -> bool:
        """Whether chunk `index` was asked for and has not come: what was not asked for is not even looked at."""
        return index in self._asked

    @property
    def wants(self) -> bool:
        """Whether there is a chunk to ask for, and the credit window has room for it."""
        return bool(self._missing) and len(self._asked) < self._window

    def comes(self, now: float) -> None:
        """A chunk is half here: the sender is slow, not silent."""
        self._heard = max(self._heard, now)

    def asks(self, now: float, most: int | None = None) -> list[int]:
        """The chunks to ask for now: fills the credit window; after a silence, what was asked before is asked again.

        At most `most` of them (bandwidth is limited); then call again.
        """
        if self._asked and now - self._heard >= self._patience():
            self._take_back(list(self._asked))
            self._window = max(1, self._window // 2)
            self._heard = now
            self._silences += 1
        asks: list[int] = []
        while self._missing and len(self._asked) < self._window and len(asks) != most:
            index = self._missing.popleft()
            if not self._asked:
                self._heard = max(self._heard, now)
            self._asked[index] = now
            asks.append(index)
        return asks

    def next_look(self, now: float) -> float:
        """Seconds until `asks` may have something new although nothing arrives."""
        return max(0.01, self._heard + self._patience() - now)

    def arrived(self, index: int, good: bool, now: float) -> None:
        """A chunk that was asked for came and was (not) what the manifest says. PayloadError after too many wrong."""
        asked = self._asked.pop(index, None)
        if index in self._done:
            return
        self._heard, self._silences = now, 0
        if good:
            if asked is None:
                self._missing.remove(index)  # it had been taken back (the link broke) while it was being stored
            else:
                self._adapt(now - asked)
            self._done.add(index)
            self.progressed = now
            return
        if asked is None:
            return
        self._wrong += 1
        if self._wrong >= self._limits.max_wrong:
            raise PayloadError(
                f"{self._wrong} chunks of {self.manifest.digest} came with a wrong digest",
                "the sender's copy or its software is bad",
            )
        self._missing.appendleft(index)

    def unavailable(self, index: int) -> None:
        """The sender is too busy for this chunk; it is asked for again after the next arrival or silence."""
        if self._asked.pop(index, None) is not None:
            self._missing.append(index)
            self._window = max(1, self._window // 2)

    def interrupted(self) -> None:
        """The link broke: nothing that was asked for will come."""
        self._take_back(list(self._asked))

    def _take_back(self, indexes: list[int]) -> None:
        for index in sorted(indexes, reverse=True):
            del self._asked[index]
            self._missing.appendleft(index)

    def _patience(self) -> float:
        # Doubled after each silence: on a line slower than expected, asking again only makes it slower.
        return max(self._limits.reask_s, 4 * self._latency) * 2.0 ** min(self._silences, 3)

    def _adapt(self, latency: float) -> None:
        """Few chunks in flight on a slow line (control messages wait behind them), more on a fast one."""
        self._latency = latency if not self._latency else 0.7 * self._latency + 0.3 * latency
        if latency < _FAST_S:
            self._window = min(self._limits.window_max, self._window + 1)
        elif latency > _SLOW_S:
            self._window = max(1, self._window - 1)


class Credit:
    """What all transfers to one end may have asked for together, so that a hub's memory does not grow with the nodes
    that send to it at a time: in chunks, shared evenly, which keeps few fast nodes small; and in bytes, chunk by chunk
    in turn, which holds for any number of them. One transfer alone is bound by `LinkLimits.window_max`.

    `again` is a transfer's name here: a callable that looks again, soon and not at once.
    """

    MOST, LEAST = 16, 2

    def __init__(self, most_bytes: int) -> None:
        self.transfers = 0
        self._most = self._free = most_bytes
        self._waiting: dict[Callable[[], object], int] = {}

    def left(self, outstanding: int) -> int:
        """How many more chunks a transfer may ask for that waits for `outstanding`."""
        return max(0, max(self.LEAST, self.MOST // max(1, self.transfers)) - outstanding)

    @property
    def waited_for(self) -> bool:
        """Whether somebody waits for his turn. From any thread."""
        return bool(self._waiting)

    def take(self, again: Callable[[], object], size: int) -> bool:
        """Whether `size` bytes may be asked for now. If not, `again` is called when its turn has come; whoever does not
        use his turn must `leave`, or nobody else has one."""
        first = next(iter(self._waiting), again)
        if first != again or not self._fits(size):
            self._waiting[again] = size
            return False
        self._waiting.pop(again, None)
        self._free -= size
        self._next()
        return True

    def leave(self, again: Callable[[], object]) -> None:
        """It wants nothing now."""
        if self._waiting.pop(again, None) is not None:
            self._next()

    def give(self, size: int) -> None:
        """`size` bytes that were taken have come and gone, or will not come."""
        self._free += size
        self._next()

    def _fits(self, size: int) -> bool:
        return self._free >= min(size, self._most)  # one that is larger than all there is goes alone

    def _next(self) -> None:
        for again, size in self._waiting.items():
            if self._fits(size):
                again()
            return


class Bucket:
    """A token bucket in bytes: at most `rate` bytes per second in the long run, one second's worth at once."""

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self._tokens = 0.0
        self._at: float | None = None

    def delay(self, now: float) -> float:
        """Seconds until something may be sent: a debt is paid off first, so any size may be sent once it is."""
        if not self.rate:
            return 0.0
        if self._at is not None:
            self._tokens = min(self.rate, self._tokens + (now - self._at) * self.rate)
        self._at = now
        return max(0.0, -self._tokens / self.rate)

    def spend(self, size: int) -> None:
        """`size` bytes were sent."""
        if self.rate:
            self._tokens -= size


class FairQueue:
    """Chunks to serve, one blob after the other in turn; no chunk twice; bounded."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._turns: dict[str, dict[int, tuple[int, int]]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, digest: str, index: int, chunk_size: int, ident: int) -> bool:
        """Whether there was room; a chunk that waits already keeps its place and takes the newer ask's id."""
        turn = self._turns.get(digest, {})
        if index not in turn:
            if self._size >= self._limit:
                return False
            self._size += 1
        turn[index] = (chunk_size, ident)
        self._turns[digest] = turn
        return True

    def pop(self) -> tuple[str, int, int, int]:
        """(digest, index, chunk size, id of the ask); KeyError when empty."""
        digest = next(iter(self._turns), None)
        if digest is None:
            raise KeyError("empty")
        turn = self._turns.pop(digest)
        index = next(iter(turn))
        chunk_size, ident = turn.pop(index)
        self._size -= 1
        if turn:
            self._turns[digest] = turn  # to the end: its next turn comes after everyone else's
        return digest, index, chunk_size, ident

    def clear(self) -> None:
        self._turns.clear()
        self._size = 0
