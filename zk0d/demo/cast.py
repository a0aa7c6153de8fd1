"""The processes of the demo, and of the end-to-end tests: a hub and nodes to start, ask, stop and kill."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zk0d import durable
from zk0d.errors import Zk0Error

STOP_S = 5.0


def free_port() -> int:
    """A TCP port on loopback that nobody listens on right now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def run(module: str, *arguments: str, timeout_s: float = 300, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run one of our commands to its end. Raises Zk0Error with what it printed when `check` and its status is not 0."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=timeout_s, env=environment()
    )
    if check and done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise Zk0Error(f"{module} {' '.join(arguments[:6])} ended with status {done.returncode}: {said}")
    return done


def environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}


class Server(ABC):
    """One long-running process with a log file."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """The command line that starts it."""

    @property
    def pid(self) -> int:
        if self._process is None:
            raise Zk0Error(f"{self.name} was not started")
        return self._process.pid

    def start(self, ready: Callable[[], bool], timeout_s: float = 30) -> None:
        """Start, and return when `ready()`; raises Zk0Error with the end of the log if it ends or takes too long."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment()
            )
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                state = "ended" if self._process.poll() is not None else f"not ready after {timeout_s:.0f} s"
                self.kill()
                raise Zk0Error(f"{self.name} {state}; the end of {self.log}:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> float:
        """SIGTERM; returns the seconds it took. SIGKILL (and an error) if it takes more than STOP_S."""
        if self._process is None:
            return 0.0
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S + 5)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Zk0Error(f"{self.name} did not end within {STOP_S + 5:.0f} s of SIGTERM; see {self.log}") from None
        self._process = None
        return time.monotonic() - began

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Hub(Server):
    """`zk0-hub serve` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__("zk0-hub", folder / "log" / "console.log")
        self.folder = folder

    def command(self) -> list[str]:
        return [sys.executable, "-m", "zk0d.hub.main", "--dir", str(self.folder), "serve"]

    def admin(self, *arguments: str, timeout_s: float = 300) -> str:
        """Run `zk0-hub ARGUMENTS` and return what it printed."""
        return run("zk0d.hub.main", "--dir", str(self.folder), *arguments, timeout_s=timeout_s).stdout

    def answers(self) -> bool:
        return run("zk0d.hub.main", "--dir", str(self.folder), "status", "--json", check=False).returncode in (0, 2)

    def versions(self, federation: str) -> list[dict[str, Any]]:
        """The lines of the federation's metrics.jsonl, oldest first; an unfinished last line is not there yet."""
        path = self.folder / "federations" / federation / "metrics.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


class Node(Server):
    """`zk0d --foreground` with its own state folder, arm and configuration."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name, folder / "log" / "console.log")
        self.folder = folder

    def command(self) -> list[str]:
        config = self.folder / "zk0d.toml"
        return [
            sys.executable,
            "-m",
            "zk0d.daemon.main",
            "--foreground",
            "--state",
            str(self.folder),
            "--config",
            str(config),
        ]

    @property
    def socket(self) -> Path:
        return self.folder / "control.sock"

    def configure(
        self, robot: str, leader: str, cameras: dict[str, tuple[int, int]], train: Sequence[str] = ('cpu = "share"',)
    ) -> None:
        """Write zk0d.toml: the arm, its leader and its cameras; `train`: lines of its [train] table."""
        lines = ["[robot]", 'type = "so101"', f'follower = "{robot}"', f'leader = "{leader}"', f'id = "{self.name}"']
        for camera, (height, width) in cameras.items():
            lines += [f"[robot.cameras.{camera}]", f"height = {height}", f"width = {width}"]
        # Nobody watches for a minute that nothing happens, and the other nodes here are not the machine's owner.
        lines += ["[idle]", "settle_s = 0", "foreign_cpu = 0", "[train]", *train]
        durable.write_text(self.folder / "zk0d.toml", "\n".join(lines) + "\n")

    def ctl(self, *arguments: str, timeout_s: float = 300, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `zk0ctl ARGUMENTS` against this node."""
        return run("zk0d.ctl.main", "--socket", str(self.socket), *arguments, timeout_s=timeout_s, check=check)

    def status(self) -> dict[str, Any]:
        done = self.ctl("status", "--json", check=False)
        return dict(json.loads(done.stdout)) if done.stdout.strip() else {}

    def answers(self) -> bool:
        return self.ctl("status", "--json", check=False).returncode in (0, 2)

    def follow(self, *arguments: str, on_line: Callable[[str], None], timeout_s: float = 600) -> int:
        """Run `zk0ctl ARGUMENTS`, hand over each line it prints as it comes; returns its exit status."""
        process = subprocess.Popen(
            [sys.executable, "-m", "zk0d.ctl.main", "--socket", str(self.socket), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, env=environment(),
        )  # fmt: skip
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    on_line(line.rstrip())
            return process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                process.kill()
                process.wait()
