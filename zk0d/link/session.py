"""One connection at the hub's port: TLS handshake, then enrolment or gate and link, then a decent end.

Runs in the terminator's thread and touches only its own sockets. Not for limits across connections (terminator.py).
"""

from __future__ import annotations

import math
import socket
import ssl
import struct
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Protocol

import structlog

from zk0d.errors import ProtocolError
from zk0d.link.buffers import Bytes
from zk0d.link.gate import Gate, GateError, ReverseHold, refusal_record
from zk0d.link.identity import check_node_id, common_name, fingerprint
from zk0d.link.keyfiles import load_certificate
from zk0d.link.lane import Inbox, Lane, Splitter
from zk0d.link.rates import LOWEST
from zk0d.link.state import LinkLimits, NodeLinkInfo
from zk0d.link.tls import ALPN_ENROLL, LINK_PROTOCOLS, explain_peer_failure
from zk0d.link.wire import Wire, WireEnd

log = structlog.get_logger("zk0d.link.session")

MAX_ENROLL = 64 * 1024
ENROLL_S = 30.0
DRAIN_S = 2.0
DRAIN_BYTES = 4 << 20
"""What is read and thrown away after a refusal, so that the peer sees it; a flood is cut off."""
FRAME_HEAD = struct.Struct("!I")


class Stage(Enum):
    HANDSHAKE = "handshake"
    ENROLL = "enroll"
    ANSWERING = "answering"
    GATE = "gate"
    OPEN = "open"
    DRAIN = "drain"
    CLOSED = "closed"


class Desk(Protocol):
    """What a session needs of its terminator."""

    limits: LinkLimits
    router_path: Path
    enroll_hello: bytes
    """The first frame on every enrolment connection: the authority's certificate."""
    allowed: Callable[[str, str], bool]
    crowded: Callable[[], bool]
    """Whether others wait for the memory that a link takes."""

    def opened(self, session: Session) -> None:
        """The gate opened: an earlier link of the same node ends now."""

    def enroll_request(self, session: Session, request: bytes) -> None: ...

    def message(self, session: Session, frames: list[Bytes], size: int) -> None:
        """A message came; `session.wire.inbox.handled(size)` once it is dealt with."""

    def nudge(self, session: Session) -> None:
        """Call `session.nudged` in the terminator's thread, from any thread."""

    def ended(self, session: Session, reason: str) -> None:
        """Called once when an open link ends."""


