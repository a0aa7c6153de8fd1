"""A TLS connection's two sockets, the network's and the local one, with backpressure between them and the lane beside.

Shared by both ends: the tunnel drives one Wire with a selector, the terminator many. Not for what the bytes mean:
the owner puts filters (gate, refusal scanner) in `inbound` and `outbound`.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable

from zk0d.link.buffers import Bytes, OutBuffer
from zk0d.link.lane import Inbox, Lane, Splitter
from zk0d.link.pump import MOST_RECORD, TlsPump

HIGH_WATER = 1 << 20
"""Bytes waiting on one side above which the other side is not read."""


_FAST = 64 * 1024
"""Bytes that one `recv` gives on a line so fast that it is worth while to wait for more at once."""
_ENOUGH = 128 * 1024
_CALM_S = 0.25
_UNSENT_S = 0.004
_LEAST_UNSENT, _MOST_UNSENT = 128 * 1024, 1 << 20


class WireEnd(Exception):
    """The wire has ended, cleanly or not; `side` is `net` or `app`."""

    def __init__(self, side: str, reason: str) -> None:
        super().__init__(reason)
        self.side = side
        self.reason = reason


def _pass(data: Bytes) -> Bytes:
    return data


class Wire:
    """A TCP socket with TLS, and behind it a plain stream socket (`app`) once there is one.

    The owner registers nothing: it calls `ready` for every event and `attend` afterwards. WireEnd and ssl.SSLError come
    out of `ready`; the owner then closes. One thread owns it; `speak` alone may be called from another.
    """

    def __init__(self, selector: selectors.BaseSelector, net: socket.socket, pump: TlsPump) -> None:
        self._selector = selector
        self._net = net
        self.pump = pump
        self.owner: object = self
        """The selector's data for events of these sockets."""
        self._app: socket.socket | None = None
        self.to_net, self.to_app = OutBuffer(), OutBuffer()
        self.lane: Lane | None = None
        """Messages of ours that go out between the commands of `app`; the owner sets it with `outbound`."""
        self.inbox: Inbox | None = None
        self.split: Splitter | None = None
        """Whose messages may be decrypted right to where they belong."""
        self.inbound: Callable[[Bytes], Bytes] = _pass
        self.outbound: Callable[[Bytes], Bytes] = _pass
        self.on_established: Callable[[], None] = lambda: None
        self.bytes_in = self.bytes_out = 0
        self.moved = time.monotonic()
        """When the network last delivered, or took what was waiting."""
        self._buffer = pump.scratch.raw
        self._lowat = 1
        self._sent_before, self._unsent, self._calm_at = 0, 0, 0.0
        self._closing = False
        self._masks: dict[socket.socket, int] = {}
        self._told = False
        self._lock = threading.RLock()

    def attach(self, app: socket.socket) -> None:
        """Begin to pump to and from `app` (non-blocking stream socket)."""
        self._app = app

    @property
    def attached(self) -> bool:
        return self._app is not None

    def say(self, plaintext: bytes) -> None:
        """Put bytes of our own into the stream to the network."""
        with self._lock:
            self.pump.write(plaintext)
            self._flush()

    def flush(self) -> None:
        """Send what waits."""
        with self._lock:
            self._flush()

    def _flush(self, more: bool = False) -> None:
        """Move ciphertext to the socket as far as it takes it (`more` follows at once). WireEnd if the line is gone."""
        for made in self.pump.take():
            self.to_net.append(made)
        if self.to_net.size:
            try:
                n = self.to_net.send(self._net, socket.MSG_MORE if more else 0)
            except OSError as error:
                raise WireEnd("net", f"the connection broke ({error.strerror})") from None
            if n:
                self.bytes_out += n
                if self.to_net.size or n > 4096:  # a bare ping into a dead line proves nothing
                    self.moved = time.monotonic()
        if self._closing and not self.to_net.size:
            self._closing = False
            try:
                self._net.shutdown(socket.SHUT_WR)
            except OSError:
                pass

    def ready(self, sock: socket.socket, mask: int) -> None:
        """Handle one event of the selector."""
        with self._lock:
            if sock is self._net:
                if mask & selectors.EVENT_READ:
                    self._from_net()
                self._flush()
                self._from_lane()
            elif sock is self._app:
                if mask & selectors.EVENT_WRITE:
                    self._to_app()
                if mask & selectors.EVENT_READ:
                    self._from_app()

    def kick(self) -> None:
        """Send from the lane what can go now; then `attend`."""
        with self._lock:
            self._from_lane()

    @property
    def owes(self) -> bool:
        """Whether the lane has something that the network would take: no time to wait for events."""
        return self.lane is not None and not self.to_net.size and not self._closing and self.lane.ready

    def speak(self) -> bool:
        """From any thread: send the lane's control messages now, if the wire's own thread is not at work on it.

        False: that thread must `kick` and `attend`. It saves a question and its answer a change of threads each.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            lane = self.lane
            if lane is None or self._closing:
                return False
            while lane.urgent and not self.to_net.size:
                self.pump.write(lane.next())
                self._flush()
            return not self.to_net.size and not lane.ready
        except (WireEnd, ssl.SSLError):
            return False  # the wire's thread will find the same
        finally:
            self._lock.release()

    def _from_net(self) -> None:
        try:
            n = self._net.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            raise WireEnd("net", f"the connection broke ({error.strerror})") from None
        if n == 0:
            raise WireEnd("net", "the other end closed the connection")
        self.bytes_in += n
        self.moved = time.monotonic()
        piece = self.pump.scratch.piece
        for at in range(0, n, piece):
            self.pump.feed(self._buffer[at : min(n, at + piece)])
            self._deliver()
        sure = (
            self.split.coming - MOST_RECORD if self.split is not None else 0
        )  # OpenSSL may have a part of one already
        self._wake_at(_ENOUGH if n >= _FAST and sure > _ENOUGH else 1)

    def _wake_at(self, size: int) -> None:
        """Have the network's side wake us for so many bytes only: each awakening costs as much as 16 KiB of TLS."""
        if size != self._lowat:
            self._net.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
            self._lowat = size

    def calm(self, now: float) -> None:
        """Call now and then: fits the socket to the line. What lies unsent in the kernel is what control waits for."""
        if now < self._calm_at:
            return
        with self._lock:
            if now - self.moved > _CALM_S:
                self._wake_at(1)
            rate = (self.bytes_out - self._sent_before) / (now - self._calm_at + _CALM_S)
            self._sent_before, self._calm_at = self.bytes_out, now + _CALM_S
            unsent = max(_LEAST_UNSENT, min(_MOST_UNSENT, 1 << int(rate * _UNSENT_S).bit_length()))
            if unsent != self._unsent:
                self._net.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, unsent)
                self._unsent = unsent

    def _deliver(self) -> None:
        if not self.pump.established:
            return
        if not self._told:
            self._told = True
            self.on_established()
        try:
            while True:
                into = self.split.wanted() if self.split is not None else None
                if into is not None and self.split is not None:
                    if not (n := self.pump.read_into(into)):
                        return
                    self.split.filled(n)
                    continue
                plain = self.pump.read()
                if not plain:
                    return
                data = self.inbound(plain)
                if len(data):
                    self._give_app(data)
        except ssl.SSLZeroReturnError:
            self._to_app()
            raise WireEnd("net", "the other end closed the link") from None

    def _give_app(self, data: Bytes) -> None:
        sent = 0
        if self._app is not None and not self.to_app.size:
            try:
                sent = self._app.send(data)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as error:
                raise WireEnd("app", f"the local side broke ({error.strerror})") from None
        if sent < len(data):
            self.to_app.append(bytes(data[sent:]))

    def _to_app(self) -> None:
        if self._app is None:
            return
        try:
            self.to_app.send(self._app)
        except OSError as error:
            raise WireEnd("app", f"the local side broke ({error.strerror})") from None

    def _from_app(self) -> None:
        assert self._app is not None
        if self.lane is not None and self.lane.within:
            return  # an event of the same round as the network's, and a message of ours is half out
        try:
            n = self._app.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            raise WireEnd("app", f"the local side broke ({error.strerror})") from None
        if n == 0:
            raise WireEnd("app", "the local side closed")
        self.pump.write(self.outbound(self._buffer[:n]))
        self._flush()

    def _from_lane(self) -> None:
        """Up to the end of one message with a raw frame, as far as the network takes it: then others have a turn."""
        lane = self.lane
        if lane is None or self._closing:
            return
        while lane.ready and not self.to_net.size:
            was = lane.within
            try:
                piece = lane.next()
            except OSError as error:
                raise WireEnd("app", f"a blob could not be read ({error.strerror})") from None
            self.pump.write(piece)
            self._flush(lane.within)
            if was and not lane.within:
                return

    def attend(self) -> None:
        """Tell the selector what can be waited for now; this is where backpressure happens."""
        r, w = selectors.EVENT_READ, selectors.EVENT_WRITE
        with self._lock:
            lane = self.lane
            due = lane is not None and lane.ready and not self._closing
            held = self.to_app.size >= HIGH_WATER or (self.inbox is not None and self.inbox.full)
            self._want(self._net, (0 if held else r) | (w if self.to_net.size or due else 0))
            if self._app is not None:
                within = lane is not None and lane.within
                readable = self.pump.established and self.to_net.size < HIGH_WATER and not within
                self._want(self._app, (r if readable else 0) | (w if self.to_app.size else 0))

    def _want(self, sock: socket.socket, mask: int) -> None:
        old = self._masks.get(sock, 0)
        if mask == old:
            return
        if not old:
            self._selector.register(sock, mask, self.owner)
        elif not mask:
            self._selector.unregister(sock)
        else:
            self._selector.modify(sock, mask, self.owner)
        self._masks[sock] = mask

    def drop_app(self) -> None:
        """Close the local side only (a refusal is still on its way out)."""
        with self._lock:
            if self._app is not None:
                self._want(self._app, 0)
                self._app.close()
                self._app = None
            self.lane = self.inbox = self.split = None
            self.to_app.clear()
            self.inbound = lambda data: b""

    def half_close(self) -> None:
        """Close our direction: close_notify, flush, FIN. The owner reads on, so that no reset eats our last words."""
        with self._lock:
            self.pump.finish()
            self._closing = True
            self._flush()

    def discard(self) -> None:
        """Read and throw away, after `half_close`; WireEnd when the other end has closed too."""
        try:
            if n := self._net.recv_into(self._buffer):  # once per event: a flood must not hold the thread
                self.bytes_in += n
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        raise WireEnd("net", "the other end closed the connection")

    def close(self) -> None:
        """Close both sockets."""
        with self._lock:
            self.drop_app()
            self._closing = True
            self._want(self._net, 0)
            self._net.close()
