"""A worker whose main thread never looks up: it ends by itself when its daemon is gone, also when it was frozen."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from zk0d.train.interrupts import ENDS_S, GRACE_S, ORPHANED_S
from zk0d.worker import FD_VARIABLE

SCRIPT = """
import sys, time
from zk0d.train.interrupts import Interrupts
from zk0d.worker import WorkerChannel
channel = WorkerChannel()
interrupts = Interrupts(channel, grace_s=60.0, orphaned_s=0.2, ends_s=0.4).start()
interrupts.guard()
if "saves for ever" in sys.argv:
    interrupts.handled()
channel.emit("ready")
time.sleep(600)
"""
DAEMON = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[2]], pass_fds=[int(sys.argv[1])], start_new_session=True)
os.read(int(sys.argv[3]), 1000)  # it is ready
os.kill(child.pid, signal.SIGSTOP)
print(child.pid, flush=True)
time.sleep(600)
"""


def test_the_promise_of_thirty_seconds() -> None:
    assert GRACE_S < 5 and ORPHANED_S < ENDS_S < 30


@pytest.mark.parametrize("ending", ["closed", "saves for ever", "killed while frozen"])
def test_it_leaves_by_itself(ending: str, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    env = {**os.environ, FD_VARIABLE: str(fd)}
    if ending != "killed while frozen":
        worker = subprocess.Popen([sys.executable, "-c", SCRIPT, ending], env=env, pass_fds=[fd])
        theirs.close()
        assert b"ready" in ours.recv(1000)
        ours.close()
        assert worker.wait(60) == 0
        return
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(fd), SCRIPT, str(ours.fileno())],
        env=env, pass_fds=[fd, ours.fileno()], stdout=subprocess.PIPE,
    )  # fmt: skip
    assert daemon.stdout is not None
    pid = int(daemon.stdout.readline())
    theirs.close()
    ours.close()
    gone = os.pidfd_open(pid)
    try:
        daemon.kill()
        daemon.wait()
        assert select.select([gone], [], [], 60)[0], "it stays there, frozen"
    finally:
        if not select.select([gone], [], [], 0)[0]:
            os.kill(pid, signal.SIGKILL)
        os.close(gone)
        daemon.stdout.close()
