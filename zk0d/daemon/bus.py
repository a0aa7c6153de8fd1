"""A small, strict D-Bus client: calls with plain arguments, replies of any type. The only one in zk0d.

`Bus` is one kept connection for what the daemon asks of systemd; `get_property` asks once, from any thread. Not for
signals nor for serving objects. The protocol is the D-Bus specification 0.43; only little-endian messages are sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from typing import Any

from zk0d.errors import WorkerError, os_reason

SYSTEM_BUS = "/run/dbus/system_bus_socket"
VARIABLE = "DBUS_SYSTEM_BUS_ADDRESS"
"""Names another system bus, as `unix:path=…` (D-Bus specification, "Well-known Message Bus Instances")."""
_MAX_MESSAGE = 4 << 20
_CALL, _REPLY, _ERROR = 1, 2, 3
_FIXED = {"y": "B", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d"}
_ALIGN = {"y": 1, "n": 2, "q": 2, "i": 4, "u": 4, "b": 4, "x": 8, "t": 8, "d": 8, "s": 4, "o": 4, "g": 1, "v": 1,
          "a": 4, "(": 8, "{": 8}  # fmt: skip


def system_bus() -> str:
    """The socket of the system's bus."""
    given = os.environ.get(VARIABLE, "").partition(";")[0].partition(",")[0]
    return given.removeprefix("unix:path=") if given.startswith("unix:path=") else SYSTEM_BUS


class BusError(WorkerError):
    """The bus or the service behind it refused or is gone. `name`: the D-Bus error's name, "" for a lost connection."""

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message, "see `systemctl status dbus polkit`")
        self.name = name


def _one(signature: str, at: int = 0) -> int:
    """Where the complete type that begins at `at` ends."""
    kind = signature[at]
    if kind == "a":
        return _one(signature, at + 1)
    if kind in "({":
        at += 1
        while signature[at] not in ")}":
            at = _one(signature, at)
        return at + 1
    if kind not in _ALIGN:
        raise ValueError(f"type {kind!r}")
    return at + 1


class _Out:
    """Marshals the types that are sent: y u i s o g, arrays of them, and the header's fields."""

    def __init__(self) -> None:
        self.data = bytearray()

    def align(self, to: int) -> None:
        self.data += bytes(-len(self.data) % to)

    def put(self, kind: str, value: Any) -> None:
        self.align(_ALIGN[kind[0]])
        if kind[0] in _FIXED:
            self.data += struct.pack("<" + _FIXED[kind], value)
        elif kind in ("s", "o"):
            text = value.encode()
            self.data += struct.pack("<I", len(text)) + text + b"\0"
        elif kind == "g":
            self.data += bytes([len(value)]) + value.encode() + b"\0"
        elif kind[0] == "a":
            self.data += b"\0\0\0\0"
            length_at = len(self.data) - 4
            self.align(_ALIGN[kind[1]])
            begin = len(self.data)
            for item in value:
                self.put(kind[1:], item)
            struct.pack_into("<I", self.data, length_at, len(self.data) - begin)
        elif kind == "(yv)":
            code, (inner, content) = value
            self.put("y", code)
            self.put("g", inner)
            self.put(inner, content)
        else:
            raise ValueError(f"type {kind!r} is not sent")


class _In:
    """Reads values of any type; every length is checked against what is there."""

    def __init__(self, data: bytes, at: int, order: str) -> None:
        self._data, self.at, self._order = data, at, order

    def align(self, to: int) -> None:
        self.at += -self.at % to

    def _take(self, count: int) -> bytes:
        if count < 0 or self.at + count > len(self._data):
            raise ValueError("it is cut short")
        self.at += count
        return self._data[self.at - count : self.at]

    def get(self, kind: str, depth: int = 0) -> Any:
        if depth > 32:
            raise ValueError("it is nested too deep")
        first = kind[0]
        self.align(_ALIGN[first])
        if first in _FIXED:
            return struct.unpack(self._order + _FIXED[first], self._take(struct.calcsize(_FIXED[first])))[0]
        if first == "b":
            return bool(self.get("u"))
        if first in "sog":
            text = self._take(self.get("y" if first == "g" else "u"))
            self._take(1)
            return text.decode()
        if first == "v":
            inner = self.get("g")
            if _one(inner) != len(inner):
                raise ValueError(f"variant {inner!r}")
            return self.get(inner, depth + 1)
        if first == "a":
            length = self.get("u")
            self.align(_ALIGN[kind[1]])
            end, found = self.at + length, []
            if end > len(self._data):
                raise ValueError("an array is longer than the message")
            while self.at < end:
                found.append(self.get(kind[1:], depth + 1))
            return dict(found) if kind[1] == "{" else found
        return tuple(self.all(kind[1:-1], depth + 1))

    def all(self, signature: str, depth: int = 0) -> list[Any]:
        """The values of a signature, one after the other."""
        at, found = 0, []
        while at < len(signature):
            end = _one(signature, at)
            found.append(self.get(signature[at:end], depth))
            at = end
        return found


def encode_call(
    serial: int, where: tuple[str, str, str, str], signature: str = "", args: tuple[Any, ...] = (), flags: int = 0
) -> bytes:
    """A method call; `where`: destination, object path, interface, member. Flag 2: start no service for it."""
    destination, path, interface, member = where
    body, at = _Out(), 0
    for value in args:
        end = _one(signature, at)
        body.put(signature[at:end], value)
        at = end
    fields: list[tuple[int, tuple[str, str]]] = [
        (1, ("o", path)), (2, ("s", interface)), (3, ("s", member)), (6, ("s", destination)),
    ]  # fmt: skip
    if signature:
        fields.append((8, ("g", signature)))
    head = _Out()
    head.data += struct.pack("<BBBBII", ord("l"), _CALL, flags, 1, len(body.data), serial)
    head.put("a(yv)", fields)
    head.align(8)
    return bytes(head.data + body.data)


