"""The loop around the arbiter with real trainers that fail: counted, paused, given up where anyone can see it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zk0d.daemon import trainer_job, training
from zk0d.daemon.arbiter import Action, Activity, LinkSignal
from zk0d.daemon.config import Config
from zk0d.daemon.paces import Paces
from zk0d.daemon.signals.reading import Level, Reading
from zk0d.daemon.store import Hub, Store, Task
from zk0d.daemon.training import Training
from zk0d.daemon.workers import KINDS, Workers
from zk0d.moments import clock

TASK = {"id": "t1", "federation": "pick", "version": 0, "local_steps": 1}


class Source:
    """A task whose model spec is not there, so that the real trainer ends with an error before it loads anything."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def job(self, task: Task) -> dict[str, Any]:
        return {"spec": "/nonexistent/spec.json", "local_steps": 1, "batch_size": 1, "lr": 0.0, "mu": 0.0, "seed": 0}

    def blocked(self, task: Task) -> tuple[str, str]:
        return "", ""

    async def trained(self, task: Task, result: dict[str, Any]) -> None:
        raise AssertionError("it cannot be trained")

    def given_up(self, task: Task, reason: str) -> None:
        self.reasons.append(reason)

    def put_off(self, task: Task, reason: str, until: float) -> None:
        self.reasons.append(f"put off: {reason}")

    def link_signal(self) -> LinkSignal:
        return LinkSignal()

    def no_task(self) -> tuple[str, float | None]:
        return "", None


async def until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {seconds:g} s: {what}") from None


def test_a_task_is_given_up_visibly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_BACKOFF_S", (0.01, 0.02))
    (tmp_path / "zk0d.toml").write_text("[train]\ntries = 2\n")
    asyncio.run(_give_up(tmp_path))


async def _give_up(folder: Path) -> None:
    store, source = Store(folder / "zk0d.db"), Source()
    store.set_hub(Hub("h", "host", 1, "node-1", b"k", 1.0))
    store.join("pick")
    store.add_task(TASK)
    store.set_task("t1", state="ready")
    config = Config.load([folder / "zk0d.toml"])
    busy = [Activity("recording", "alice", 1.0)]
    loop = Training(store, config, Workers(folder, config), source, lambda: tuple(busy), lambda decision: None)
    running = asyncio.create_task(loop.run(lambda: None))
    try:
        await until(
            lambda: [e for e in store.events(9) if "paused: recording by alice" in e["text"]], "the recording is told"
        )
        assert loop.trainer_state == "none" and not (folder / "log/trainer.log").exists()
        busy.clear()
        loop.wake()
        await until(lambda: source.reasons, "the task is given up")
        task = store.task("t1")
        assert task is not None and task.state == "given_up" and task.deaths == 2
        assert "died 2 times" in task.reason and "spec.json" in task.reason
        assert [e["text"] for e in store.events(100) if "(1 of 2)" in e["text"]]
        await until(lambda: loop.decision.rule == "datasets", "without a task the next thing missing is told")
    finally:
        running.cancel()
        loop.begin_close()
        await loop.close()
        store.close()


