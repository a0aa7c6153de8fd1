"""Memory that the wires use again and again: what a socket would not take, and where plaintext and ciphertext stand.

Fresh pages cost as much as decrypting what is put into them. No I/O but `OutBuffer.send`.
"""

from __future__ import annotations

import socket
import sys
from collections import deque
from itertools import islice

Bytes = bytes | memoryview

READ = 256 * 1024
_RECORD = 16384
_AT_ONCE = 16  # parts that one system call takes
SLICE = 32 * _RECORD
"""Bytes read, encrypted and handed to the kernel at once: whole TLS records, and few changes between these."""
_WORTH_KEEPING = 64 * 1024
_PIECES, _LEAST_PIECE = 1 << 20, 2 * _RECORD
"""What all links may keep in each direction together, and what each has at least."""


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

    def send(self, sock: socket.socket, flags: int = 0) -> int:
        """Give the socket what it takes; the number of bytes. OSError if the socket is broken."""
        sent = 0
        while self._parts:
            some = list(islice(self._parts, _AT_ONCE))
            try:
                n = sock.sendmsg(some, (), flags) if len(some) > 1 else sock.send(some[0], flags)
            except (BlockingIOError, InterruptedError):
                break
            sent += n
            self.size -= n
            for part in some:
                if n < len(part):
                    self._parts[0] = part[n:]
                    return sent
                n -= len(part)
                self._parts.popleft()
        return sent

    def clear(self) -> None:
        self._parts.clear()
        self.size = 0


class Buffers:
    """Receive buffers of one thread, used again once nobody holds a view of them: no fresh pages for each chunk."""

    def __init__(self, most: int = 16 << 20) -> None:
        self._most, self._size = most, 0
        self._kept: list[bytearray] = []
        self.used = False
        """Whether `take` was called since the last `trim`."""

    def take(self, size: int) -> memoryview:
        """`size` writable bytes with anything in them: fill them all before anybody sees them."""
        if size < _WORTH_KEEPING:
            return memoryview(bytearray(size))
        self.used = True
        for buffer in self._kept:
            # The list, this name and the argument: any view would hold one more reference.
            if len(buffer) >= size and sys.getrefcount(buffer) == 3:
                return memoryview(buffer)[:size]
        fresh = bytearray(size)
        if self._size + size <= self._most:
            self._kept.append(fresh)
            self._size += size
        return memoryview(fresh)

    def trim(self) -> None:
        """Call now and then: gives the memory back after a spell without bulk."""
        if not self.used and self._kept:
            self._kept.clear()
            self._size = 0
        self.used = False


class Scratch:
    """Buffers that one thread uses for all its wires, so that a thousand idle links cost nothing."""

    def __init__(self) -> None:
        self.raw = memoryview(bytearray(READ))
        self.plain = memoryview(bytearray(_RECORD))
        self.slice = memoryview(bytearray(SLICE))
        self.piece = SLICE
        """Bytes that go through OpenSSL's buffers at once. Each link has two, which keep for its life what they once
        held: 750 KiB a node, if that is a slice."""
        self.buffers = Buffers()

    def share(self, links: int) -> None:
        """So many links use it now: few get fast pieces, a thousand small ones."""
        self.piece = max(_LEAST_PIECE, min(SLICE, _PIECES // max(1, links) // _RECORD * _RECORD))
