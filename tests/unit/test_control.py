"""The control socket: client and server over a real unix socket."""

from __future__ import annotations

import asyncio
import getpass
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zk0d.control import MAX_REQUEST, ControlConnection, ControlServer, call
from zk0d.errors import DatasetError, NotRunningError, Zk0Error


async def handle(request: dict[str, Any], connection: ControlConnection) -> Any:
    match request["op"]:
        case "echo":
            return request["value"]
        case "count":
            for i in range(request["to"]):
                await connection.emit("count", i=i)
            return {"user": connection.user}
        case "refuse":
            raise DatasetError("no dataset", "record one")
        case "crash":
            raise RuntimeError("defect")
        case "wait":
            await connection.closed.wait()
            request["seen"].set()
        case _:
            raise Zk0Error(f"unknown operation {request['op']!r}")
    return None


def serve(path: Path, use: Any) -> None:
    async def run() -> None:
        server = ControlServer(path, handle)
        await server.start()
        try:
            await asyncio.wait_for(asyncio.to_thread(use), 60)
        finally:
            await server.close()
        assert not path.exists()

    asyncio.run(run())


def test_events_result_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"

    def use() -> None:
        assert path.stat().st_mode & 0o777 == 0o600
        assert call(path, {"op": "echo", "value": {"ä": [1, None]}}) == {"ä": [1, None]}
        seen: list[dict[str, Any]] = []
        assert call(path, {"op": "count", "to": 3}, seen.append) == {"user": getpass.getuser()}
        assert [e["i"] for e in seen] == [0, 1, 2]
        with pytest.raises(DatasetError, match="no dataset") as refused:
            call(path, {"op": "refuse"})
        assert refused.value.hint == "record one"
        with pytest.raises(Zk0Error) as crashed:
            call(path, {"op": "crash"})
        assert crashed.value.code == "internal" and crashed.value.exit_code == 1

    serve(path, use)


def test_garbage_gets_an_answer_and_the_server_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "s"

    def use() -> None:
        for line in (b"\xff\xfe\n", b"[]\n", b"{}\n", b"[" * 5000 + b"\n"):
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(60)
                s.connect(str(path))
                s.sendall(line)
                assert json.loads(s.makefile("rb").readline())["error"]["code"] == "protocol"
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(60)
            s.connect(str(path))
            try:
                s.sendall(b"x" * (MAX_REQUEST * 3))
                assert s.recv(1) == b""
            except (BrokenPipeError, ConnectionResetError):
                pass
        assert call(path, {"op": "echo", "value": 1}) == 1

    serve(path, use)


def test_client_that_leaves_is_noticed(tmp_path: Path) -> None:
    async def run() -> None:
        seen = asyncio.Event()

        async def handler(request: dict[str, Any], connection: ControlConnection) -> None:
            await handle({**request, "seen": seen}, connection)

        server = ControlServer(tmp_path / "s", handler)
        await server.start()
        _, writer = await asyncio.open_unix_connection(tmp_path / "s")
        writer.write(b'{"op": "wait"}\n')
        await writer.drain()
        writer.close()
        await asyncio.wait_for(seen.wait(), 60)
        await server.close()

    asyncio.run(run())


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError):
        call(tmp_path / "absent", {"op": "status"})
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale"))
    with pytest.raises(NotRunningError):
        call(tmp_path / "stale", {"op": "status"})
    serve(tmp_path / "stale", lambda: call(tmp_path / "stale", {"op": "echo", "value": 1}))


def test_second_server_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async def run() -> None:
        first, second = ControlServer(tmp_path / "s", handle), ControlServer(tmp_path / "s", handle)
        await first.start()
        with pytest.raises(Zk0Error, match="already serves"):
            await second.start()
        assert await asyncio.to_thread(call, tmp_path / "s", {"op": "echo", "value": 2}) == 2
        await first.close()

    asyncio.run(run())


def test_long_path(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90) / ("e" * 60)
    serve(deep / "admin.sock", lambda: call(deep / "admin.sock", {"op": "echo", "value": 1}))


def test_inherited_descriptor(tmp_path: Path) -> None:
    async def run() -> None:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        server = ControlServer(listening.detach(), handle)
        await server.start()
        assert await asyncio.to_thread(call, tmp_path / "s", {"op": "echo", "value": 3}) == 3
        await server.close()
        assert (tmp_path / "s").exists()  # not ours to remove

    asyncio.run(run())


def test_client_imports_only_light_stdlib() -> None:
    code = (
        "import sys, zk0d.control; bad = {'asyncio','structlog','numpy','cryptography'} & set(sys.modules);"
        " sys.exit(repr(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
