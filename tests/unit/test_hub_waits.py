"""Deadlines on a machine whose clock is set, or that sleeps, while an update waits for its merge."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_cast import TOML, stats
from hypothesis import given
from hypothesis import strategies as st
from still_hub import play_on

from zk0d.hub import merging, state
from zk0d.hub.rounds import Given, Rules, Snapshot, deadline, task_for
from zk0d.hub.service import Hub
from zk0d.hub.waits import Waits

RULES = Rules(min_nodes=1, target=3, quorum=1, deadline_s=300, versions=0, max_staleness=4)
DAY = 86400.0


def waiting(*times: float) -> Snapshot:
    buffer = tuple(Given(f"u{i}", f"n{i}", 3, 1, at) for i, at in enumerate(times))
    return Snapshot("open", 3, frozenset("abc"), buffer, opened_at=900.0, refusals={"a": (3, 1000.0)})


def test_a_clock_that_is_set_back_puts_no_deadline_off() -> None:
    waits, snapshot = Waits(), waiting(1000.0)
    assert waits.steady(snapshot, 1000.0, 50.0) == snapshot
    for waited in (0.0, 100.0, 299.0, 301.0):
        now = 1000.0 - DAY + waited
        made = waits.steady(snapshot, now, 50.0 + waited)
        at = deadline(RULES, made)
        assert at is not None and at - now == pytest.approx(300 - waited)
        assert deadline(replace(RULES, mode="sync"), made) == pytest.approx(at)
        answer = task_for(RULES, replace(made, buffer=()), "a", now)
        assert ("retry_s" in vars(answer)) == (waited < 30)  # the pause after three refusals ends as well
    assert waits.steady(snapshot, 2000.0, 400.0) == snapshot  # set right again


def test_what_a_machine_slept_through_has_passed() -> None:
    waits, snapshot = Waits(), waiting(1000.0)
    waits.steady(snapshot, 1000.0, 50.0)
    assert waits.steady(snapshot, 1000.0 + DAY, 50.5) == snapshot


def test_what_is_gone_is_forgotten() -> None:
    waits = Waits()
    for at in range(1000):
        waits.steady(waiting(float(at)), float(at), float(at))
    assert len(waits._seen) <= 4


@given(st.lists(st.tuples(st.floats(-1e6, 0), st.floats(0, 1e4)), min_size=1, max_size=9))
def test_the_order_stays_whatever_the_clock_does(steps: list[tuple[float, float]]) -> None:
    """Updates come while the clock is set back again and again: an earlier one never passes for a later one."""
    waits, wall, monotonic, snapshot = Waits(), 1e9, 0.0, waiting()
    for number, (jump, passed) in enumerate(steps):
        wall, monotonic = wall + jump + passed, monotonic + passed
        new = Given(f"u{number}", f"n{number}", 3, 1, wall)
        snapshot = replace(snapshot, buffer=(*snapshot.buffer, new))
        made = waits.steady(snapshot, wall, monotonic)
        assert all(g.admitted_at <= wall for g in made.buffer)
        times = [g.admitted_at for g in made.buffer]
        assert times == pytest.approx(sorted(times), abs=1e-3)


def with_an_update(folder: Path, play: Callable[[Hub], Awaitable[None]]) -> None:
    """Play on a hub that does not listen, with a federation of two in which one update waits for ten minutes."""

    async def gave(hub: Hub) -> None:
        for node in ("a", "b"):
            with hub.store.write() as db:
                db.execute("INSERT INTO nodes (node, label, state, key, csr, address, requested_at)"
                           " VALUES (?, ?, 'approved', ?, x'', '', 0)", (node, node, node))  # fmt: skip
            hub.ledger.members.join("fed", node, stats(0.0), [])
        await hub.federations["fed"].open_if_ready()
        zero = hub.ledger.version("fed")
        assert zero is not None
        task = hub.ledger.task("fed", "a", zero, {"batch_size": 8})
        with hub.store.write() as db:
            db.execute("INSERT INTO updates (digest, federation, task, node, base_version, payload, size, samples,"
                       " statement, signature, state, offered_at, decided_at, norm)"
                       " VALUES ('sha256:u', 'fed', ?, 'a', 0, ?, 1, 1, ?, x'', 'admitted', 1, ?, 1)",
                       (task["id"], zero["digest"], b'{"steps": 1}', hub.now()))  # fmt: skip
        hub.federations["fed"].consider()
        await play(hub)

    play_on(folder, TOML.format(nodes=2, versions=0, dtype="bfloat16", deadline_s=600), gave)


@pytest.mark.parametrize("how", ["set ahead", "set back"])
def test_a_merge_whose_deadline_has_passed_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(merging, "_LOOK_S", 0.02)

    async def play(hub: Hub) -> None:
        federation = hub.federations["fed"]
        assert "1 of 2 updates for the next, deadline in 10 min" in federation.headline()
        step = DAY if how == "set ahead" else -DAY
        hub.now = lambda: time.time() + step
        if how == "set back":
            assert "1 of 2 updates for the next, deadline in 10 min" in federation.headline()
            monkeypatch.setattr(state, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 601))
            hub.now = lambda: time.time() + step + 601
        async with asyncio.timeout(60):
            while (made := hub.ledger.version("fed")) is None or made["number"] == 0:
                await asyncio.sleep(0.01)

    with_an_update(tmp_path, play)
