"""Taking folders in: the daemon's loop goes on meanwhile, a trickle is cut, and a write never meets a closed file."""

from __future__ import annotations

import asyncio
import json
import threading
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from zk0d.control_server import ControlConnection, ControlServer
from zk0d.daemon import carrying
from zk0d.daemon.carrying import Carrying, Pace
from zk0d.daemon.config import Config
from zk0d.daemon.store import Store
from zk0d.daemon.sweeping import Sweeper
from zk0d.errors import LinkLostError


async def _carried(tmp_path: Path, files: int, sent: bytes, during: Any) -> dict[str, Any]:
    """What a client hears in the end that sends `sent`; `during(server)` runs beside it."""
    store = Store(tmp_path / "zk0d.db")
    room = Carrying(Config.load([]), store, Sweeper())

    async def handler(request: dict[str, Any], connection: ControlConnection) -> Any:
        async with room.folder(tmp_path / "datasets/x", request, connection) as place:
            return {"files": sum(1 for p in place.rglob("*") if p.is_file())}

    server = ControlServer(tmp_path / "s", handler)
    await server.start()
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
    beside = asyncio.create_task(during(server))
    try:
        size = sent.count(b"x")
        writer.write(json.dumps({"op": "x", "carry": {"files": files, "bytes": size}}).encode() + b"\n" + sent)
        while (line := await reader.readline()) and "ok" not in json.loads(line):
            pass
        return dict(json.loads(line or b"{}"))
    finally:
        beside.cancel()
        writer.close()
        await server.close()
        store.close()


def test_the_loop_goes_on_while_empty_files_come(tmp_path: Path) -> None:
    turns = 0

    async def turning(_: ControlServer) -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    files = 2000
    sent = b"".join(b'{"path": "%d/%d", "size": 0}\n' % (n % 7, n) for n in range(files)) + b'{"end": true}\n'
    told = asyncio.run(_carried(tmp_path, files, sent, turning))
    assert told == {"ok": True, "result": {"files": files}}
    assert turns > files
    assert not list((tmp_path / "datasets/.carried").iterdir())


def test_a_write_ends_before_its_file_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, closed = threading.Event(), threading.Event(), list[bool]()
    write = carrying._Incoming._write

    def slow(self: carrying._Incoming, file: FileIO, data: bytes) -> None:
        begun.set()
        go_on.wait(60)
        closed.append(file.closed)
        write(self, file, data)

    monkeypatch.setattr(carrying._Incoming, "_write", slow)

    async def ending(server: ControlServer) -> None:
        await asyncio.to_thread(begun.wait, 60)
        for task in list(server._tasks):
            task.cancel()
        await asyncio.sleep(0.05)  # whoever does not wait for the thread has closed the file by now
        go_on.set()
        await server.close()

    sent = b'{"path": "a", "size": 2000000}\n' + b"x" * 2_000_000
    assert asyncio.run(_carried(tmp_path, 1, sent, ending)) == {}
    assert closed == [False]


def test_a_trickle_is_cut_and_many_small_files_are_not() -> None:
    now = 0.0
    pace = Pace(lambda: now)
    for _ in range(10):
        now += 599
        pace.count(200_000 * 1200)  # fast enough, however it comes
    pace = Pace(lambda: now)
    pace.count(1_000_000)
    now += 300
    pace.count(1)
    now += 300
    with pytest.raises(LinkLostError, match=r"too slowly: 1.7 kB/s"):
        pace.count(1)


def test_what_cannot_be_swept_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets, work = tmp_path / "datasets", tmp_path / "work"
    (datasets / ".carried/0_1/a/b").mkdir(parents=True)
    (work / "results/sheet_1").mkdir(parents=True)
    (datasets / ".x.7.zk0d-part_old").mkdir()
    (datasets / ".x.7.part").mkdir()
    (datasets / ".carried/0_1/out").symlink_to(tmp_path)
    rename = Path.rename

    def refusing(self: Path, target: Path) -> Path:
        if self.name == "results":
            raise PermissionError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refusing)
    sweeper = Sweeper()
    sweeper.begin(datasets, work)
    assert sweeper._thread is not None
    sweeper._thread.join(60)
    assert [p.name for p in datasets.iterdir()] == [".x.7.part"] and (work / "results/sheet_1").exists()
    sweeper.begin(tmp_path / "nothing", tmp_path / "nothing")
    sweeper.close()
