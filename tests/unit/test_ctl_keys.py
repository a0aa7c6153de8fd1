"""Single keys: what they mean, and that the terminal is as it was before, whatever ends the command. On a real pty."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from zk0d.ctl.keys import meaning

CHILD = """
import os, sys, time
from zk0d.ctl.keys import keys_steer
with keys_steer(lambda wish: os.write(1, f"wish {wish}\\n".encode())):  # two threads' prints could mix
    os.write(1, b"ready\\n")
    while True:
        line = open(sys.argv[1]).read()
        if line == "end":
            break
        if line == "fail":
            raise SystemExit(3)
        time.sleep(0.02)
"""


class Terminal:
    """A child with our pseudo-terminal as its own."""

    def __init__(self, folder: Path) -> None:
        self.master, slave = pty.openpty()
        self.order = folder / "order"
        self.order.write_text("")
        self.slave = os.ttyname(slave)
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(self.order)], stdin=slave, stdout=slave, stderr=slave
        )
        self._fd = slave
        self.seen = ""

    def until(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 60
        while not done():
            assert time.monotonic() < deadline, (what, self.seen)
            if select.select([self.master], [], [], 0.02)[0]:
                self.seen += os.read(self.master, 1024).decode()

    def raw(self) -> bool:
        return not termios.tcgetattr(self._fd)[3] & termios.ICANON

    def close(self) -> None:
        self.process.kill()
        self.process.wait(60)
        os.close(self.master)
        os.close(self._fd)


@pytest.fixture
def terminal(tmp_path: Path):  # type: ignore[no-untyped-def]
    opened = Terminal(tmp_path)
    opened.until(lambda: "ready" in opened.seen, "ready")
    yield opened
    opened.close()


def test_what_keys_mean() -> None:
    assert [meaning(k) for k in ("n", "N", "\x1b[C", "r", "d", "p", "f", "q", "\x1b", "x", "\x1b[A")] == [
        "next", "next", "next", "rerecord", "discard", "pause", "finish", "stop", "stop", "", ""
    ]  # fmt: skip


def test_keys_steer_and_the_terminal_is_restored(terminal: Terminal) -> None:
    assert terminal.raw()
    for typed, wish in (("n", "next"), ("p", "pause"), ("p", "resume"), ("\x1b[D", "rerecord")):
        os.write(terminal.master, typed.encode())
        terminal.until(lambda wish=wish: f"wish {wish}" in terminal.seen, wish)
    terminal.order.write_text("end")
    terminal.until(lambda: terminal.process.poll() is not None, "its end")
    assert terminal.process.returncode == 0 and termios.tcgetattr(terminal._fd) == terminal.before


@pytest.mark.parametrize("how", ["fail", "TERM", "HUP", "INT", "TSTP"])
def test_whatever_ends_it_the_terminal_is_restored(terminal: Terminal, how: str) -> None:
    if how == "fail":
        terminal.order.write_text("fail")
    else:
        terminal.process.send_signal(getattr(signal, f"SIG{how}"))
    terminal.until(lambda: not terminal.raw(), "the terminal as before")
    if how == "TSTP":  # stopped like by Ctrl-Z, and then brought back
        terminal.process.send_signal(signal.SIGCONT)
        terminal.until(terminal.raw, "keys again")
        terminal.order.write_text("end")
    terminal.until(lambda: terminal.process.poll() is not None, "its end")
    assert termios.tcgetattr(terminal._fd) == terminal.before
    assert terminal.process.returncode == {"fail": 3, "TERM": -15, "HUP": -1, "INT": 1, "TSTP": 0}.get(how) or (
        how == "INT" and terminal.process.returncode in (-2, 1, 130)
    )
