"""TLS as bytes in, bytes out (`TlsPump`, no I/O), and the two sockets around it (`Wire`), with backpressure.

Shared by both ends: the tunnel drives one Wire with a selector, the terminator many. Not for what the bytes mean:
the owner puts filters (gate, refusal scanner) in `inbound` and `outbound`.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import cast

from zk0d.link.lane import Bytes, Inbox, Lane

READ = 256 * 1024
HIGH_WATER = 1 << 20
"""Bytes waiting on one side above which the other side is not read."""


class WireEnd(Exception):
    """The wire has ended, cleanly or not; `side` is `net` or `app`."""

    def __init__(self, side: str, reason: str) -> None:
        super().__init__(reason)
        self.side = side
        self.reason = reason


class OutBuffer:
    """Bytes that a socket would not take yet."""

    def __init__(self) -> None:
        self._parts: deque[memoryview] = deque()
        self.size = 0

    def append(self, data: Bytes) -> None:
        """Keep a copy-free view of `data`: pass bytes, or a view nobody will overwrite."""
        if len(data):
            self._parts.append(memoryview(data))
            self.size += len(data)

    def send(self, sock: socket.socket) -> int:
        """Give the socket what it takes; the number of bytes. OSError if the socket is broken."""
        sent = 0
        while self._parts:
            try:
                n = sock.send(self._parts[0])
            except (BlockingIOError, InterruptedError):
                break
            sent += n
            self.size -= n
            if n < len(self._parts[0]):
                self._parts[0] = self._parts[0][n:]
                break
            self._parts.popleft()
        return sent

    def clear(self) -> None:
        self._parts.clear()
        self.size = 0


class Scratch:
    """Buffers that one thread uses for all its wires, so that a thousand idle links cost nothing."""

    def __init__(self) -> None:
        self.raw = memoryview(bytearray(READ))
        self.plain = memoryview(bytearray(READ + 65536))


class TlsPump:
    """One TLS connection without a socket. `ssl.SSLError` comes out of every method when TLS fails."""

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        scratch: Scratch,
        server_hostname: str | None = None,
        tap: Callable[[bytes], None] | None = None,
    ) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_side=server_side, server_hostname=server_hostname)
        self.scratch = scratch
        self._plain = scratch.plain
        self._tap = tap
        self.established = False

    def feed(self, ciphertext: Bytes) -> None:
        """Take what the network delivered. Advances the handshake."""
        self._in.write(ciphertext)
        if not self.established:
            self.shake()

    def shake(self) -> None:
        """Advance the handshake as far as it goes."""
        try:
            self.tls.do_handshake()
            self.established = True
        except ssl.SSLWantReadError:
            pass

    def read(self) -> memoryview:
        """Plaintext that can be had now; the view is good until the next call. SSLZeroReturnError at a clean end."""
        at = 0
        try:
            while at < len(self._plain) - 16384:
                # With a buffer, `read` gives a count; typeshed says bytes.
                n = cast(int, self.tls.read(len(self._plain) - at, self._plain[at:]))
                if n == 0:  # close_notify; said again at the next call, after what came before it
                    if at == 0:
                        raise ssl.SSLZeroReturnError(ssl.SSL_ERROR_ZERO_RETURN, "closed")
                    break
                at += n
        except ssl.SSLWantReadError:
            pass
        return self._plain[:at]

    def write(self, plaintext: Bytes) -> None:
        """Encrypt; see `take`."""
        if not len(plaintext):
            return
        if self._tap is not None:
            self._tap(bytes(plaintext))
        self.tls.write(plaintext)

    def take(self) -> bytes:
        """Ciphertext for the network."""
        return self._out.read()

    @property
    def buffered(self) -> int:
        """Ciphertext fed and not yet decrypted (a `read` may stop early)."""
        return self._in.pending

    def finish(self) -> None:
        """Say that no more plaintext will come from this end."""
        try:
            self.tls.unwrap()
        except (ssl.SSLError, ValueError):
            pass  # the peer's own close_notify has not come, or TLS is broken: ours is in the buffer if it can be


def _pass(data: Bytes) -> Bytes:
    return data


class Wire:
    """A TCP socket with TLS, and behind it a plain stream socket (`app`) once there is one.

    The owner registers nothing: it calls `ready` for every event and `attend` afterwards. WireEnd and ssl.SSLError come
    out of `ready`; the owner then closes.
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
        """Bulk messages of ours that go out between those of `app`; the owner sets it with `outbound`."""
        self.inbox: Inbox | None = None
        self.inbound: Callable[[Bytes], Bytes] = _pass
        self.outbound: Callable[[Bytes], Bytes] = _pass
        self.on_established: Callable[[], None] = lambda: None
        self.bytes_in = self.bytes_out = 0
        self.moved = time.monotonic()
        """When the network last delivered, or took what was waiting."""
        self._buffer = pump.scratch.raw
        self._closing = False
        self._masks: dict[socket.socket, int] = {}
        self._told = False

    def attach(self, app: socket.socket) -> None:
        """Begin to pump to and from `app` (non-blocking stream socket)."""
        self._app = app

    @property
    def attached(self) -> bool:
        return self._app is not None

    def say(self, plaintext: bytes) -> None:
        """Put bytes of our own into the stream to the network."""
        self.pump.write(plaintext)
        self.flush()

    def flush(self) -> None:
        """Move ciphertext to the socket as far as it takes it. WireEnd if the network is gone."""
        self.to_net.append(self.pump.take())
        if self.to_net.size:
            try:
                n = self.to_net.send(self._net)
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
        if sock is self._net:
            if mask & selectors.EVENT_READ:
                self._from_net()
            self.flush()
            self._from_lane()
        elif sock is self._app:
            if mask & selectors.EVENT_WRITE:
                self._to_app()
            if mask & selectors.EVENT_READ:
                self._from_app()

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
        self.pump.feed(self._buffer[:n])
        self._deliver()

    def _deliver(self) -> None:
        if not self.pump.established:
            return
        if not self._told:
            self._told = True
            self.on_established()
        while True:
            try:
                plain = self.pump.read()
            except ssl.SSLZeroReturnError:
                self._to_app()
                raise WireEnd("net", "the other end closed the link") from None
            if not plain:
                return
            data = self.inbound(plain)
            if len(data):
                self._give_app(data)

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
        self.flush()

    def _from_lane(self) -> None:
        """One bulk message at most, as far as the network takes it: then whatever else waits has its turn."""
        if self.lane is None or self._closing:
            return
        while self.lane.ready and not self.to_net.size:
            self.pump.write(self.lane.next())
            self.flush()
            if not self.lane.within:
                return

    def attend(self) -> None:
        """Tell the selector what can be waited for now; this is where backpressure happens."""
        r, w = selectors.EVENT_READ, selectors.EVENT_WRITE
        bulk = self.lane is not None and self.lane.ready and not self._closing
        held = self.to_app.size >= HIGH_WATER or (self.inbox is not None and self.inbox.full)
        self._want(self._net, (0 if held else r) | (w if self.to_net.size or bulk else 0))
        if self._app is not None:
            within = self.lane is not None and self.lane.within
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
        if self._app is not None:
            self._want(self._app, 0)
            self._app.close()
            self._app = None
        self.lane = self.inbox = None
        self.to_app.clear()
        self.inbound = lambda data: b""

    def half_close(self) -> None:
        """Close our direction: close_notify, flush, FIN. The owner reads on, so that no reset eats our last words."""
        self.pump.finish()
        self._closing = True
        self.flush()

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
        self.drop_app()
        self._want(self._net, 0)
        self._net.close()
