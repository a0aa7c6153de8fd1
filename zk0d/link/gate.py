"""The gate: a TLS link may carry ZMTP only under the identity in its certificate. No I/O, no TLS.

Parses ZMTP 3.x just far enough (greeting and READY: rfc.zeromq.org/spec/23 and /37) and then steps aside.
Also the refusal record, by which a hub says why before it closes, in a place where ZMTP can be told from it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import Enum

from zk0d.errors import ProtocolError
from zk0d.link.messages import MAX_BULK

GREETING = 64
REFUSABLE = (0, 10, 11, GREETING)
"""Offsets in the hub's stream at which a refusal may stand: where libzmq pauses, and ZMTP can't go on with a `Z`."""
MAX_READY = 1024
MAX_FRAMES = 2
"""Frames of one message (docs/protocol.md): the map, and the bulk that may follow it."""
MAX_HELD = 4096
REFUSAL_MAGIC = b"ZKNO"
_REFUSAL_HEAD = struct.Struct("!4sHH")  # magic, bytes of code, bytes of message


Filter = Callable[[bytes | memoryview], bytes | memoryview]


class GateError(ProtocolError):
    """What came is not the ZMTP that this node may speak; `reason` is the refusal code."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Stage(Enum):
    SIGNATURE = 1
    GREETING = 2
    READY = 3
    OPEN = 4


class FrameWatch:
    """Walks ZMTP frame headers without copying; GateError at a frame too many or too large.

    libzmq gathers a message's frames before it hands any on, without limit: a peer that never ends its message would
    fill the hub's memory.
    """

    def __init__(self, max_frame: int) -> None:
        self._max_frame = max_frame
        self._head = bytearray()
        self._left = 0  # bytes of the present frame's body still to come
        self._frames = 0  # frames so far of a message that is not ended

    def feed(self, data: bytes | memoryview) -> bytes | memoryview:
        """`data`, as it came."""
        at, end = 0, len(data)
        while at < end:
            if self._left:
                step = min(self._left, end - at)
                self._left -= step
                at += step
                continue
            wanted = 9 if self._head and self._head[0] & 2 else 2
            step = min(wanted - len(self._head), end - at) if self._head else 1
            self._head += data[at : at + step]
            at += step
            if len(self._head) > 1 and len(self._head) == (9 if self._head[0] & 2 else 2):
                self._frame(self._head[0], int.from_bytes(self._head[1:], "big"))
                self._head.clear()
        return data

    def _frame(self, flags: int, size: int) -> None:
        if flags & ~7:
            raise GateError("bad_zmtp", f"a frame with flags {flags:#x}")
        limit = MAX_READY if flags & 4 else self._max_frame
        if size > limit:
            raise GateError("too_large", f"a frame of {size} bytes, at most {limit}")
        self._left = size
        if not flags & 4:
            self._frames += 1
            if self._frames > MAX_FRAMES:
                raise GateError("bad_zmtp", f"a message of more than {MAX_FRAMES} frames")
            if not flags & 1:
                self._frames = 0


class Gate:
    """Node to hub. Feed what TLS delivers, forward what comes back; raises GateError and is then done.

    The greeting passes (the two ends' libzmq need each other's to go on); everything after it is held until READY names
    `node_id` as its Identity, then all passes untouched while its frames keep to `max_frame` bytes and two a message.
    """

    def __init__(self, node_id: str, max_frame: int = MAX_BULK, beyond: Filter | None = None) -> None:
        """`beyond` gets what comes from READY on and gives what is to be forwarded; as it stands, a FrameWatch."""
        self._node_id = node_id.encode()
        self._beyond = beyond or FrameWatch(max_frame).feed
        self._stage = _Stage.SIGNATURE
        self._held = bytearray()

    @property
    def open(self) -> bool:
        return self._stage is _Stage.OPEN

    def feed(self, data: bytes | memoryview) -> bytes | memoryview:
        """The bytes to forward now."""
        if self._stage is _Stage.OPEN:
            return self._beyond(data)
        self._held += data
        out = bytearray()
        if self._stage is _Stage.SIGNATURE and len(self._held) >= 10:
            if self._held[0] != 0xFF or not self._held[9] & 1:
                raise GateError("bad_zmtp", "the link does not begin with a ZMTP signature")
            out += self._take(10)
            self._stage = _Stage.GREETING
        if self._stage is _Stage.GREETING and len(self._held) >= GREETING - 10:
            rest = self._take(GREETING - 10)
            _check_greeting(rest)
            out += rest
            self._stage = _Stage.READY
        if self._stage is _Stage.READY and (frame := self._ready_frame()) is not None:
            _check_ready(frame, self._node_id)
            self._stage = _Stage.OPEN
            out += self._beyond(self._take(len(self._held)))
        return bytes(out)

    def _take(self, n: int) -> bytes:
        taken = bytes(self._held[:n])
        del self._held[:n]
        return taken

    def _ready_frame(self) -> bytes | None:
        """The body of the first frame once it is all here. It stays in `_held`: it is forwarded too."""
        held = self._held
        if not held:
            return None
        if held[0] == 0x04:
            head, size = 2, held[1] if len(held) > 1 else -1
        elif held[0] == 0x06:
            head, size = 9, int.from_bytes(held[1:9], "big") if len(held) >= 9 else -1
        else:
            raise GateError("bad_zmtp", "the first frame after the greeting is not a command")
        if size > MAX_READY:
            raise GateError("bad_zmtp", f"a READY command of {size} bytes, at most {MAX_READY}")
        if size < 0 or len(held) < head + size:
            return None
        return bytes(held[head : head + size])


