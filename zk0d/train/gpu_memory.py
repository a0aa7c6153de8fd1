"""Worker: moves the GPU memory of a CUDA process to the host, so that others can have it, and back.

By the CUDA driver's checkpoint calls (CUDA Driver API, "CUDA Checkpointing"; NVIDIA driver 570 or newer) through
cuda-bindings. Not for the process itself, which only notices that its CUDA calls wait; nor for when (zk0d.daemon).
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, Protocol, cast

from zk0d.errors import WorkerError
from zk0d.worker import Message, WorkerChannel, run_worker

LOCK_MS = 4000
"""Milliseconds for work that was given to the GPU already to end; then the process runs on as if nothing had been."""
NEEDS = "it needs an NVIDIA driver of version 570 or newer, and cuda-bindings in the runtime"
RUNNING, LOCKED, CHECKPOINTED, FAILED = 0, 1, 2, 3
"""CUprocessState."""


class Driver(Protocol):
    """What is used of cuda.bindings.driver; each call gives a tuple whose first item is a CUresult."""

    CUcheckpointLockArgs: Any

    def cuCheckpointProcessGetState(self, pid: int) -> tuple[Any, ...]: ...
    def cuCheckpointProcessLock(self, pid: int, args: Any) -> tuple[Any, ...]: ...
    def cuCheckpointProcessCheckpoint(self, pid: int, args: Any) -> tuple[Any, ...]: ...
    def cuCheckpointProcessRestore(self, pid: int, args: Any) -> tuple[Any, ...]: ...
    def cuCheckpointProcessUnlock(self, pid: int, args: Any) -> tuple[Any, ...]: ...


def load() -> Driver:
    """The bindings. Raises WorkerError where they, or the calls in them, are not there."""
    try:
        driver = importlib.import_module("cuda.bindings.driver")  # large, and absent where there is no NVIDIA GPU
    except ImportError as error:
        raise WorkerError(f"GPU memory cannot be moved: {error}", NEEDS) from error
    if not hasattr(driver, "cuCheckpointProcessCheckpoint"):
        raise WorkerError("GPU memory cannot be moved: cuda-bindings is too old", NEEDS)
    return cast(Driver, driver)


def _call(driver: Driver, name: str, *args: Any) -> Any:
    """One call → its value, if it has one. Raises WorkerError with the driver's name for what is wrong."""
    try:
        status, *value = getattr(driver, name)(*args)
    except RuntimeError as error:  # no libcuda.so.1, or one without this call
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise WorkerError(f"GPU memory cannot be moved: {first}", NEEDS) from error
    if int(status):
        raise WorkerError(f"GPU memory cannot be moved: {name}: {getattr(status, 'name', status)}", NEEDS)
    return value[0] if value else None


def state(driver: Driver, pid: int) -> int:
    return int(_call(driver, "cuCheckpointProcessGetState", pid))


def leave(driver: Driver, pid: int) -> None:
    """Move the memory of `pid` to the host. Raises WorkerError; the process then runs on with its memory."""
    now = state(driver, pid)
    if now == FAILED:
        raise WorkerError(f"process {pid} is broken: CUDA could not move its memory before", "it must be killed")
    if now == RUNNING:
        args = driver.CUcheckpointLockArgs()
        args.timeoutMs = LOCK_MS
        _call(driver, "cuCheckpointProcessLock", pid, args)
    if now != CHECKPOINTED:
        try:
            _call(driver, "cuCheckpointProcessCheckpoint", pid, None)
        except WorkerError:
            if state(driver, pid) == LOCKED:
                _call(driver, "cuCheckpointProcessUnlock", pid, None)
            raise


def come_back(driver: Driver, pid: int) -> None:
    """Move it back, and let the process use the GPU again. Raises WorkerError, for a GPU that is full, say."""
    now = state(driver, pid)
    if now == FAILED:
        raise WorkerError(f"process {pid} is broken: CUDA could not move its memory", "it must be killed")
    if now == CHECKPOINTED:
        _call(driver, "cuCheckpointProcessRestore", pid, None)
    if now != RUNNING:
        _call(driver, "cuCheckpointProcessUnlock", pid, None)


def main(job: Message, channel: WorkerChannel) -> Message:
    """Job `{"action": "leave"|"return", "pid": N}`; result `{"pid"}`."""
    pid = int(job["pid"])
    (leave if job["action"] == "leave" else come_back)(load(), pid)
    return {"pid": pid}


if __name__ == "__main__":
    sys.exit(run_worker(main))
