"""The control socket's server, for asyncio programs (zk0d, zk0-hub): requests in, events and one last line out.

Who may connect is the socket file's mode and group; what an operation does is the handler's. Not for the network.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog

from zk0d.control import MAX_REQUEST, socket_address
from zk0d.errors import ProtocolError, Zk0Error

log = structlog.get_logger("control")


class ControlConnection:
    """One client: who it is (`pid`, `uid`, `user`), `emit` for events, and `closed`, set when it has gone away.

    A handler may take what the client sends after its request, with `line` and `piece`, and `listen`s again in the end.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.closed = asyncio.Event()
        self._reader, self._writer = reader, writer
        self._ahead: asyncio.Task[bytes] | None = None
        sock = writer.get_extra_info("socket")
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        self.pid, self.uid, self.gid = struct.unpack("3i", raw)

    @property
    def user(self) -> str:
        """The client's user name, or its number where the system knows none."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)

    @property
    def asker(self) -> tuple[int, int]:
        """The client's process and user: what it asks over other connections comes from the same."""
        return self.pid, self.uid

    def listen(self) -> None:
        """Read the next line ahead: that is how a client that leaves is noticed."""
        if self._ahead is None:
            self._ahead = asyncio.create_task(self._reader.readline())
            self._ahead.add_done_callback(lambda t: _note_end(t, self))

    @property
    def listening(self) -> bool:
        return self._ahead is not None

    async def line(self) -> bytes:
        """The next line; empty at the client's end. Raises ValueError when it is too long."""
        ahead, self._ahead = self._ahead, None
        return await (ahead or self._reader.readline())

    async def piece(self, most: int) -> bytes:
        """Up to `most` bytes of what follows a `line`; empty at the client's end."""
        return await self._reader.read(most)

    def forget(self) -> None:
        """The client is gone, or is let go."""
        self.closed.set()
        if self._ahead is not None:
            self._ahead.cancel()

    async def emit(self, event: str, **fields: Any) -> None:
        """Send one event line. Does nothing once the client is gone."""
        await self.send({"event": event, **fields})

    async def send(self, value: dict[str, Any]) -> None:
        if self.closed.is_set():
            return
        try:
            self._writer.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
            await self._writer.drain()
        except (ConnectionError, RuntimeError):
            self.closed.set()


Handler = Callable[[dict[str, Any], ControlConnection], Awaitable[Any]]
"""Takes the request and the connection; returns the result; raises Zk0Error to refuse."""


class ControlServer:
    """Serves `handler` on a unix socket: a path (made with `mode`, removed at close) or an inherited descriptor.

    A client that leaves sets its connection's `closed`; the handler is not cancelled and decides what that means.
    """

    def __init__(self, where: Path | int, handler: Handler, mode: int = 0o600) -> None:
        self._where = where
        self._handler = handler
        self._mode = mode
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Raises Zk0Error when another process already answers on the path."""
        sock = socket.socket(fileno=self._where) if isinstance(self._where, int) else self._bind(self._where)
        sock.setblocking(False)
        self._server = await asyncio.start_unix_server(self._accept, sock=sock, limit=MAX_REQUEST)

    def _bind(self, path: Path) -> socket.socket:
        path.parent.mkdir(parents=True, exist_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with socket_address(path) as address:
            if path.is_socket():
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                    probe.settimeout(1.0)
                    with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
                        probe.connect(address)
                        sock.close()
                        raise Zk0Error(f"{path}: another process already serves here", "stop it first")
                path.unlink(missing_ok=True)
            before = os.umask(0o777 & ~self._mode)
            try:
                sock.bind(address)
            finally:
                os.umask(before)
            path.chmod(self._mode)
        sock.listen(64)
        return sock

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except asyncio.CancelledError:
            pass  # our own close; asyncio would log it as an error
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = ControlConnection(reader, writer)
        try:
            while not connection.closed.is_set():
                try:
                    line = await connection.line()
                except (ValueError, ConnectionError):
                    break  # a line beyond the limit: no way to find the next one
                if not line:
                    break
                connection.listen()
                await connection.send(await self._answer(line, connection))
                if not connection.listening:
                    break  # a handler gave up in the midst of what was sent: what follows is no request
        finally:
            connection.forget()

    async def _answer(self, line: bytes, connection: ControlConnection) -> dict[str, Any]:
        try:
            try:
                request = json.loads(line)
                op = request["op"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ProtocolError(f"the request is not a JSON object with an op: {error}") from None
            result = await self._handler(request, connection)
        except Zk0Error as error:
            return {"ok": False, "error": describe(error)}
        except Exception as error:
            log.exception("a control request failed", op=op)
            return {"ok": False, "error": {"code": "internal", "message": f"{type(error).__name__}: {error}",
                                           "hint": "this is a defect: see the log", "exit_code": 1}}  # fmt: skip
        return {"ok": True, "result": result}

    async def close(self) -> None:
        """Stop listening, cancel what runs, remove the socket file."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=2.0)
        if isinstance(self._where, Path):
            self._where.unlink(missing_ok=True)


def _note_end(task: asyncio.Task[bytes], connection: ControlConnection) -> None:
    if task.cancelled() or task.exception() is not None or not task.result():
        connection.closed.set()


def describe(error: Zk0Error) -> dict[str, Any]:
    """An error as the last line of a reply carries it."""
    return {"code": error.code, "message": error.message, "hint": error.hint, "exit_code": error.exit_code}
