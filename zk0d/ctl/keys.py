"""Single keys of this terminal steer a recording; the terminal is as it was before, whatever ends the command.

Standard library only. Not for what the keys do (the daemon's record_control).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from typing import Any

HELP = "keys: n or → next, r or ← record again, d discard, p pause/go on, f finish, q stop"
_KEYS = {
    "n": "next", " ": "next", "\n": "next", "\x1b[C": "next", "r": "rerecord", "\x1b[D": "rerecord", "d": "discard",
    "p": "pause", "f": "finish", "q": "stop", "\x1b": "stop",
}  # fmt: skip
_ENDING = (signal.SIGTERM, signal.SIGHUP)


def meaning(typed: str) -> str:
    """What a key means; "" for one that means nothing."""
    return _KEYS.get(typed, _KEYS.get(typed.lower(), ""))


@contextlib.contextmanager
def single_keys(fd: int) -> Iterator[None]:
    """Keys arrive one by one and are not shown. Undone when the block, the process or its job ends or stops."""
    before = termios.tcgetattr(fd)

    def restore() -> None:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, before)

    def end(number: int, frame: object) -> None:
        restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def stop(number: int, frame: object) -> None:
        restore()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)

    def go_on(number: int, frame: object) -> None:
        signal.signal(signal.SIGTSTP, stop)
        with contextlib.suppress(termios.error):
            tty.setcbreak(fd)

    handlers: dict[int, Any] = {n: signal.signal(n, end) for n in _ENDING}
    handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, stop)
    handlers[signal.SIGCONT] = signal.signal(signal.SIGCONT, go_on)
    atexit.register(restore)
    try:
        tty.setcbreak(fd)
        yield
    finally:
        restore()
        atexit.unregister(restore)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def keys_steer(act: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, `act` is called with what each key of standard input means. No terminal: nothing."""
    fd = sys.stdin.fileno()
    if not sys.stdin.isatty():
        yield
        return
    over = threading.Event()

    def listen() -> None:
        paused = False
        while not over.is_set():
            if select.select([fd], [], [], 0.1)[0]:
                typed = os.read(fd, 16).decode(errors="replace")
                if not typed:
                    return
                wish = meaning(typed)
                if wish == "pause":
                    wish, paused = ("resume" if paused else "pause"), not paused
                elif wish == "next":
                    paused = False
                if wish:
                    act(wish)

    listener = threading.Thread(target=listen, name="keys", daemon=True)
    with single_keys(fd):
        listener.start()
        try:
            yield
        finally:
            over.set()
            listener.join(1.0)