def _check_greeting(rest: bytes) -> None:
    """Bytes 10…63: version, mechanism, as-server, filler."""
    if rest[0] != 3:
        raise GateError("bad_zmtp", f"ZMTP major version {rest[0]}, only 3 is spoken here")
    if rest[2:22].rstrip(b"\0") != b"NULL":
        raise GateError("bad_zmtp", f"ZMTP mechanism {rest[2:22].rstrip(bytes(1))!r}, only NULL (TLS is outside)")
    if rest[22] != 0:
        raise GateError("bad_zmtp", "a node cannot be a ZMTP server")


def _check_ready(body: bytes, node_id: bytes) -> None:
    if not body or body[1 : 1 + body[0]] != b"READY" or body[0] != 5:
        raise GateError("bad_zmtp", "the first command is not READY")
    properties = ready_properties(body[6:])
    if properties.get(b"Socket-Type") != b"DEALER":
        raise GateError("bad_zmtp", f"socket type {properties.get(b'Socket-Type', b'')[:20]!r}, only DEALER may link")
    identity = properties.get(b"Identity", b"")
    if not identity:
        raise GateError("identity_missing", "the link announces no identity")
    if identity != node_id:
        raise GateError(
            "identity_mismatch", f"the link announces the identity {identity[:64]!r}, its certificate says {node_id!r}"
        )


def ready_properties(data: bytes) -> dict[bytes, bytes]:
    """READY's metadata. GateError if it is cut short, or names a property twice in any mix of cases.

    (RFC 23 has names case-insensitive; libzmq compares exactly. A link that uses that gap is refused.)
    """
    found: dict[bytes, bytes] = {}
    seen: set[bytes] = set()
    at = 0
    while at < len(data):
        name = data[at + 1 : at + 1 + data[at]]
        at += 1 + data[at]
        if not name or at + 4 > len(data):
            raise GateError("bad_zmtp", "READY's properties are cut short")
        size = int.from_bytes(data[at : at + 4], "big")
        at += 4
        if at + size > len(data):
            raise GateError("bad_zmtp", "READY's properties are cut short")
        if name.lower() in seen:
            raise GateError("bad_zmtp", f"READY names {name[:20]!r} twice")
        if name.lower() in (b"identity", b"socket-type") and name not in (b"Identity", b"Socket-Type"):
            raise GateError("bad_zmtp", f"READY spells {name[:20]!r} in its own way")
        seen.add(name.lower())
        found[name] = data[at : at + size]
        at += size
    return found


class ReverseHold:
    """Hub to node: lets the ROUTER's greeting through and holds the rest until the gate opens.

    So a refusal can still be said after it, and an unnamed peer learns nothing.
    """

    def __init__(self) -> None:
        self._passed = 0
        self._held = bytearray()
        self._open = False

    def feed(self, data: bytes | memoryview) -> bytes | memoryview:
        if self._open:
            return data
        n = min(GREETING - self._passed, len(data))
        self._passed += n
        self._held += data[n:]
        if len(self._held) > MAX_HELD:
            raise GateError("internal", "the ROUTER spoke before the node was let in")
        return data[:n]

    def release(self) -> bytes:
        """Open; what was held."""
        self._open = True
        held = bytes(self._held)
        self._held.clear()
        return held

    @property
    def can_refuse(self) -> bool:
        """Whether a refusal record may be put into the stream here."""
        return not self._open and self._passed in REFUSABLE


def refusal_record(code: str, message: str) -> bytes:
    """What a hub sends, at one of REFUSABLE, before it closes: `ZKNO`, two lengths, code, message (UTF-8)."""
    c, m = code.encode()[:64], message.encode()[:512]
    return _REFUSAL_HEAD.pack(REFUSAL_MAGIC, len(c), len(m)) + c + m


class RefusalScanner:
    """Node's side: finds a refusal record at one of REFUSABLE in what the hub sends; else passes all on."""

    def __init__(self) -> None:
        self.refusal: tuple[str, str] | None = None
        """(code, message) once a whole record has come."""
        self._passed = 0
        self._record = bytearray()

    def feed(self, data: bytes | memoryview) -> bytes | memoryview:
        if self._passed > GREETING:
            return data
        out = bytearray()
        rest = bytes(data)
        while rest:
            if self._record or (self._passed in REFUSABLE and rest[0] == REFUSAL_MAGIC[0]):
                self._record += rest
                self._parse()
                break
            stop = next((at for at in REFUSABLE if at > self._passed), self._passed + len(rest))
            n = min(len(rest), stop - self._passed)
            out += rest[:n]
            rest = rest[n:]
            self._passed += n
        return bytes(out)

    def _parse(self) -> None:
        if len(self._record) < _REFUSAL_HEAD.size:
            return
        magic, c, m = _REFUSAL_HEAD.unpack_from(self._record)
        at = _REFUSAL_HEAD.size
        if magic != REFUSAL_MAGIC or c > 64 or m > 512:
            raise GateError("bad_zmtp", "the hub sent neither ZMTP nor a refusal")
        if len(self._record) >= at + c + m:
            text = bytes(self._record[at : at + c + m])
            self.refusal = (text[:c].decode(errors="replace"), text[c:].decode(errors="replace"))
