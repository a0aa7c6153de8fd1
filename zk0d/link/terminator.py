"""The hub's end of TLS: one thread, one port, all connections, and the limits across them.

What one connection does is in session.py. Not for messages: past the gate bytes move; enrolment requests go to the
event loop as one bytes object each.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path

import structlog

from zk0d.errors import ConfigError
from zk0d.link.buffers import Bytes, Scratch
from zk0d.link.lane import Inbox
from zk0d.link.messages import Frame
from zk0d.link.place import place
from zk0d.link.pump import TlsPump
from zk0d.link.session import Session, Stage
from zk0d.link.state import LinkLimits, NodeLinkInfo
from zk0d.link.wire import Wire

log = structlog.get_logger("zk0d.link.terminator")

_TICK_S = 0.5
_TRIM_S = 10.0


class Terminator:
    """Callbacks run in this object's thread and must be quick."""

    def __init__(
        self,
        *,
        context: ssl.SSLContext,
        enroll_hello: bytes,
        allowed: Callable[[str, str], bool],
        on_up: Callable[[str, Inbox], None],
        on_down: Callable[[str, str], None],
        on_enroll: Callable[[int, bytes, str], None],
        on_message: Callable[[str, list[Bytes], int, Inbox], None],
        on_room: Callable[[str], None],
        limits: LinkLimits,
        crowded: Callable[[], bool] = lambda: False,
    ) -> None:
        """`crowded()`: do some wait for their turn to send?
        `on_message(node, frames, size, inbox)`: a message came; `inbox.handled(size)` when it is dealt with.
        `on_room(node)`: its lane has room again.
        `on_up(node, inbox)`, `on_down(node, reason)`, `on_enroll(token, request, address)` (then call `answer`)."""
        self._context = context
        self.router_path = Path()  # set before start
        self.enroll_hello = enroll_hello
        self.allowed, self.limits, self.crowded = allowed, limits, crowded
        self._on_up, self._on_down, self._on_enroll = on_up, on_down, on_enroll
        self._on_message, self._on_room = on_message, on_room
        self._selector = selectors.DefaultSelector()
        self._scratch = Scratch()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._orders: deque[Callable[[], None]] = deque()
        self._asleep = True
        self._sessions: set[Session] = set()
        self._open: dict[str, Session] = {}
        self._tokens: dict[int, Session] = {}
        self._next_token = 0
        self._listener: socket.socket | None = None
        self._accepting_again = 0.0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="zk0-terminator", daemon=True)
        self._lock = threading.Lock()  # guards _open against readers in other threads
        self._told_full = self._next_trim = 0.0

    def start(self, host: str, port: int) -> int:
        """Listen; the real port. ConfigError if the address cannot be had."""
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, address = infos[0]
            self._listener = socket.create_server((str(address[0]), int(address[1])), family=family, backlog=128)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port}: {error.strerror or error}", "is another hub running there?"
            ) from None
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, "accept")
        self._selector.register(self._wake, selectors.EVENT_READ, "wake")
        self._thread.start()
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        """End every connection and the thread. Safe to call twice."""
        if self._wake < 0:
            return
        self._closing = True
        os.eventfd_write(self._wake, 1)
        if self._thread.ident is not None:
            self._thread.join()
        for session in list(self._sessions):
            session.close("the hub is closing")
        if self._listener is not None:
            self._listener.close()
        self._selector.close()
        os.close(self._wake)
        self._wake = -1

    def use(self, context: ssl.SSLContext) -> None:
        """TLS settings for the connections to come."""
        self._context = context

    def disconnect(self, node_id: str, reason: str) -> None:
        """Close the node's live link, from any thread."""

        def order() -> None:
            session = self._open.get(node_id)
            if session is not None:
                session.drop(reason)

        self._order(order)

    def offer(self, node_id: str, frames: list[Frame]) -> bool:
        """Put a message into the node's lane, from the event loop; False: no room now, or no open link."""
        with self._lock:
            session = self._open.get(node_id)
        lane = session.wire.lane if session is not None else None
        if session is None or lane is None or not lane.offer(frames):
            return False
        if len(frames) > 1 or not session.wire.speak():
            self.nudge(session)
        return True

    def answer(self, token: int, reply: bytes) -> None:
        """Answer an enrolment request, from any thread; nothing happens if the peer has gone."""

        def order() -> None:
            session = self._tokens.pop(token, None)
            if session is not None:
                session.answer(reply)

        self._order(order)

    def links(self) -> dict[str, NodeLinkInfo]:
        """The open links, from any thread."""
        with self._lock:
            return {node: session.info() for node, session in self._open.items()}

    def _order(self, order: Callable[[], None]) -> None:
        self._orders.append(order)
        if self._asleep and self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    # What sessions ask of us (session.Desk)

    def opened(self, session: Session) -> None:
        earlier = self._open.get(session.node_id)
        if earlier is not None:
            earlier.drop("the same node has linked anew")
        with self._lock:
            self._open[session.node_id] = session
        assert session.wire.lane is not None and session.wire.inbox is not None
        session.wire.lane.on_room = lambda: self._on_room(session.node_id)
        self._on_up(session.node_id, session.wire.inbox)

    def message(self, session: Session, frames: list[Bytes], size: int) -> None:
        assert session.wire.inbox is not None
        self._on_message(session.node_id, frames, size, session.wire.inbox)

    def nudge(self, session: Session) -> None:
        self._order(session.nudged)

    def ended(self, session: Session, reason: str) -> None:
        if self._open.get(session.node_id) is session:
            with self._lock:
                del self._open[session.node_id]
            self._on_down(session.node_id, reason)

    def enroll_request(self, session: Session, request: bytes) -> None:
        self._next_token += 1
        self._tokens[self._next_token] = session
        self._on_enroll(self._next_token, request, session.address)

    # The thread

    def _run(self) -> None:
        next_tick = 0.0
        while not self._closing:
            self._asleep = True  # before the look at the orders: whoever gives one later wakes us
            events = self._selector.select(0 if self._orders else _TICK_S)
            self._asleep = False
            for key, mask in events:
                if isinstance(key.data, Session):
                    if isinstance(key.fileobj, socket.socket) and key.data.stage is not Stage.CLOSED:
                        key.data.event(key.fileobj, mask)
                elif key.data == "accept":
                    self._accept()
                else:
                    self._woken()
            self._obey()
            now = time.monotonic()
            if now >= next_tick:
                next_tick = now + _TICK_S
                self._tick(now)

    def _woken(self) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass

    def _obey(self) -> None:
        for _ in range(len(self._orders)):
            try:
                self._orders.popleft()()
            except Exception:
                log.exception("terminator.order_failed")

    def _tick(self, now: float) -> None:
        if now >= self._next_trim:
            self._next_trim = now + _TRIM_S
            self._scratch.buffers.trim()
        for session in list(self._sessions):
            try:
                session.tick(now)
            except Exception:
                log.exception("terminator.tick_failed", address=session.address)
                session.close("a defect of the hub")
        self._sessions = {s for s in self._sessions if s.stage is not Stage.CLOSED}
        self._scratch.share(len(self._sessions))
        self._tokens = {t: s for t, s in self._tokens.items() if s.stage is Stage.ANSWERING}
        if self._accepting_again and now >= self._accepting_again and self._listener is not None:
            self._accepting_again = 0.0
            self._selector.register(self._listener, selectors.EVENT_READ, "accept")

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(16):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                log.error(
                    "terminator.accept_failed", reason=error.strerror, errno=errno.errorcode.get(error.errno or 0)
                )
                self._selector.unregister(self._listener)
                self._accepting_again = time.monotonic() + _TICK_S
                return
            try:
                self._welcome(sock, f"{address[0]}:{address[1]}")
            except Exception:  # the peer is gone already, or memory is short: that connection's end, not the thread's
                log.exception("terminator.welcome_failed", address=address[0])
                sock.close()

    def _welcome(self, sock: socket.socket, address: str) -> None:
        live = [s for s in self._sessions if s.stage is not Stage.CLOSED]
        waiting = [s for s in live if s.stage is not Stage.OPEN]
        unopened = len(waiting)
        full = unopened >= self.limits.max_handshakes and not _make_room(waiting, address)
        if full or len(live) - unopened >= self.limits.max_links:
            sock.close()
            if time.monotonic() - self._told_full > 10:
                self._told_full = time.monotonic()
                log.warning("terminator.full", address=address, open=len(live) - unopened, in_handshake=unopened)
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self.limits.silence_s * 1000))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 256 * 1024)
        wire = Wire(self._selector, sock, TlsPump(self._context, server_side=True, scratch=self._scratch))
        session = Session(self, wire, address)
        wire.owner = session
        self._sessions.add(session)
        wire.attend()


def _make_room(waiting: list[Session], address: str) -> bool:
    """End the oldest unfinished connection of the place that has most of them, unless the newcomer is of that place.

    So a crowd of silent connections from one place shuts out that place, and nobody else.
    """
    places = Counter(place(s.address) for s in waiting)
    crowd, most = places.most_common(1)[0]
    if most <= places[place(address)]:
        return False
    oldest = min((s for s in waiting if place(s.address) == crowd), key=lambda s: s.deadline)
    oldest.close("others need its place")
    return True
