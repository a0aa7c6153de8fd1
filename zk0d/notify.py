"""What systemd wants to hear from a service (`Type=notify`): ready, status, watchdog, stopping. See sd_notify(3).

Own code instead of systemd-python, which must be compiled. Outside systemd calls do nothing, and `reason` says so.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping


class Notifier:
    """Sends to the socket named in NOTIFY_SOCKET. `enabled` says whether anyone listens, `reason` why not.

    Takes the variables out of `environ`: programs that we run would speak in our name (busctl says ERRNO=).
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        self._address = environ.pop("NOTIFY_SOCKET", "")
        self.enabled = self._address.startswith(("/", "@"))
        self.reason = "" if self.enabled else "not started by systemd (no NOTIFY_SOCKET): no notifications, no watchdog"
        interval = self._interval(environ)
        self.watchdog_s = interval if self.enabled else 0.0
        """Seconds between `watchdog` calls (half the timeout), 0 when there is no watchdog."""

    @staticmethod
    def _interval(environ: MutableMapping[str, str]) -> float:
        pid, usec = environ.pop("WATCHDOG_PID", ""), environ.pop("WATCHDOG_USEC", "")
        if pid not in ("", str(os.getpid())):
            return 0.0
        return int(usec) / 2e6 if usec.isdigit() else 0.0

    def ready(self, status: str = "") -> None:
        self._send("READY=1" + (f"\nSTATUS={_line(status)}" if status else ""))

    def status(self, text: str) -> None:
        self._send(f"STATUS={_line(text)}")

    def watchdog(self) -> None:
        self._send("WATCHDOG=1")

    def reloading(self) -> None:
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str = "") -> None:
        self._send("STOPPING=1" + (f"\nSTATUS={_line(status)}" if status else ""))

    def _send(self, text: str) -> None:
        if not self.enabled:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            try:
                sock.setblocking(False)
                sock.sendto(text.encode(), address)
            except OSError:
                pass  # a full or vanished socket must never stop the service


def _line(text: str) -> str:
    return " ".join(text.split())