def decode(data: bytes) -> tuple[int, int, str, list[Any]]:
    """A whole message → its kind, the serial it answers, an error's name, its values. Raises ValueError."""
    order = {ord("l"): "<", ord("B"): ">"}[data[0]]
    head = _In(data, 12, order)
    fields = dict(head.get("a(yv)"))
    head.align(8)
    values = _In(data[head.at :], 0, order).all(fields.get(8, ""))
    return data[1], int(fields.get(5, 0)), str(fields.get(4, "")), values


def _size(head: bytes) -> int:
    """How long the message is whose first 16 bytes are `head`."""
    order = {ord("l"): "<", ord("B"): ">"}[head[0]]
    body, _, fields = struct.unpack(order + "III", head[4:16])
    return int(16 + fields + -fields % 8 + body)


_HELLO = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")


def _hello() -> bytes:
    return b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n"


def get_property(service: str, path: str, interface: str, name: str, timeout_s: float = 3.0) -> Any:
    """A property's value; blocks, over a connection of its own; a service that does not run is not started.

    Raises BusError saying why there is none.
    """
    where = (service, path, "org.freedesktop.DBus.Properties", "Get")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout_s)
            sock.connect(system_bus())
            sock.sendall(_hello())
            with sock.makefile("rb") as reader:
                if not reader.readline().startswith(b"OK "):
                    raise BusError("the bus does not know us")
                sock.sendall(b"BEGIN\r\n" + encode_call(1, _HELLO))
                sock.sendall(encode_call(2, where, "ss", (interface, name), flags=2))
                while True:  # before the answer come the greeting's and signals
                    head = reader.read(16)
                    size = _size(head) if len(head) == 16 else 0
                    if not 16 <= size <= _MAX_MESSAGE:
                        raise BusError("the bus closed the connection")
                    kind, serial, error, values = decode(head + reader.read(size - 16))
                    if serial == 2 and kind in (_REPLY, _ERROR):
                        break
    except (OSError, ValueError, KeyError, IndexError, TypeError, struct.error) as failure:
        why = os_reason(failure) if isinstance(failure, OSError) else str(failure) or "in time"
        raise BusError(f"the bus does not answer: {why}") from failure
    if kind == _ERROR:
        raise BusError(str(values[0]) if values else error, error)
    return values[0]


class Bus:
    """One connection to a message bus. When it is lost every call fails with BusError, and `lost` is true."""

    def __init__(self, sock: socket.socket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._serial = 0
        self._waiting: dict[int, asyncio.Future[list[Any]]] = {}
        self._task = asyncio.create_task(self._read(), name="bus")

    @classmethod
    async def connect(cls, path: str | None = None, timeout_s: float = 5.0) -> Bus:
        """Connect and authenticate as our own user. Raises BusError."""
        where = path or system_bus()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().sock_connect(sock, where)
                reader, writer = await asyncio.open_connection(sock=sock, limit=_MAX_MESSAGE)
                writer.write(_hello())
                said = await reader.readline()
                if not said.startswith(b"OK "):
                    raise BusError(f"{where}: the bus does not know us: {said[:80].decode(errors='replace').strip()}")
                writer.write(b"BEGIN\r\n")
                bus = cls(sock, reader, writer)
                await bus.call(_HELLO)
        except (OSError, TimeoutError) as error:
            sock.close()
            why = os_reason(error) if error.errno else str(error) or "in time"
            raise BusError(f"{where}: the bus does not answer: {why}") from error
        return bus

    @property
    def lost(self) -> bool:
        return self._task.done()

    def post(self, where: tuple[str, str, str, str], signature: str = "", *args: Any) -> asyncio.Future[list[Any]]:
        """Send a call at once → its answer to come. Never blocks; the future fails with BusError."""
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda f: f.cancelled() or f.exception())  # an answer that nobody reads is no error
        if self.lost:
            answer.set_exception(BusError("the connection to the bus is lost"))
            return answer
        self._serial += 1
        self._waiting[self._serial] = answer
        self._writer.write(encode_call(self._serial, where, signature, args))
        return answer

    async def call(
        self, where: tuple[str, str, str, str], signature: str = "", *args: Any, timeout_s: float = 10.0
    ) -> list[Any]:
        """Send a call and wait for the values of its answer. Raises BusError."""
        try:
            return await asyncio.wait_for(self.post(where, signature, *args), timeout_s)
        except TimeoutError:
            raise BusError(f"{where[3]}: no answer from {where[0]} within {timeout_s:.0f} s") from None

    async def _read(self) -> None:
        why = "the bus closed the connection"
        try:
            while True:
                head = await self._reader.readexactly(16)
                size = _size(head)
                if size > _MAX_MESSAGE:
                    raise ValueError(f"{size} bytes are too many")
                self._answer(*decode(head + await self._reader.readexactly(size - 16)))
        except (OSError, asyncio.IncompleteReadError):
            pass
        except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
            why = f"the bus sent a message that cannot be read: {error}"
        finally:
            self._writer.close()
            waiting, self._waiting = self._waiting, {}
            for answer in waiting.values():
                if not answer.done():
                    answer.set_exception(BusError(why))

    def _answer(self, kind: int, serial: int, name: str, values: list[Any]) -> None:
        answer = self._waiting.pop(serial, None) if kind in (_REPLY, _ERROR) else None
        if answer is None or answer.done():
            return
        if kind == _REPLY:
            answer.set_result(values)
        else:
            answer.set_exception(BusError(str(values[0]) if values else name, name))

    async def close(self) -> None:
        """End the connection; what still waits fails."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
