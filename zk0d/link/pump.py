"""One TLS connection as bytes in, bytes out: no socket, no I/O. Not for what the bytes mean."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import cast

from zk0d.link.buffers import Bytes, Scratch

MOST_RECORD = 5 + (1 << 14) + 256
"""Bytes of one record at most (RFC 8446, 5.2). OpenSSL takes what is fed, and keeps what it has of one that is not
whole."""


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
        self._made: list[bytes] = []
        self.tls = context.wrap_bio(self._in, self._out, server_side=server_side, server_hostname=server_hostname)
        # With a buffer, `read` gives a count; typeshed says bytes.
        self._read = cast(Callable[[int, memoryview], int], self.tls.read)
        self.scratch = scratch
        self._plain = scratch.plain
        self._tap = tap
        self.established = False

    def feed(self, ciphertext: Bytes) -> None:
        """Take what the network delivered, `scratch.piece` bytes at most. Advances the handshake."""
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
        """Plaintext of one record, if there is one; good until the next call. SSLZeroReturnError at a clean end."""
        try:
            n = self._read(len(self._plain), self._plain)
        except ssl.SSLWantReadError:
            n = 0
        else:
            if n == 0:
                raise ssl.SSLZeroReturnError(ssl.SSL_ERROR_ZERO_RETURN, "closed")
        return self._plain[:n]

    def read_into(self, into: memoryview) -> int:
        """Fill `into` with plaintext as far as there is some; how many bytes. SSLZeroReturnError at a clean end."""
        at, size, read = 0, len(into), self._read
        try:
            while at < size:
                n = read(size - at, into[at:] if at else into)
                if n == 0:  # close_notify; said again at the next call, after what came before it
                    if at == 0:
                        raise ssl.SSLZeroReturnError(ssl.SSL_ERROR_ZERO_RETURN, "closed")
                    break
                at += n
        except ssl.SSLWantReadError:
            pass
        return at

    def write(self, plaintext: Bytes) -> None:
        """Encrypt; see `take`."""
        if not len(plaintext):
            return
        if self._tap is not None:
            self._tap(bytes(plaintext))
        piece = self.scratch.piece
        if len(plaintext) <= piece:
            self.tls.write(plaintext)
            return
        view = memoryview(plaintext)
        for at in range(0, len(view), piece):
            self.tls.write(view[at : at + piece])
            self._made.append(self._out.read())

    def take(self) -> list[bytes]:
        """Ciphertext for the network."""
        made, self._made = self._made, []
        if self._out.pending:
            made.append(self._out.read())
        return made

    def finish(self) -> None:
        """Say that no more plaintext will come from this end."""
        try:
            self.tls.unwrap()
        except (ssl.SSLError, ValueError):
            pass  # the peer's own close_notify has not come, or TLS is broken: ours is in the buffer if it can be
