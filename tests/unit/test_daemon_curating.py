"""A curation that is cancelled takes away what it made, and nothing that another made under its name meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from zk0d.control_server import ControlConnection
from zk0d.daemon.curating import Curating, WithdrawnError
from zk0d.daemon.store import Dataset, Store
from zk0d.daemon.sweeping import Sweeper
from zk0d.errors import WorkerError
from zk0d.filetree import PART


class Working:
    """The daemon's workers, and the one it starts: it works until it is killed, after `made` has been done."""

    def __init__(self, made: Any) -> None:
        self._made, self._killed = made, asyncio.Event()
        self.started = asyncio.Event()

    async def start(self, *_: Any) -> Working:
        return self

    async def wait(self) -> dict[str, Any]:
        self._made()
        self.started.set()
        await self._killed.wait()
        raise WorkerError("killed")

    async def kill(self) -> None:
        self._killed.set()


def _cancelled(tmp_path: Path, made: Any, live: str | None = None) -> None:
    """Split a dataset into `x` and `y`; cancel when `made(store)` has been done by the worker and others."""

    async def run() -> None:
        store = Store(tmp_path / "zk0d.db")
        working = Working(lambda: made(store))

        async def independent(work: Any) -> Any:
            return await work

        arm = SimpleNamespace(
            independent=independent, store=store, live=SimpleNamespace(dataset=live) if live else None
        )
        curating = Curating(cast(Any, working), cast(Any, arm), Sweeper())
        connection = cast(ControlConnection, SimpleNamespace(asker=(1, 2)))
        job = {"action": "split", "target": str(tmp_path / "x"), "rest": str(tmp_path / "y")}
        running = asyncio.create_task(curating.run(job, connection))
        await asyncio.wait_for(working.started.wait(), 60)
        assert await curating.cancel(connection)
        with pytest.raises(WithdrawnError, match="nothing of it is left"):
            await running
        store.close()

    asyncio.run(run())


def _make(tmp_path: Path, *names: str) -> None:
    for name in names:
        (tmp_path / name / "meta").mkdir(parents=True)
        (tmp_path / name / "meta/info.json").write_text(name)


def test_what_it_made_and_what_is_half_made_goes(tmp_path: Path) -> None:
    _make(tmp_path, "other", f".other.1{PART}")
    _cancelled(tmp_path, lambda _: _make(tmp_path, "x", f".y.77{PART}", f".y.77{PART}_v30"))
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"other", f".other.1{PART}"}


def test_what_stood_there_before_stays(tmp_path: Path) -> None:
    _make(tmp_path, "x")
    _cancelled(tmp_path, lambda _: _make(tmp_path, "y"))
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"x"}


def test_a_dataset_that_another_made_meanwhile_stays(tmp_path: Path) -> None:
    mine = Dataset("x", tmp_path / "x", 1, 2, 30, {}, (), "degrees", {}, True, 0.0)

    def made(store: Store) -> None:
        _make(tmp_path, "x", "y")
        store.put_dataset(mine)

    _cancelled(tmp_path, made)
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"x"}


def test_a_dataset_that_is_just_being_recorded_stays(tmp_path: Path) -> None:
    _cancelled(tmp_path, lambda _: _make(tmp_path, "x", "y"), live="x")
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"x"}
