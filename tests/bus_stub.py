"""A message bus with one client at a time that answers calls by their member or, for properties, by the property's name.

For services that do not run here (systemd, logind, NetworkManager). Replies are laid out by hand, from the D-Bus
specification; test_daemon_bus.py also talks to a real dbus-daemon where there is one.
"""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from zk0d.daemon import bus

Body = tuple[str, bytes]
"""A reply's signature and its marshalled body; signature "!" is an error with that text."""


def text(value: str) -> bytes:
    return len(value).to_bytes(4, "little") + value.encode() + b"\0"


def variant(kind: str, value: bytes) -> Body:
    """`value` marshalled, in a variant of one-letter type b, u or s (all aligned to four bytes)."""
    return "v", b"\x01" + kind.encode() + b"\0\0" + value


def number(value: int) -> bytes:
    return value.to_bytes(4, "little")


def message(kind: int, serial: int, body: Body) -> bytes:
    """A method's return (2) or an error (3): header fields ERROR_NAME, REPLY_SERIAL and SIGNATURE, then the body."""
    signature, data = ("s", text(body[1].decode())) if kind == 3 else body
    fields = b"\x05\x01u\x00" + number(serial) + b"\x08\x01g\x00" + bytes([len(signature)]) + signature.encode() + b"\0"
    if kind == 3:
        fields += bytes(-len(fields) % 8) + b"\x04\x01s\x00" + text("org.example.Refused")
    head = b"l" + bytes([kind]) + b"\x01\x01" + number(len(data)) + number(serial) + number(len(fields)) + fields
    return head + bytes(-len(head) % 8) + data


class BusStub:
    """Listens at `path` while the context lasts. `answers` may change at any time; `calls` are those it had."""

    def __init__(self, path: Path) -> None:
        self.answers: dict[str, Body] = {"Hello": ("s", text(":1.1"))}
        self.calls: list[str] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, name="bus-stub")
        self._now: socket.socket | None = None
        self._over = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._over = True
        for sock in (self._now, self._listener):
            if sock is not None:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        self._thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        while not self._over:
            try:
                self._now, _ = self._listener.accept()
                with self._now, self._now.makefile("rwb") as stream:
                    stream.readline()
                    stream.write(b"OK 1234\r\n")
                    stream.flush()
                    stream.readline()
                    while head := stream.read(16):
                        self._answer(stream, head + stream.read(bus._size(head) - 16))
            except OSError:
                continue

    def _answer(self, stream: socket.SocketIO, data: bytes) -> None:  # type: ignore[name-defined]
        serial = struct.unpack("<I", data[8:12])[0]
        fields = dict(bus._In(data, 12, "<").get("a(yv)"))
        name = str(fields[3])
        if name == "Get":
            name = str(bus.decode(data)[3][1])
        self.calls.append(name)
        body = self.answers.get(name, ("!", b"no such name"))
        stream.write(message(3 if body[0] == "!" else 2, serial, body))
        stream.flush()
