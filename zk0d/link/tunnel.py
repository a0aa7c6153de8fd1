"""The node's tunnel: a thread that keeps one TLS link to the hub and puts the DEALER's ZMTP through it.

The DEALER connects to a unix socket here (folder 0700) and knows no TLS; this thread dials, backs off and reports.
Not for messages: it sees ZMTP as bytes.
"""

from __future__ import annotations

import os
import random
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog

from zk0d.errors import ConfigError
from zk0d.link.buffers import Bytes, Scratch
from zk0d.link.gate import GREETING, GateError, RefusalScanner
from zk0d.link.lane import Inbox, Lane, Splitter
from zk0d.link.messages import Frame
from zk0d.link.pump import TlsPump
from zk0d.link.rundir import RunDir
from zk0d.link.state import LinkLimits
from zk0d.link.tls import HUB_NAME, LINK_PROTOCOLS, explain_hub_failure
from zk0d.link.wire import Wire, WireEnd

log = structlog.get_logger("zk0d.link.tunnel")

_SOCKET = "tunnel.sock"


@dataclass(frozen=True)
class TunnelEvent:
    """`up`: TLS stands and the DEALER is through. `down`: it was up and no longer is, or an attempt failed.

    `refused` (with `down`): the other end, or our own check of it, said no: it is not a matter of the network.
    """

    kind: Literal["dialling", "up", "down"]
    code: str = ""
    reason: str = ""
    refused: bool = False
    next_attempt: float | None = None
    """Seconds since the epoch."""


class _Failed(Exception):
    def __init__(self, code: str, reason: str, refused: bool = False) -> None:
        super().__init__(reason)
        self.code, self.reason, self.refused = code, reason, refused


