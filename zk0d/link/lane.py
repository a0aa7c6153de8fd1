"""The bulk lane: messages with a raw frame go between TLS and the event loop without a way through libzmq.

On the wire nothing changes: the same ZMTP frames (rfc.zeromq.org/spec/23), so a peer on plain libzmq cannot tell.
What it saves is copies, a unix socket and libzmq's queues at each end. No I/O here; not for what messages mean.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable

from zk0d.link.gate import GREETING, MAX_FRAMES, MAX_READY, GateError
from zk0d.link.messages import MAX_BULK, MAX_ENVELOPE

Bytes = bytes | memoryview

_MORE, _LONG, _COMMAND = 1, 2, 4
_SLICE = 256 * 1024
WAITING_OUT = 2
"""Bulk messages that may wait to be sent: a control message waits behind no more than these."""
WAITING_IN = 8
"""Bulk messages that may wait for the event loop before the wire is not read any further."""


class Inbox:
    """Counts the bulk messages that one wire delivered and the event loop has not handled yet.

    Each counter has one writer (the wire's thread, the event loop), so that no lock is needed.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake`, called in the event loop, makes the wire's thread look at `full` again."""
        self._wake = wake
        self._delivered = self._handled = 0
        self._paused = False

    def delivered(self) -> None:
        """One more message was handed over (wire's thread)."""
        self._delivered += 1

    def handled(self) -> None:
        """One of them was dealt with (event loop)."""
        self._handled += 1
        if self._paused:
            self._wake()

    @property
    def full(self) -> bool:
        """Whether to stop reading (wire's thread); the flag goes up before the look, so that no wake-up is missed."""
        self._paused = True
        self._paused = self._delivered - self._handled >= WAITING_IN
        return self._paused


class Frames:
    """Walks ZMTP frame headers in pieces of any size; GateError at a frame too many or too large."""

    def __init__(self, max_frame: int, skip: int = 0) -> None:
        """`skip` bytes (the greeting) are no frames."""
        self._max_frame, self.skip = max_frame, skip
        self.head = bytearray()
        self.left = 0
        """Bytes of the present frame's body still to come."""
        self.frames = 0
        """Frames so far of a message that is not ended."""
        self.commands = 0

    @property
    def between(self) -> bool:
        """Whether a message of our own may stand here: after READY, and not within another message."""
        return not (self.skip or self.head or self.left or self.frames) and self.commands > 0

    def header(self, data: Bytes, at: int) -> int:
        """Take header bytes from `at` on, until the header is `whole`; where they end in `data`."""
        while at < len(data) and not self.whole:
            self.head.append(data[at])
            at += 1
        return at

    @property
    def whole(self) -> bool:
        return len(self.head) > 1 and len(self.head) == (9 if self.head[0] & _LONG else 2)

    def begin(self) -> tuple[int, int]:
        """The frame whose header is whole begins: its flags and size."""
        flags, size = self.head[0], int.from_bytes(self.head[1:], "big")
        if flags & ~7:
            raise GateError("bad_zmtp", f"a frame with flags {flags:#x}")
        limit = MAX_READY if flags & _COMMAND else MAX_ENVELOPE if flags & _MORE else self._max_frame
        if size > limit:
            raise GateError("too_large", f"a frame of {size} bytes, at most {limit}")
        if flags & _COMMAND:
            self.commands += 1
        else:
            self.frames += 1
            if self.frames > MAX_FRAMES or (self.frames == MAX_FRAMES and flags & _MORE):
                raise GateError("bad_zmtp", f"a message of more than {MAX_FRAMES} frames")
            if not flags & _MORE:
                self.frames = 0
        self.left = size
        self.head.clear()
        return flags, size


class Splitter:
    """Inbound: messages of one frame pass on to libzmq, those of two are gathered and handed to `deliver`.

    Nothing is held but the one message that is being gathered: at most MAX_ENVELOPE + `max_frame` bytes.
    """

    def __init__(self, deliver: Callable[[bytes, memoryview], None], max_frame: int = MAX_BULK, skip: int = 0) -> None:
        self._deliver = deliver
        self._walk = Frames(max_frame, skip)
        self._envelope: bytearray | None = None
        self._into: memoryview | None = None  # where the present frame's body goes; None: it passes
        self._at = 0
        self._last = False

    def feed(self, data: Bytes) -> Bytes:
        """The bytes to pass on now; a view of `data` where that is possible."""
        walk, view, at, end = self._walk, memoryview(data), 0, len(data)
        passed: list[Bytes] = []
        if walk.skip:
            at = min(walk.skip, end)
            walk.skip -= at
            passed.append(view[:at])
        while at < end:
            if walk.left:
                n = min(walk.left, end - at)
                if self._into is None:
                    passed.append(view[at : at + n])
                else:
                    self._into[self._at : self._at + n] = view[at : at + n]
                    self._at += n
                walk.left -= n
                at += n
            else:
                at = walk.header(view, at)
                if not walk.whole:
                    break
                passed.extend(self._begin())
            if not walk.left and self._into is not None:
                self._gathered()
        return passed[0] if len(passed) == 1 else b"".join(passed)

    def _begin(self) -> list[Bytes]:
        header, second = bytes(self._walk.head), self._envelope is not None
        flags, size = self._walk.begin()
        if flags & _COMMAND and second:
            raise GateError("bad_zmtp", "a command within a message")
        if flags & _COMMAND or not (second or flags & _MORE):
            self._into = None
            return [header]
        self._into, self._at, self._last = memoryview(bytearray(size)), 0, second
        return []

    def _gathered(self) -> None:
        assert self._into is not None
        body, self._into = self._into, None
        if not self._last:
            self._envelope = bytearray(body)
            return
        envelope, self._envelope = bytes(self._envelope or b""), None
        self._deliver(envelope, body)


class Lane:
    """Outbound: whole bulk messages of ours, put between the messages that come from libzmq."""

    def __init__(self, wake: Callable[[], None], skip: int = GREETING) -> None:
        """`wake`, called by whoever offers, makes the wire's thread look here."""
        self._walk = Frames(MAX_BULK + MAX_ENVELOPE, skip)
        self._wake = wake
        self._queue: deque[list[memoryview]] = deque()
        self._present: deque[memoryview] = deque()
        self.on_room: Callable[[], None] = lambda: None
        """Called in the wire's thread when a message has gone."""

    def offer(self, frames: list[bytes]) -> bool:
        """Queue a message, from any thread; False when there is no room now."""
        if len(self._queue) >= WAITING_OUT:
            return False
        last = len(frames) - 1
        parts: list[memoryview] = []
        for i, frame in enumerate(frames):
            more = _MORE if i < last else 0
            small = len(frame) < 256
            head = struct.pack("!BB" if small else "!BQ", more | (0 if small else _LONG), len(frame))
            parts += [memoryview(head), memoryview(frame)]
        self._queue.append(parts)
        self._wake()
        return True

    def pass_through(self, data: Bytes) -> Bytes:
        """What libzmq sends, unchanged; its frames are watched."""
        walk, view, at, end = self._walk, memoryview(data), 0, len(data)
        if walk.skip:
            at = min(walk.skip, end)
            walk.skip -= at
        while at < end:
            if walk.left:
                n = min(walk.left, end - at)
                walk.left -= n
                at += n
            else:
                at = walk.header(view, at)
                if walk.whole:
                    walk.begin()
        return data

    @property
    def within(self) -> bool:
        """Whether one of our messages is half out: libzmq's bytes must wait."""
        return bool(self._present)

    @property
    def ready(self) -> bool:
        """Whether `next` has something now."""
        return bool(self._present) or (bool(self._queue) and self._walk.between)

    def next(self) -> memoryview:
        """The next piece to encrypt (at most 256 KiB); only when `ready`."""
        if not self._present:
            self._present.extend(self._queue.popleft())
        piece = self._present[0][:_SLICE]
        rest = self._present[0][len(piece) :]
        if rest:
            self._present[0] = rest
        else:
            self._present.popleft()
            if not self._present:
                self.on_room()
        return piece