def test_a_trainer_that_cannot_even_start_is_given_up_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, say. Taken for a trainer that is starting, it would keep the loop waiting for ever."""
    monkeypatch.setattr(training, "_BACKOFF_S", (0.01, 0.02))
    (tmp_path / "zk0d.toml").write_text("[train]\ntries = 2\n")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "trainer").write_text("not a folder")
    asyncio.run(_cannot_start(tmp_path))


async def _cannot_start(folder: Path) -> None:
    store, source = Store(folder / "zk0d.db"), Source()
    store.add_task(TASK)
    store.set_task("t1", state="ready")
    config = Config.load([folder / "zk0d.toml"])
    loop = Training(store, config, Workers(folder, config), source, lambda: (), lambda decision: None)
    running = asyncio.create_task(loop.run(lambda: None))
    try:
        await until(lambda: source.reasons, "the task is given up", seconds=10)
        assert "cannot be prepared" in source.reasons[0] and loop.trainer_state == "none"
    finally:
        running.cancel()
        loop.begin_close()
        await loop.close()
        store.close()


def test_a_task_goes_on_with_the_threads_it_was_begun_with(tmp_path: Path) -> None:
    """Another number of threads adds up in another order, and the run would not be bitwise the same any more."""
    folder = tmp_path / "work" / "trainer" / "x"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "job.json").write_text('{"threads": 3, "datasets": []}')
    assert trainer_job.begun_with(folder) == {}  # nothing done yet: the settings count
    (folder / "checkpoint" / "checkpoint.pt").touch()
    assert trainer_job.begun_with(folder)["threads"] == 3


def test_a_task_goes_on_with_the_episodes_it_was_begun_with(tmp_path: Path) -> None:
    """Else an episode recorded since would make it another run, and its checkpoint worth nothing."""

    def one(root: str, *episodes: int, **rename: str) -> dict[str, Any]:
        return {"root": root, "episodes": list(episodes), "rename": rename}

    begun = [one("/cups", 0, 1), one("/bowls", 2)]
    more = [one("/bowls", 1, 2, 3), one("/cups", 0, 1, 2), one("/new", 0)]
    assert trainer_job.kept(begun, more) == begun
    out = [one("/cups", 1, 2), one("/bowls", 2)]
    assert trainer_job.kept(begun, out) == out, "a person has taken an episode out"
    assert trainer_job.kept(begun, out[1:]) == out[1:], "a dataset is gone"
    renamed = [one("/cups", 0, 1, top="front"), one("/bowls", 2)]
    assert trainer_job.kept(begun, renamed) == renamed
    older = [{"root": "/cups", "episodes": None, "rename": {}}]
    assert trainer_job.kept(older, more) == more and trainer_job.kept(None, more) == more


class StubbornWorker:
    """A trainer that does not leave when asked: frozen and thawed it is, and its `stop` waits."""

    pid, frozen = 0, False

    def __init__(self) -> None:
        self.said: list[str] = []

    def freeze(self) -> None:
        self.frozen = True
        self.said.append("freeze")

    def thaw(self) -> None:
        self.frozen = False
        self.said.append("thaw")

    def send(self, cmd: str) -> None:
        self.said.append(cmd)

    async def stop(self, grace_s: float, cmd: str) -> None:
        self.said.append(cmd)
        self.thaw()
        await asyncio.sleep(grace_s)
        self.said.append("kill")


def test_a_person_does_not_wait_for_a_trainer_that_is_leaving(tmp_path: Path) -> None:
    async def scene() -> None:
        store = Store(tmp_path / "zk0d.db")
        store.add_task(TASK)
        store.set_task("t1", state="ready")
        busy = [Activity("rollout", "alice", 1.0)]
        (tmp_path / "zk0d.toml").write_text('[train]\ngpu_memory = "leave"\n')
        config = Config.load([tmp_path / "zk0d.toml"])
        loop = Training(store, config, Workers(tmp_path, config), Source(), lambda: tuple(busy), lambda decision: None)
        worker = loop._worker = StubbornWorker()  # type: ignore[assignment]
        loop.tick()
        await asyncio.sleep(0)
        assert worker.said == ["yield", "thaw"]
        busy[:] = [Activity("recording", "alice", 1.0)]
        loop.tick()
        assert worker.said == ["yield", "thaw", "freeze"] and worker.frozen
        await asyncio.sleep(0)
        busy.clear()
        loop.tick()  # thawed, it goes on leaving
        assert worker.said == ["yield", "thaw", "freeze", "thaw"]
        store.close()

    asyncio.run(scene())


DEAF = """
import time
from zk0d.worker import WorkerChannel
channel = WorkerChannel()
channel.emit("progress", step=1, steps=9)
time.sleep(600)
"""


def test_a_trainer_that_ignores_the_yield_is_killed_and_has_not_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real process that hears nothing: the hours end, it is asked, then killed; it starts again in the next ones."""
    (tmp_path / "deaf_trainer.py").write_text(DEAF)
    (tmp_path / "zk0d.toml").write_text("[idle]\nsettle_s = 0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setitem(KINDS, "trainer", replace(KINDS["trainer"], module="deaf_trainer"))
    monkeypatch.setattr(training, "SAVE_GRACE_S", 0.2)

    async def scene() -> None:
        store = Store(tmp_path / "zk0d.db")
        store.add_task(TASK)
        store.set_task("t1", state="ready")
        config = Config.load([tmp_path / "zk0d.toml"])
        workers = Workers(tmp_path, config)
        over = Reading("hours", "outside the hours for training", Level.STOP, hard=True)
        readings: list[Reading] = []
        loop = Training(
            store, config, workers, Source(), tuple, lambda decision: None, lambda: tuple(readings)
        )  # fmt: skip
        running = asyncio.create_task(loop.run(lambda: None))
        await until(lambda: loop.progress.get("step") == 1, "it trains")
        (first,) = workers.pids()
        readings.append(over)
        loop.wake()
        await until(lambda: loop.trainer_state == "none", "it is ended")
        assert not Path(f"/proc/{first}").exists() and loop.decision.rule == "hours"
        task = store.task("t1")
        assert task is not None and (task.state, task.deaths) == ("ready", 0)
        readings.clear()
        loop.wake()
        await until(lambda: workers.pids() not in ([], [first]), "it starts again")
        running.cancel()
        loop.begin_close()
        for worker in list(workers._running):
            await worker.kill()
        await loop.close()
        store.close()

    asyncio.run(scene())


def test_a_full_disk_does_not_end_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        store = Store(tmp_path / "zk0d.db")
        turns: list[int] = []
        config = Config.load([])
        loop = Training(store, config, Workers(tmp_path, config), Source(), tuple, lambda decision: None)

        def full(*_: object, **fields: object) -> None:
            turns.append(1)
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(store, "event", full)
        running = asyncio.create_task(loop.run(lambda: full() if len(turns) < 3 else None))
        await until(lambda: loop.wake() or len(turns) >= 3, "it goes on")  # type: ignore[func-returns-value]
        assert not running.done()
        running.cancel()
        store.close()

    asyncio.run(scene())


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="a machine whose driver may well do it")
def test_where_gpu_memory_cannot_be_moved_the_trainer_leaves(tmp_path: Path) -> None:
    """The real mover, on a machine without an NVIDIA driver: said once, and from then on the trainer is asked to leave."""

    async def scene() -> None:
        store = Store(tmp_path / "zk0d.db")
        store.add_task(TASK)
        store.set_task("t1", state="ready")
        busy = (Activity("rollout", "alice", time.time()),)
        config = Config.load([])
        workers = Workers(tmp_path, config)
        loop = Training(store, config, workers, Source(), lambda: busy, lambda decision: None)
        worker = loop._worker = StubbornWorker()  # type: ignore[assignment]
        worker.pid = os.getpid()
        running = asyncio.create_task(loop.run(lambda: None))
        await until(lambda: "yield" in worker.said, "it is asked to leave")
        running.cancel()
        assert worker.said[:3] == [
            "thaw",
            "freeze",
            "yield",
        ]  # awake for the driver, stopped again, then awake to leave
        assert not loop.policy.parks and "cannot be moved" in loop.parking.reason
        assert [e["text"] for e in store.events(9) if "leaves when its memory is needed" in e["text"]]
        await workers.stop_all()
        store.close()

    asyncio.run(scene())


