"""Stop a process where it computes, at once: every thread by itself. Thawing needs no more than SIGCONT.

Not for processes that it started, nor for the cgroup freezer: supervise.py and daemon/units.py have those.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal


def stop_threads(pid: int) -> None:
    """SIGSTOP to each thread of `pid`; nothing happens to one that is gone.

    A signal to a process goes to one thread, its main one if that can take it. Where that waits for a processor (a
    trainer stands behind everything else), the others compute on until it has had one: tens of milliseconds. A thread
    that is signalled itself and runs is interrupted, and stops all the others (signal(7), kernel/signal.c).
    """
    with contextlib.suppress(OSError, AttributeError):  # the C library has no tgkill: the signal to the process holds
        tgkill = ctypes.CDLL(None).tgkill
        for thread in os.listdir(f"/proc/{pid}/task"):
            tgkill(pid, int(thread), int(signal.SIGSTOP))