class Refused(Exception):
    """This end will not have this peer; goes to the peer as a refusal record."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Session:
    """Owner of one accepted socket. Nothing raises out of `event` and `tick`: every trouble is this session's alone."""

    def __init__(self, desk: Desk, wire: Wire, address: str) -> None:
        self._desk = desk
        self.wire = wire
        self.address = address
        self.stage = Stage.HANDSHAKE
        self.deadline = time.monotonic() + desk.limits.handshake_s
        self.node_id = ""
        self.fingerprint = ""
        self.since = time.time()
        self._gate: Gate | None = None
        self._hold = ReverseHold()
        self._request = bytearray()
        self._drained_from = 0
        wire.on_established = self._established

    def event(self, sock: socket.socket | None, mask: int) -> None:
        """Handle one selector event; without a socket, what the lane has."""
        try:
            if self.stage is Stage.DRAIN:
                self.wire.flush()
                self.wire.discard()
                if self.wire.bytes_in - self._drained_from > DRAIN_BYTES:
                    self.close("it goes on sending")
            elif sock is None:
                self.wire.kick()
            else:
                self.wire.ready(sock, mask)
            if self.stage is not Stage.CLOSED:
                self.wire.attend()
        except Refused as refusal:
            self._refuse(refusal.code, refusal.reason)
        except GateError as error:
            self._refuse(error.reason, error.message)
        except ssl.SSLError as error:
            code, reason = explain_peer_failure(error)
            self._log_refusal(code, reason)
            self._drain(reason)
        except WireEnd as end:
            if self.stage is Stage.HANDSHAKE:
                log.info("link.gone", address=self.address, reason="it left before TLS stood")
            self.close(end.reason)
        except Exception as error:  # this session's end, and nobody else's
            log.exception("link.internal", address=self.address, node=self.node_id)
            self.close(f"internal error: {error}")

    def tick(self, now: float) -> None:
        """Enforce the time limits."""
        if self.stage is Stage.DRAIN and now > self.deadline:
            self.close("done")
        elif self.stage in (Stage.HANDSHAKE, Stage.GATE, Stage.ENROLL, Stage.ANSWERING) and now > self.deadline:
            self._refuse("idle", f"{self.stage.value} not finished in time")
        elif self.stage is Stage.OPEN:
            self.wire.calm(now)
            inbox, limits = self.wire.inbox, self._desk.limits
            patience = (limits.reask_s, LOWEST) if self._desk.crowded() else (limits.stall_s, math.inf)
            if now - self.wire.moved > limits.silence_s:
                self.close(f"silent for {limits.silence_s:.0f} s")
            elif self._split.overdue(now, *patience) and inbox is not None and not inbox.full:  # then it is we
                self.close("a message of it takes too long")

    def _established(self) -> None:
        protocol = self.wire.pump.tls.selected_alpn_protocol()
        if protocol == ALPN_ENROLL:
            self.stage, self.deadline = Stage.ENROLL, time.monotonic() + self._desk.limits.handshake_s
            self.wire.inbound = self._enroll_in
            self.wire.say(FRAME_HEAD.pack(len(self._desk.enroll_hello)) + self._desk.enroll_hello)
        elif protocol in LINK_PROTOCOLS:
            self._admit()
        else:
            raise Refused(
                "no_alpn",
                f"no protocol in common; this hub speaks {', '.join(LINK_PROTOCOLS)} for links and {ALPN_ENROLL}",
            )

    def _admit(self) -> None:
        """TLS has checked the chain and the dates; now whose certificate it is, and whether it is still welcome."""
        der = self.wire.pump.tls.getpeercert(binary_form=True)
        if not der:
            raise Refused("no_certificate", "a link needs the certificate that enrolment gives")
        self.fingerprint = fingerprint(der)
        try:
            self.node_id = check_node_id(common_name(load_certificate(der)))
        except (ProtocolError, ValueError) as error:
            raise Refused("bad_certificate", str(error)) from None
        if not self._desk.allowed(self.node_id, self.fingerprint):
            raise Refused(
                "not_allowed", f"node {self.node_id} is not allowed to link (revoked, or its certificate was replaced)"
            )
        app = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            app.setblocking(False)  # a full backlog is this link's trouble, not the thread's
            app.connect(str(self._desk.router_path))
        except OSError:
            app.close()
            raise
        inbox = Inbox(lambda: self._desk.nudge(self))
        inbox.asked = 0
        self._split = split = Splitter(self._came, self.wire.pump.scratch.buffers, begins=inbox.begins)
        self._gate = Gate(self.node_id, beyond=split.feed)
        self.stage, self.deadline = Stage.GATE, time.monotonic() + self._desk.limits.handshake_s
        lane = Lane(self.wire.pump.scratch.slice, lambda: split.spoken)
        self.wire.lane, self.wire.inbox = lane, inbox
        self.wire.inbound = self._gate_in
        self.wire.outbound = lambda data: lane.pass_through(self._hold.feed(data))
        self.wire.attach(app)

    def _gate_in(self, data: Bytes) -> Bytes:
        assert self._gate is not None
        out = self._gate.feed(data)
        if self._gate.open and self.stage is Stage.GATE:
            if not self._desk.allowed(self.node_id, self.fingerprint):  # revoked while it was shaking hands
                raise Refused("not_allowed", f"node {self.node_id} is not allowed to link")
            self.stage, self.since = Stage.OPEN, time.time()
            self._desk.opened(self)
            self.wire.inbound, self.wire.split = self._gate.feed, self._split
            assert self.wire.lane is not None
            self.wire.say(bytes(self.wire.lane.pass_through(self._hold.release())))
            log.info("link.up", node=self.node_id, address=self.address)
        return out

    def _came(self, frames: list[Bytes]) -> None:
        if self.wire.inbox is not None:
            size = sum(map(len, frames))
            self.wire.inbox.delivered(size)
            self._desk.message(self, frames, size)

    def nudged(self) -> None:
        """The event loop has messages for this link, or room for more of them."""
        if self.stage is Stage.OPEN:
            self.event(None, 0)

    def _enroll_in(self, data: Bytes) -> Bytes:
        if self.stage is Stage.ENROLL:
            self._request += data
            if len(self._request) >= FRAME_HEAD.size:
                (size,) = FRAME_HEAD.unpack_from(self._request)
                if size > MAX_ENROLL:
                    raise Refused("malformed", f"an enrolment request of {size} bytes, at most {MAX_ENROLL}")
                if len(self._request) >= FRAME_HEAD.size + size:
                    self.stage, self.deadline = Stage.ANSWERING, time.monotonic() + ENROLL_S
                    self._desk.enroll_request(self, bytes(self._request[FRAME_HEAD.size : FRAME_HEAD.size + size]))
        return b""

    def answer(self, reply: bytes) -> None:
        """The event loop's answer to an enrolment request."""
        if self.stage is Stage.ANSWERING:
            try:
                self.wire.say(FRAME_HEAD.pack(len(reply)) + reply)
            except (WireEnd, ssl.SSLError):
                self.close("gone")
                return
            self._drain("answered")

    def _log_refusal(self, code: str, reason: str) -> None:
        log.warning("link.refused", code=code, reason=reason, address=self.address, node=self.node_id or None)

    def _refuse(self, code: str, reason: str) -> None:
        self._log_refusal(code, reason)
        said = self.wire.pump.established and self.wire.pump.tls.selected_alpn_protocol() != ALPN_ENROLL
        if said and self._hold.can_refuse:
            try:
                self.wire.say(refusal_record(code, reason))
            except (WireEnd, ssl.SSLError):
                pass
        self._drain(reason)

    def _drain(self, reason: str) -> None:
        was_open = self.stage is Stage.OPEN
        self.stage, self.deadline = Stage.DRAIN, time.monotonic() + DRAIN_S
        self._drained_from = self.wire.bytes_in
        self.wire.drop_app()
        if was_open:
            self._desk.ended(self, reason)
        try:
            self.wire.half_close()
            self.wire.attend()
        except WireEnd:
            self.close(reason)

    def drop(self, reason: str) -> None:
        """End an open link from our side."""
        log.info("link.dropped", node=self.node_id, address=self.address, reason=reason)
        self._drain(reason)

    def close(self, reason: str) -> None:
        """Close the sockets now."""
        if self.stage is Stage.CLOSED:
            return
        was_open = self.stage is Stage.OPEN
        self.stage = Stage.CLOSED
        self.wire.close()
        if was_open:
            log.info("link.down", node=self.node_id, address=self.address, reason=reason)
            self._desk.ended(self, reason)

    def info(self) -> NodeLinkInfo:
        return NodeLinkInfo(self.node_id, self.since, self.address, self.wire.bytes_out, self.wire.bytes_in)