class Tunnel:
    """One thread, one link at a time. `on_event` is called in that thread."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        context: Callable[[], ssl.SSLContext],
        run_dir: Path,
        on_event: Callable[[TunnelEvent], None],
        limits: LinkLimits,
        on_message: Callable[[list[Bytes], int, Inbox], None],
        on_room: Callable[[], None],
        tap: Callable[[bytes], None] | None = None,
    ) -> None:
        """`on_message(frames, size, inbox)`, in this thread: call `inbox.handled(size)` when it is dealt with.
        `on_room()`: the lane has room again.
        `context` is called for every attempt, so that a renewed certificate is picked up."""
        self._host, self._port, self._context = host, port, context
        self._run_dir = run_dir
        self._folder: RunDir | None = None
        self._on_event, self._limits, self._tap = on_event, limits, tap
        self._on_message, self._on_room = on_message, on_room
        self._asleep = True
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closing = self._reset = self._proven = self._retry = False
        self._reset_reason = ""
        self._scratch = Scratch()
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="zk0-tunnel", daemon=True)
        self._wire: Wire | None = None
        self._past_up = self._past_down = 0
        self._failures = 0

    def start(self) -> Path:
        """Listen, begin to dial; where the DEALER is to connect. ConfigError if the run directory cannot be used."""
        try:
            self._folder = RunDir(self._run_dir)
            self._folder.clear(_SOCKET)
            path = self._folder.socket(_SOCKET)
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(str(path))
        except OSError as error:
            raise ConfigError(
                f"{self._run_dir} cannot be used: {error.strerror}", "it must be a folder of ours"
            ) from None
        self._listener.listen(4)
        self._listener.setblocking(False)
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        self._thread.start()
        return path

    def close(self) -> None:
        """End the thread; at most a second or so. Safe to call twice."""
        if self._wake < 0:
            return
        self._closing = True
        self._poke()
        if self._thread.is_alive():
            self._thread.join()
        self._selector.close()
        if self._listener is not None:
            self._listener.close()
        if self._folder is not None:
            self._folder.clear(_SOCKET)
            self._folder.close()
        os.close(self._wake)
        self._wake = -1

    def reset(self, reason: str) -> None:
        """Drop the link that is up now and dial again."""
        self._reset, self._reset_reason = True, reason
        self._poke()

    def retry(self) -> None:
        """Dial now, whatever the backoff."""
        self._retry = True
        self._poke()

    def offer(self, frames: list[Frame]) -> bool:
        """Put a message into the lane, from the event loop; False: no room now, or no link."""
        wire = self._wire
        lane = wire.lane if wire is not None else None
        if wire is None or lane is None or not lane.offer(frames):
            return False
        if (len(frames) > 1 or not wire.speak()) and self._asleep:
            self._poke()
        return True

    def proven(self) -> None:
        """The hub has answered over this link: the next failure starts the backoff afresh."""
        self._proven = True

    @property
    def counters(self) -> tuple[int, int]:
        """(bytes up, bytes down) of ciphertext since start."""
        wire = self._wire
        return self._past_up + (wire.bytes_out if wire else 0), self._past_down + (wire.bytes_in if wire else 0)

    def _poke(self) -> None:
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        while not self._closing:
            self._reset = self._proven = self._retry = False
            try:
                self._on_event(TunnelEvent("dialling"))
                try:
                    self._link()
                except _Failed as failure:
                    self._back_off(failure)
            except Exception as error:  # a defect here must not end the link for good
                log.exception("link.internal")
                self._back_off(_Failed("internal", f"internal error: {error}"))

    def _back_off(self, failure: _Failed) -> None:
        if self._proven:
            self._failures = 0
        delay = _pause(self._limits, self._failures, failure.refused)
        self._failures += 1
        level = log.warning if failure.refused else log.info
        level("link.refused" if failure.refused else "link.down", code=failure.code, reason=failure.reason,
              hub=f"{self._host}:{self._port}", retry_s=round(delay, 2))  # fmt: skip
        self._on_event(TunnelEvent("down", failure.code, failure.reason, failure.refused, time.time() + delay))
        end = time.monotonic() + delay
        while not self._closing and not self._retry and (left := end - time.monotonic()) > 0:
            self._wait(left)

    def _wait(self, timeout: float) -> list[tuple[selectors.SelectorKey, int]]:
        events = self._selector.select(timeout)
        for key, _ in events:
            if key.data is None:
                try:
                    os.eventfd_read(self._wake)
                except BlockingIOError:
                    pass
        return events

    def _link(self) -> None:
        """One link from dialling to its end; returns only when closing, else raises _Failed."""
        where = f"{self._host}:{self._port}"
        try:
            context = self._context()
        except ConfigError as error:
            raise _Failed("config", str(error), refused=True) from None
        net = self._dial(where)
        pump = TlsPump(context, server_side=False, server_hostname=HUB_NAME, tap=self._tap, scratch=self._scratch)
        wire = Wire(self._selector, net, pump)
        self._wire = wire
        scanner = RefusalScanner()
        inbox = wire.inbox = Inbox(self._poke)

        def deliver(frames: list[Bytes]) -> None:
            size = sum(map(len, frames))
            inbox.delivered(size)
            self._on_message(frames, size, inbox)

        wire.split = split = Splitter(deliver, self._scratch.buffers, skip=GREETING)
        wire.lane = Lane(self._scratch.slice, lambda: split.spoken)
        wire.lane.on_room = self._on_room
        wire.inbound = lambda data: split.feed(scanner.feed(data))
        wire.outbound = wire.lane.pass_through
        wire.on_established = lambda: self._established(wire, where)
        try:
            self._pump(wire, scanner, where)
        except ssl.SSLError as error:
            try:
                wire.half_close()  # our alert tells the other end why
            except WireEnd:
                pass
            code, reason = explain_hub_failure(error, where)
            raise _Failed(code, reason, refused=True) from None
        except GateError as error:
            raise _Failed("not_zk0", f"what answers at {where} is not a hub: {error.message}", refused=True) from None
        except WireEnd as end:
            if scanner.refusal:
                raise _Failed(
                    scanner.refusal[0], f"the hub refused this node: {scanner.refusal[1]}", refused=True
                ) from None
            if end.side == "net" and not wire.pump.established:
                raise _Failed("not_tls", f"{where} closed the connection before TLS stood", refused=False) from None
            raise _Failed("lost", f"the link to {where} was lost: {end.reason}") from None
        finally:
            self._past_up += wire.bytes_out
            self._past_down += wire.bytes_in
            self._wire = None
            wire.close()

    def _pump(self, wire: Wire, scanner: RefusalScanner, where: str) -> None:
        wire.pump.shake()
        wire.flush()
        deadline, trim_at = time.monotonic() + self._limits.handshake_s, 0.0
        while not self._closing:
            wire.kick()
            wire.attend()
            self._asleep = True  # before the look at the lane: whoever offers later wakes us
            events = self._wait(0 if wire.owes else 1.0)
            self._asleep = False
            for key, mask in events:
                if key.data is not None and isinstance(key.fileobj, socket.socket):
                    wire.ready(key.fileobj, mask)
            if scanner.refusal:
                raise WireEnd("net", "refused")
            if self._reset:
                raise _Failed("reset", self._reset_reason)
            now = time.monotonic()
            if now >= trim_at:
                trim_at = now + 10.0
                self._scratch.buffers.trim()
            wire.calm(now)
            if not wire.attached and now > deadline:
                raise _Failed(
                    "timeout", f"{where} did not finish the TLS handshake within {self._limits.handshake_s:.0f} s"
                )
            if now - wire.moved > self._limits.silence_s:
                raise _Failed("silent", f"no byte moved on the link to {where} for {self._limits.silence_s:.0f} s")
        try:
            wire.half_close()
        except WireEnd:
            pass

    def _established(self, wire: Wire, where: str) -> None:
        if wire.pump.tls.selected_alpn_protocol() not in LINK_PROTOCOLS:
            raise _Failed(
                "no_alpn",
                f"the hub at {where} and this node have no protocol version in common (this node speaks "
                f"{', '.join(LINK_PROTOCOLS)}); the older of the two must be updated",
                refused=True,
            )
        wire.attach(self._accept())
        self._on_event(TunnelEvent("up"))

    def _accept(self) -> socket.socket:
        """The DEALER's newest connection; it reconnects by itself within milliseconds of the last one's end."""
        assert self._listener is not None
        end = time.monotonic() + self._limits.handshake_s
        newest: socket.socket | None = None
        while not self._closing:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                if newest is not None:
                    return newest
                if time.monotonic() > end:
                    raise _Failed("internal", "the DEALER did not connect to its tunnel") from None
                time.sleep(0.002)
                continue
            if newest is not None:
                newest.close()
            sock.setblocking(False)
            newest = sock
        if newest is not None:
            newest.close()
        raise WireEnd("app", "closing")

    def _dial(self, where: str) -> socket.socket:
        """A connected, non-blocking TCP socket."""
        end = time.monotonic() + self._limits.connect_s
        trouble = f"no address for {self._host}"
        for family, address in self._resolve(end):
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            error = self._connect(sock, address, end)
            if error == 0:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._limits.silence_s * 1000))
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 256 * 1024)
                return sock
            sock.close()
            trouble = os.strerror(error)
        raise _Failed("unreachable", f"the hub at {where} cannot be reached ({trouble})")

    def _connect(self, sock: socket.socket, address: tuple[str, int], end: float) -> int:
        """0 or an errno."""
        error = sock.connect_ex(address)
        if error not in (115, 11):  # EINPROGRESS, EAGAIN
            return error
        self._selector.register(sock, selectors.EVENT_WRITE, "dial")
        try:
            while not self._closing:
                left = end - time.monotonic()
                if left <= 0:
                    return 110  # ETIMEDOUT
                if any(key.fileobj is sock for key, _ in self._wait(left)):
                    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        finally:
            self._selector.unregister(sock)
        return 125  # ECANCELED

    def _resolve(self, end: float) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
        """Addresses of the hub. The system's resolver cannot be interrupted, so it runs beside us."""
        found: list[tuple[socket.AddressFamily, tuple[str, int]]] = []

        def look(flags: int) -> None:
            infos = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=flags)
            found.extend((family, (str(address[0]), int(address[1]))) for family, _, _, _, address in infos)

        def look_up() -> None:
            try:
                look(0)
            except OSError as error:
                log.info("link.no_address", host=self._host, reason=str(error))

        try:
            look(socket.AI_NUMERICHOST)
        except OSError:
            thread = threading.Thread(target=look_up, name="zk0-resolve", daemon=True)
            thread.start()
            while thread.is_alive() and not self._closing and time.monotonic() < end:
                thread.join(0.05)
        return list(found)


def _pause(limits: LinkLimits, failures: int, refused: bool) -> float:
    """Seconds to wait after `failures` earlier ones in a row (protocol.md §2): doubling to a bound, times 0.5 to 1."""
    low, high = limits.retry_min_s, limits.retry_max_s
    if refused:
        low, high = limits.refused_min_s, limits.refused_max_s
    return min(high, low * 2.0 ** min(failures, 20)) * random.uniform(0.5, 1.0)
