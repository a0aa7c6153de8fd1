"""A real zk0d for tests: its process, its state folder, and zk0ctl run against it. Everything waits with a deadline."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from zk0d.control import call

CONFIG = """
[train]
device = "cpu"
threads = 1
cpu = "share"
checkpoint_every_s = 1
[link]
max_upload = "unlimited"
[robot]
follower = "virtual:Touch"
[robot.cameras.front]
height = 64
width = 64
"""


STOP_S = 5.0 + 10.0
"""A stop is to take five seconds; a machine that does much else, or stands still for some, may need more. One that waits
for a time-out takes longer still."""


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """The first true value of `condition`; fails naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
    return value


class Daemon:
    """zk0d on a state folder. A context manager: entering starts it, leaving ends it and whatever it left."""

    def __init__(self, state: Path, config: str = CONFIG, **environ: str) -> None:
        self.state = state
        self.socket = state / "control.sock"
        self.environ = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", **environ}
        self.process: subprocess.Popen[bytes] | None = None
        state.mkdir(exist_ok=True)
        settle = "" if "[idle]" in config else "[idle]\nsettle_s = 0\nforeign_cpu = 0\n"
        (state / "zk0d.toml").write_text(config + "\n" + settle)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self.process is not None and self.process.poll() is None:
            self.terminate()
        for mark in (self.state / "work/running").glob("*"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(mark.name), signal.SIGKILL)

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self.state / "daemon.out").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "zk0d.daemon.main", "--foreground", "--state", str(self.state)],
                env=self.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        wait_until(self._answers, "zk0d answers")

    def _answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, (self.state / "daemon.out").read_text()[-2000:]
        try:
            call(self.socket, {"op": "status"}, timeout=5)
        except Exception:
            return False
        return True

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(60)

    def terminate(self) -> float:
        """SIGTERM; seconds until it had ended."""
        assert self.process is not None
        begin = time.monotonic()
        self.process.terminate()
        self.process.send_signal(signal.SIGCONT)  # a test that failed while it was stopped must not leave it so
        self.process.wait(60)
        return time.monotonic() - begin

    def stop(self) -> None:
        """SIGSTOP, and wait until every thread of it stands still: the signal alone only asks for that."""
        os.kill(self.pid, signal.SIGSTOP)
        wait_until(self._stands, "zk0d is stopped")

    def _stands(self) -> bool:
        try:
            stats = [path.read_text() for path in Path(f"/proc/{self.pid}/task").glob("*/stat")]
        except OSError:  # a thread that ended meanwhile
            return False
        return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)

    def ask(self, op: str, **request: Any) -> Any:
        return call(self.socket, {"op": op, **request}, timeout=60)

    def status(self) -> dict[str, Any]:
        return dict(self.ask("status"))

    def ctl(self, *words: str, timeout: float = 120) -> Ran:
        """Run zk0ctl against it and wait."""
        done = subprocess.run(
            self.command(*words), env=self.environ, capture_output=True, text=True, timeout=timeout, check=False
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """Run zk0ctl beside the test; the caller waits for it."""
        return subprocess.Popen(
            self.command(*words), env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "zk0d.ctl.main", "--state", str(self.state), *words]

    def worker(self, module: str) -> psutil.Process | None:
        """The running worker of that module."""
        for child in psutil.Process(self.pid).children():
            try:
                if module in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                    return child
            except psutil.NoSuchProcess:
                continue
        return None

    def events(self, kind: str = "") -> list[str]:
        """Texts of the daemon's history, oldest first."""
        found: list[dict[str, Any]] = []
        call(self.socket, {"op": "logs", "count": 1000}, found.append, timeout=60)
        return [e["text"] for e in found if not kind or e["kind"] == kind]


def over(process: psutil.Process) -> bool:
    """Whether a process has ended: it may be gone between any two looks at it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def loads(ran: Ran) -> Any:
    return json.loads(ran.out)
