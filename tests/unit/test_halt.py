"""Every thread of a process is stopped by itself, whatever the others do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from zk0d.halt import stop_threads

BUSY = """
import threading
def work():
    while True:
        pass
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
work()
"""


def states(pid: int) -> list[str]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [(task / "stat").read_text().rpartition(") ")[2][0] for task in tasks]


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def test_all_threads_stop_and_go_on() -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        try:
            for _ in range(3):
                stop_threads(process.pid)
                until(lambda: states(process.pid) == ["T"] * 4, "not all of them stand still")
                os.kill(process.pid, signal.SIGCONT)  # and no stop is left that one of them has still to take
                until(lambda: "T" not in states(process.pid), "not all of them go on")
        finally:
            process.kill()
    stop_threads(process.pid)  # it is gone
