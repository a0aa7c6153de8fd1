"""What every test gets: no model hub, one thread per maths library, and a gate against leaks.

A test that leaves a thread, a child process or a file descriptor behind fails, whatever else it checked.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# What a script runs in its background is born deaf to Ctrl-C, and so would be all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more about the machine than about the code.
settings.register_profile("zk0", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("zk0")

REPOSITORY = Path(__file__).parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data" / "so101_teleop"

# Threads that libraries keep for the whole process; they are not a test's to end.
_LASTING = (
    "pytest_timeout",
    "tqdm_monitor",
    "ThreadPoolExecutor-libs",
    "asyncio_",
    "QueueFeederThread",
    "TokenizersParallel",
    "pymp-",
)
# Descriptors that libraries open once and keep (EGL devices, CUDA probes, pyarrow's pool, urandom, event pollers).
_LASTING_FDS = (
    "/dev/dri",
    "/dev/nvidia",
    "/dev/urandom",
    "/dev/null",
    "/proc/",
    "/sys/",
    "/memfd:",
    "/usr/",
    "anon_inode:[eventfd]",
)


def _threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if not t.name.startswith(_LASTING)}


def _children() -> set[int]:
    return {p.pid for p in psutil.Process().children(recursive=True)}


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if not target.startswith(_LASTING_FDS) and ".venv" not in target:
            found[int(name)] = target
    return found


@pytest.fixture(autouse=True)
def leak_gate(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves threads, child processes or descriptors. `@pytest.mark.may_leak("why")` lifts it."""
    if request.node.get_closest_marker("may_leak"):
        yield
        return
    threads, children, descriptors = _threads(), _children(), _descriptors()
    yield
    deadline = time.monotonic() + 20  # for what is just ending, on a machine that halts for some of them
    while True:
        left_threads = {t for t in _threads() - threads if t.is_alive()}
        left_children = _children() - children
        left_fds = {n: t for n, t in _descriptors().items() if descriptors.get(n) != t}
        if not (left_threads or left_children or left_fds):
            return
        if time.monotonic() > deadline:
            break
        gc.collect()
        threading.Event().wait(0.02)
    pytest.fail(f"left behind: threads {left_threads}, processes {left_children}, descriptors {left_fds}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("needs"):
            missing = [name for name in mark.args if importlib.util.find_spec(name) is None]
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"{' and '.join(missing)} not installed here"))


@pytest.fixture
def shared_teleop() -> Path:
    """The folder with real SO-101 teleoperation beside the checkout; skips, saying so, where it is absent."""
    if not (SHARED_DATA / "episodes_000-039.parquet").exists():
        pytest.skip(f"real teleoperation is not here: {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def station() -> Iterator[Any]:
    """A virtual pair behind two pseudo-terminals, in the test's process and in wall-clock time."""
    from robot.virtual.spec import StationSpec
    from robot.virtual.station import VirtualStation

    with VirtualStation(StationSpec("Touch", clock="wall")) as bench:
        yield bench
