"""The lane: messages go between TLS and the event loop without a way through libzmq.

On the wire nothing changes: the same ZMTP frames (rfc.zeromq.org/spec/23), so a peer on plain libzmq cannot tell.
libzmq shakes hands and answers commands; what it would cost is copies, a unix socket and two threads a message.
No I/O here but reading a lent chunk; not for what messages mean.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable

from zk0d.link.buffers import SLICE, Buffers, Bytes
from zk0d.link.gate import GREETING, MAX_FRAMES, MAX_READY, GateError
from zk0d.link.messages import MAX_BULK, MAX_ENVELOPE, Frame, Lent
from zk0d.link.rates import LOWEST

_MORE, _LONG, _COMMAND = 1, 2, 4
WAITING_OUT = 8
"""Messages with a raw frame that may wait to be sent; control messages overtake those that have not begun."""
_HELD_OUT = 2 << 20
_CONTROL_OUT = 1 << 20
WAITING_IN = 64
"""Messages that may wait for the event loop before the wire is not read any further, and their bytes."""
_BYTES_IN = 8 << 20
_DIRECT = 4096


class Skipped(bytes):
    """Stands, empty, for a raw frame that nobody asked for: its `size` bytes were thrown away as they came."""

    size = 0


class Inbox:
    """Counts the messages that one wire delivered and the event loop has not handled yet.

    Each counter has one writer (the wire's thread, the event loop), so that no lock is needed.
    """

    asked: int | None = None
    """Bytes of raw frames that this end waits for (event loop); what goes beyond is not held. None: all is."""
    coming = 0
    """Bytes of the raw frame that is half here (wire's thread)."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake`, called in the event loop, makes the wire's thread look at `full` again."""
        self._wake = wake
        self._delivered = self._handled = self._bytes_in = self._bytes_done = 0
        self._paused = False

    def delivered(self, size: int) -> None:
        """One more message, of `size` bytes, was handed over (wire's thread)."""
        self._delivered += 1
        self._bytes_in += size
        self.coming = 0

    def begins(self, size: int) -> bool:
        """A raw frame of `size` bytes begins: whether to hold it (wire's thread)."""
        if self.asked is not None and self._bytes_in - self._bytes_done + size > self.asked + MAX_ENVELOPE:
            return False
        self.coming = size
        return True

    def handled(self, size: int) -> None:
        """One of them was dealt with (event loop)."""
        self._handled += 1
        self._bytes_done += size
        if self._paused:
            self._wake()

    @property
    def full(self) -> bool:
        """Whether to stop reading (wire's thread); the flag goes up before the look, so that no wake-up is missed."""
        self._paused = True
        most = _BYTES_IN if self.asked is None else min(_BYTES_IN, self.asked + 2 * MAX_ENVELOPE)
        self._paused = self._delivered - self._handled >= WAITING_IN or self._bytes_in - self._bytes_done >= most
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
        envelope = flags & _MORE or not self.frames
        limit = MAX_READY if flags & _COMMAND else MAX_ENVELOPE if envelope else self._max_frame
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
    """Inbound: commands pass on to libzmq, messages are gathered and handed to `deliver`.

    Nothing is held but the one message that is being gathered: at most MAX_ENVELOPE + `max_frame` bytes. A raw frame
    that `begins(size)` does not want is thrown away as it comes, and told as Skipped.
    """

    def __init__(
        self, deliver: Callable[[list[Bytes]], None], buffers: Buffers, max_frame: int = MAX_BULK, skip: int = 0,
        begins: Callable[[int], bool] = lambda size: True,
    ) -> None:  # fmt: skip
        self._deliver, self._buffers, self._begins = deliver, buffers, begins
        self._walk = Frames(max_frame, skip)
        self._envelope: bytes | None = None
        self._into: memoryview | None = None  # where the present frame's body goes; None: it passes, or is thrown away
        self._skipped: Skipped | None = None
        self._since, self._size = 0.0, 0
        self._at = 0
        self._more = False

    @property
    def spoken(self) -> bool:
        """Whether the peer's first command, its READY, has come: before that no message may be sent to it."""
        return self._walk.commands > 0

    @property
    def coming(self) -> int:
        """Bytes that are sure to come still: the rest of the frame that is being gathered."""
        return self._walk.left

    def overdue(self, now: float, grace: float, rate: float = LOWEST) -> bool:
        """Whether the frame that is being gathered takes longer than `grace` s and its bytes at `rate` a second, and so
        holds memory."""
        return self._walk.left > 0 and now - self._since > grace + self._size / rate

    def wanted(self) -> memoryview | None:
        """Where the next plaintext belongs, if that is the body of one frame and worth it; then call `filled`."""
        if self._into is None or len(self._into) - self._at < _DIRECT:
            return None
        return self._into[self._at :]

    def filled(self, size: int) -> None:
        """`size` bytes were put into `wanted`."""
        self._at += size
        self._walk.left -= size
        if not self._walk.left:
            self._gathered()

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
                    if self._skipped is None:
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
            if not walk.left and (self._into is not None or self._skipped is not None):
                self._gathered()
        return passed[0] if len(passed) == 1 else b"".join(passed)

    def _begin(self) -> list[Bytes]:
        header = bytes(self._walk.head)
        flags, size = self._walk.begin()
        self._since, self._size = time.monotonic(), size
        if flags & _COMMAND:
            if self._envelope is not None:
                raise GateError("bad_zmtp", "a command within a message")
            self._into = None
            return [header]
        self._at, self._more = 0, bool(flags & _MORE)
        if self._envelope is None or self._begins(size):
            self._into = self._buffers.take(size)
        else:
            self._skipped = Skipped()
            self._skipped.size = size
        return []

    def _gathered(self) -> None:
        found: Bytes | None = self._into if self._skipped is None else self._skipped
        assert found is not None
        body, self._into, self._skipped = found, None, None
        if self._more:
            self._envelope = bytes(body)
        elif self._envelope is None:
            self._deliver([body])
        else:
            envelope, self._envelope = self._envelope, None
            self._deliver([envelope, body])


class Lane:
    """Outbound: whole messages of ours, put between the commands that come from libzmq.

    One end's control messages go before those with a raw frame. `offer` may be called from any thread; the rest belongs
    to whoever holds the wire's lock.
    """

    def __init__(self, scratch: memoryview, may_speak: Callable[[], bool], skip: int = GREETING) -> None:
        """`scratch`: at least SLICE bytes, free between two calls of `next`. `may_speak`: has the peer's READY come?"""
        self._walk = Frames(MAX_BULK + MAX_ENVELOPE, skip)
        self._scratch, self._may_speak = scratch, may_speak
        self._control: deque[bytes] = deque()
        self._queue: deque[tuple[bytes, Frame]] = deque()
        # Each has one writer: who offers, who holds the wire's lock.
        self._control_in = self._control_out = self._held_in = self._held_out = 0
        self._head = b""
        self._present: Frame | None = None
        self._at = 0
        self._refused = False
        self.on_room: Callable[[], None] = lambda: None
        """Called in the wire's thread when there is room again for who found none."""

    def offer(self, frames: list[Frame]) -> bool:
        """Queue a message, from one thread at a time; False when there is no room now (`on_room` will say)."""
        self._refused = True  # before the look, so that no room is missed
        if len(frames) == 1:
            if self._control_in - self._control_out >= _CONTROL_OUT:
                return False
            message = _header(0, len(frames[0])) + bytes(frames[0])  # type: ignore[arg-type]  # an envelope is bytes
            self._control_in += len(message)
            self._control.append(message)
        else:
            envelope, bulk = frames
            if len(self._queue) >= WAITING_OUT or self._held_in - self._held_out >= _HELD_OUT:
                return False
            assert isinstance(envelope, bytes)
            self._held_in += len(bulk) if isinstance(bulk, bytes) else 0
            self._queue.append((_header(_MORE, len(envelope)) + envelope + _header(0, len(bulk)), bulk))
        self._refused = False
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
        return self._present is not None

    @property
    def urgent(self) -> bool:
        """Whether control messages could go now."""
        return bool(self._control) and self._present is None and self._walk.between and self._may_speak()

    @property
    def ready(self) -> bool:
        """Whether `next` has something now."""
        if self._present is not None:
            return True
        return bool(self._control or self._queue) and self._walk.between and self._may_speak()

    def next(self) -> Bytes:
        """The next piece to encrypt, good until the next call; only when `ready`. OSError: a lent chunk failed us."""
        if self._present is None:
            if self._control:
                return self._controls()
            self._head, self._present = self._queue.popleft()
            self._at = 0
            if isinstance(self._present, bytes):
                self._held_out += len(self._present)
        head, self._head, bulk = self._head, b"", self._present
        size = min(SLICE - len(head), len(bulk) - self._at) if len(head) < SLICE else 0
        if head and (isinstance(bulk, bytes) or not size):
            return head
        if isinstance(bulk, Lent):
            piece: Bytes = self._scratch[: len(head) + size]
            self._scratch[: len(head)] = head
            bulk.read_into(self._at, self._scratch[len(head) : len(head) + size])
        else:
            piece = memoryview(bulk)[self._at : self._at + size]
        self._at += size
        if self._at >= len(bulk):
            self._present = None
            self._make_room()
        return piece

    def _controls(self) -> bytes:
        """All that wait, up to a slice: one TLS record for many small messages."""
        messages: list[bytes] = []
        size = 0
        while self._control and (not messages or size + len(self._control[0]) <= SLICE):
            messages.append(self._control.popleft())
            size += len(messages[-1])
        self._control_out += size
        self._make_room()
        return messages[0] if len(messages) == 1 else b"".join(messages)

    def _make_room(self) -> None:
        if self._refused:
            self._refused = False
            self.on_room()


def _header(more: int, size: int) -> bytes:
    return struct.pack("!BB", more, size) if size < 256 else struct.pack("!BQ", more | _LONG, size)