def test_a_parked_trainer_is_fetched_back_before_it_goes_on_or_leaves(tmp_path: Path) -> None:
    """The mover's process is doubled here: there is no GPU to move anything from."""

    async def scene() -> None:
        store = Store(tmp_path / "zk0d.db")
        store.add_task(TASK)
        store.set_task("t1", state="ready")
        busy = [Activity("rollout", "alice", time.time())]
        config = Config.load([])
        loop = Training(store, config, Workers(tmp_path, config), Source(), lambda: tuple(busy), lambda decision: None)
        worker = loop._worker = StubbornWorker()  # type: ignore[assignment]
        moved = asyncio.Event()

        async def move(action: str, pid: int, seconds: float) -> None:
            await moved.wait()
            worker.said.append(action)

        loop.parking._move = move  # type: ignore[method-assign]
        loop.tick()
        await asyncio.sleep(0)
        busy[:] = [Activity("recording", "alice", time.time())]
        loop.tick()  # while its memory is on the way, nobody touches it: not even for a recording
        assert worker.said == ["thaw"]
        moved.set()
        await until(lambda: loop.parking.holds(loop._worker), "it is parked")
        assert worker.said == ["thaw", "leave", "freeze"] and loop.signals().parked
        loop.tick()
        assert worker.frozen and worker.said[3:] == []
        busy.clear()
        assert loop.tick().action is Action.TRAIN
        await until(lambda: not loop.parking.busy(), "it is back")
        assert worker.said[3:] == ["thaw", "return"] and not worker.frozen and not loop.signals().parked
        loop.tick()
        assert loop.signals().frozen_since is None
        store.close()

    asyncio.run(scene())


def test_a_task_that_cannot_end_in_time_is_not_begun_and_a_late_one_is_declared_partial(tmp_path: Path) -> None:
    async def scene() -> None:
        store, source, now = Store(tmp_path / "zk0d.db"), Source(), time.time()
        store.put("paces", {"pick": {"step_s": 60.0, "load_s": 5.0}})
        store.add_task({**TASK, "local_steps": 100, "due_at": now + 30})
        store.set_task("t1", state="ready")
        config = Config.load([])
        loop = Training(store, config, Workers(tmp_path, config), source, tuple, lambda decision: None)
        decision = loop.tick()
        assert "1.7 h left" in decision.sentence and loop.trainer_state == "none"
        assert source.reasons == [f"put off: it takes about 1.7 h, and the hub's deadline is {clock(now + 30, now)}"]

        store.add_task({**TASK, "local_steps": 100, "due_at": now + 65})
        store.set_task("t1", state="ready", step=50)  # begun some day: it goes on, and ends where it is when time is up
        worker = loop._worker = StubbornWorker()  # type: ignore[assignment]
        loop.tick()
        loop.tick()
        assert worker.said == ["conclude"]
        store.close()

    asyncio.run(scene())


def test_training_time_is_kept_by_federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("zk0d.daemon.paces.time", SimpleNamespace(monotonic=lambda: now))
    store = Store(tmp_path / "zk0d.db")
    store.add_task({**TASK, "local_steps": 100})
    task = store.task("t1")
    assert task is not None
    paces = Paces(store)
    assert paces.left_s(task) is None
    paces.begin(task)
    for step in (1, 2, 3):
        now += 0.01
        paces.event({"event": "progress", "step": step})
    paces.event({"event": "checkpoint", "step": 3, "seconds": 2.5})
    left = paces.left_s(task)
    assert left is not None and 0.9 < left < 10 and paces.save_s() > 2.5
    paces.end()
    assert Paces(store).of("pick") == paces.of("pick") and store.get("trained_s")["pick"] > 0.01
    store.close()
