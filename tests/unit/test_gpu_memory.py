"""Moving a process's GPU memory: the driver's states with a doubled driver, and on a GPU machine for real.

`ZK0_GPU=1 pytest tests/unit/test_gpu_memory.py` runs the real one; it needs an NVIDIA driver of 570 or newer.
"""

from __future__ import annotations

import os
import subprocess
import sys
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import pytest

from zk0d.errors import WorkerError
from zk0d.train import gpu_memory
from zk0d.train.gpu_memory import CHECKPOINTED, FAILED, LOCKED, RUNNING, come_back, leave, state


class Status(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_ILLEGAL_STATE = 401
    CUDA_ERROR_NOT_READY = 600


class FakeDriver:
    """One process as the CUDA driver sees it (CUDA Driver API, "CUDA Checkpointing")."""

    CUcheckpointLockArgs = SimpleNamespace

    def __init__(self, now: int = RUNNING, **failing: Status) -> None:
        self.now, self.failing, self.calls = now, failing, list[str]()

    def _step(self, name: str, before: int, after: int) -> tuple[Status]:
        self.calls.append(name)
        if name in self.failing:
            return (self.failing[name],)
        if self.now != before:
            return (Status.CUDA_ERROR_ILLEGAL_STATE,)
        self.now = after
        return (Status.CUDA_SUCCESS,)

    def cuCheckpointProcessGetState(self, pid: int) -> tuple[Status, int]:
        return Status.CUDA_SUCCESS, self.now

    def cuCheckpointProcessLock(self, pid: int, args: Any) -> tuple[Status]:
        assert args.timeoutMs > 0  # without one, a hanging kernel would hang us
        return self._step("lock", RUNNING, LOCKED)

    def cuCheckpointProcessCheckpoint(self, pid: int, args: Any) -> tuple[Status]:
        return self._step("checkpoint", LOCKED, CHECKPOINTED)

    def cuCheckpointProcessRestore(self, pid: int, args: Any) -> tuple[Status]:
        return self._step("restore", CHECKPOINTED, LOCKED)

    def cuCheckpointProcessUnlock(self, pid: int, args: Any) -> tuple[Status]:
        return self._step("unlock", LOCKED, RUNNING)


@pytest.mark.parametrize("now", [RUNNING, LOCKED, CHECKPOINTED])
def test_out_and_back_from_wherever_the_last_mover_was_killed(now: int) -> None:
    driver = FakeDriver(now)
    leave(driver, 7)
    assert driver.now == CHECKPOINTED
    leave(driver, 7)
    come_back(driver, 7)
    assert driver.now == RUNNING
    come_back(driver, 7)
    assert driver.calls[-2:] == ["restore", "unlock"]


def test_what_cannot_be_moved_runs_on() -> None:
    busy = FakeDriver(lock=Status.CUDA_ERROR_NOT_READY)
    with pytest.raises(WorkerError, match="cuCheckpointProcessLock: CUDA_ERROR_NOT_READY"):
        leave(busy, 7)
    assert busy.now == RUNNING
    small = FakeDriver(checkpoint=Status.CUDA_ERROR_OUT_OF_MEMORY)  # the host has no room for it
    with pytest.raises(WorkerError, match="OUT_OF_MEMORY"):
        leave(small, 7)
    assert small.now == RUNNING and small.calls == ["lock", "checkpoint", "unlock"]


def test_a_full_gpu_and_a_broken_process() -> None:
    full = FakeDriver(CHECKPOINTED, restore=Status.CUDA_ERROR_OUT_OF_MEMORY)
    with pytest.raises(WorkerError, match="cuCheckpointProcessRestore"):
        come_back(full, 7)
    assert full.now == CHECKPOINTED
    for move in (leave, come_back):
        with pytest.raises(WorkerError, match="is broken"):
            move(FakeDriver(FAILED), 7)


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="there is a driver here")
def test_without_a_driver_it_says_what_is_missing() -> None:
    with pytest.raises(WorkerError, match="GPU memory cannot be moved") as failed:
        leave(gpu_memory.load(), os.getpid())
    assert "570" in failed.value.hint


COMPUTING = """
import sys, torch
a = torch.ones(64 << 20, device="cuda")  # 256 MiB
print("ready", flush=True)
for line in sys.stdin:
    a += 1
    print(float(a.mean()), flush=True)
"""


@pytest.mark.skipif(not os.environ.get("ZK0_GPU"), reason="needs an NVIDIA GPU: set ZK0_GPU=1")
def test_on_a_real_gpu_the_memory_leaves_and_the_numbers_come_back() -> None:
    import torch

    driver = gpu_memory.load()
    with subprocess.Popen(
        [sys.executable, "-c", COMPUTING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as p:
        assert p.stdin is not None and p.stdout is not None
        assert p.stdout.readline() == "ready\n"
        before = torch.cuda.mem_get_info()[0]
        leave(driver, p.pid)
        assert state(driver, p.pid) == CHECKPOINTED
        assert torch.cuda.mem_get_info()[0] - before > 200 << 20
        come_back(driver, p.pid)
        assert state(driver, p.pid) == RUNNING
        p.stdin.write("\n")
        p.stdin.flush()
        assert float(p.stdout.readline()) == 2.0
        p.stdin.close()
