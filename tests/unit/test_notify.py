"""sd_notify against a real datagram socket."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from zk0d.notify import Notifier


def test_outside_systemd_says_so_and_does_nothing() -> None:
    notifier = Notifier({})
    notifier.ready("x")
    assert not notifier.enabled and "NOTIFY_SOCKET" in notifier.reason and notifier.watchdog_s == 0


def test_messages(tmp_path: Path) -> None:
    for address in (str(tmp_path / "notify"), f"@zk0-test-{os.getpid()}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.settimeout(5)
            systemd.bind("\0" + address[1:] if address[0] == "@" else address)
            environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid()), "A": "b"}
            notifier = Notifier(environ)
            assert notifier.watchdog_s == 1.5
            assert environ == {"A": "b"}  # a program that we run must not speak in our name
            notifier.ready("serving\n2 nodes")
            assert systemd.recv(999) == b"READY=1\nSTATUS=serving 2 nodes"
            notifier.watchdog()
            assert systemd.recv(999) == b"WATCHDOG=1"
            notifier.stopping()
            assert systemd.recv(999) == b"STOPPING=1"
        notifier.watchdog()  # nobody listens any more: no exception


def test_watchdog_of_another_process_is_not_ours(tmp_path: Path) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}).watchdog_s == 0
