"""What bench/link.py compares with: a bare TLS socket and gRPC over TLS, each sending the same chunks from a process of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from zk0d.link.identity import HUB_NAME, Authority, NodeIdentity, ServerIdentity
from zk0d.link.tls import link_context, server_context

ORDER = struct.Struct("!QQ")  # bytes in all, bytes of a chunk; zeros: go


def other(role: str, folder: Path, port: int) -> None:
    """The sending process."""
    (_send_bare if role == "bare" else _send_grpc)(folder, port)


def _spawn(role: str, folder: Path, port: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, sys.argv[0], f"--role={role}", f"--folder={folder}", f"--port={port}"])


def _send_bare(folder: Path, port: int) -> None:
    with (
        socket.create_connection(("127.0.0.1", port)) as raw,
        link_context(NodeIdentity.load(folder / "node")).wrap_socket(raw, server_hostname=HUB_NAME) as tls,
    ):
        while True:
            size, chunk = ORDER.unpack(_exactly(tls, ORDER.size))
            if not size:
                return
            data = os.urandom(chunk)
            for _ in range(size // chunk):
                tls.sendall(data)


def _exactly(sock: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n:
        data += sock.recv(n - len(data))
    return data


class BareTls:
    """The receiving end of a blocking TLS socket: no checks, no disk."""

    def __init__(self, process: subprocess.Popen[bytes], tls: Any) -> None:
        self._process, self._tls, self.pid = process, tls, process.pid

    @classmethod
    async def start(cls, folder: Path, authority: Authority, server: ServerIdentity) -> BareTls:
        context = server_context(authority.directory / "ca.pem", server)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            process = _spawn("bare", folder, listener.getsockname()[1])
            accepted = await asyncio.to_thread(listener.accept)
        return cls(process, await asyncio.to_thread(context.wrap_socket, accepted[0], True))

    async def move(self, size: int, chunk: int) -> None:
        await asyncio.to_thread(self._move, size, chunk)

    def _move(self, size: int, chunk: int) -> None:
        self._tls.sendall(ORDER.pack(size, chunk))
        buffer, left = bytearray(chunk), size
        while left:
            left -= self._tls.recv_into(buffer)

    async def close(self) -> None:
        self._tls.sendall(ORDER.pack(0, 0))
        await asyncio.to_thread(self._process.wait)
        self._tls.close()


_METHOD = "/zk0.Bench/Chunks"


def _send_grpc(folder: Path, port: int) -> None:
    import grpc

    credentials = grpc.ssl_channel_credentials((folder / "grpc-ca.pem").read_bytes())
    options = [("grpc.ssl_target_name_override", HUB_NAME), ("grpc.max_receive_message_length", -1)]
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        orders = channel.unary_unary("/zk0.Bench/Order", None, None)
        chunks = channel.stream_unary(_METHOD, None, None)
        while True:
            size, chunk = ORDER.unpack(orders(b"", wait_for_ready=True))
            if not size:
                return
            data = os.urandom(chunk)

            def sent(n: int, data: bytes) -> Iterator[bytes]:
                for _ in range(n):
                    yield data

            chunks(sent(size // chunk, data))


class Grpc:
    """The receiving end of a client stream of byte messages over TLS."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._orders: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
        self._done: asyncio.Queue[int] = asyncio.Queue()
        self.pid = 0

    @classmethod
    async def start(cls, folder: Path) -> Grpc | None:
        """None when grpcio is not installed."""
        try:
            import grpc
        except ImportError:
            return None
        self = cls()

        def order(request: bytes, context: Any) -> bytes:
            return ORDER.pack(*asyncio.run_coroutine_threadsafe(self._orders.get(), self._loop).result())

        def chunks(requests: Iterator[bytes], context: Any) -> bytes:
            total = sum(len(chunk) for chunk in requests)
            self._loop.call_soon_threadsafe(self._done.put_nowait, total)
            return b"."

        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)])
        handlers = {
            "Order": grpc.unary_unary_rpc_method_handler(order),
            "Chunks": grpc.stream_unary_rpc_method_handler(chunks),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("zk0.Bench", handlers),))
        key, certificate = _p256()
        (folder / "grpc-ca.pem").write_bytes(certificate)
        port = self._server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
        self._server.start()
        self._process = _spawn("grpc", folder, port)
        self.pid = self._process.pid
        return self

    async def move(self, size: int, chunk: int) -> None:
        self._orders.put_nowait((size, chunk))
        total = await asyncio.wait_for(self._done.get(), 300)
        if total != size:
            raise RuntimeError(f"gRPC delivered {total} of {size} bytes")

    async def close(self) -> None:
        self._orders.put_nowait((0, 0))
        await asyncio.to_thread(self._process.wait)
        await asyncio.to_thread(self._server.stop(0).wait)


def _p256() -> tuple[bytes, bytes]:
    """Key and self-signed certificate: gRPC's TLS does not take our Ed25519 ones. Only the handshake differs."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HUB_NAME)]), datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1))
    builder = builder.not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(HUB_NAME)]), False)
    certificate = builder.add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, certificate.public_bytes(serialization.Encoding.PEM)
