"""How far a trainer steps back, on a real process."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from zk0d.daemon import units, workers
from zk0d.daemon.config import Config
from zk0d.daemon.workers import Workers
from zk0d.errors import WorkerError


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as running:
        yield running
        running.kill()


@pytest.mark.parametrize(("idle", "policy"), [(True, os.SCHED_IDLE), (False, os.SCHED_BATCH)])
def test_a_trainer_gets_what_nobody_else_wants(process: subprocess.Popen[bytes], idle: bool, policy: int) -> None:
    workers._step_back(process.pid, 10, idle=idle)
    assert os.sched_getscheduler(process.pid) == policy
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == 10
    assert Path(f"/proc/{process.pid}/oom_score_adj").read_text() == "900\n"
    Workers.hurry(process.pid)
    permitted = (
        os.SCHED_OTHER if os.geteuid() == 0 or not idle else policy
    )  # sched(7): leaving SCHED_IDLE takes a right
    assert os.sched_getscheduler(process.pid) == permitted


def test_the_units_say_the_same_and_set_limits() -> None:
    units = Path(__file__).resolve().parents[2] / "systemd"
    train, theirs = (units / "zk0d-train@.service").read_text(), (units / "zk0-train.slice").read_text()
    for line in ("Slice=zk0-train.slice", "IOSchedulingClass=idle", "OOMScoreAdjust=900"):
        assert line in train.splitlines(), line
    for line in ("CPUWeight=idle", "IOWeight=10", "MemoryHigh=80%"):
        assert line in theirs.splitlines(), line
    live = (units / "zk0d-record@.service").read_text()
    assert "Nice=-10" in live.splitlines() and "IOSchedulingClass=best-effort" in live.splitlines()


def test_one_that_is_gone_is_no_trouble(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    workers._step_back(process.pid, 10, idle=True)
    Workers.hurry(process.pid)


def test_a_name_that_would_be_another_folder_as_a_unit_is_refused_everywhere(tmp_path: Path) -> None:
    """A dash in an instance's name is a slash to systemd: the unit would look for a folder that nobody made."""
    assert units.unit_name("gpu_memory", "leave_18a") == "zk0d-train@gpu_memory-leave_18a.service"
    for name in ("adopt-18a", "../other", "a b", "", "x" * 101):
        with pytest.raises(WorkerError, match="cannot be a worker's name"):
            asyncio.run(Workers(tmp_path, Config.load([])).start("recorder", name, {}, lambda event: None))
    assert not (tmp_path / "work").exists()
