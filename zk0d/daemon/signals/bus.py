"""Signals from the system's D-Bus services, asked through busctl: is a person at the desktop, is the network metered.

No D-Bus library: two properties every half minute do not need one. Where bus or service is absent: not known.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

from zk0d.daemon.signals.reading import Level, Reading

ASK_S = 3.0


def property_of(service: str, path: str, interface: str, name: str) -> Any:
    """A property's value. Raises RuntimeError saying why there is none."""
    program = shutil.which("busctl")
    if program is None:
        raise RuntimeError("there is no busctl on this machine")
    command = [
        program,
        "--system",
        "--json=short",
        f"--timeout={ASK_S:g}",
        "get-property",
        service,
        path,
        interface,
        name,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S + 1, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{service} does not answer") from None
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1][:200] if done.stderr.strip() else f"no {service}")
    return json.loads(done.stdout)["data"]


class Desktop:
    """logind's IdleHint, only as a veto: it is true when nobody is logged in, and unreliable on some desktops."""

    name, every_s = "desktop", 30.0

    def __init__(self, veto: bool) -> None:
        self._veto = veto

    def read(self, now: float) -> Reading:
        idle = property_of(
            "org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager", "IdleHint"
        )
        if idle is True:
            return Reading(self.name, "nobody is at it")
        level = Level.STOP if self._veto else Level.CLEAR
        return Reading(self.name, "somebody is at it", level, waits="resumes when the session is idle")


class Metered:
    """NetworkManager on whether the network costs by volume (NM_METERED: 1 yes, 2 no, 3 guess yes, 4 guess no)."""

    name, every_s = "network", 30.0

    def __init__(self, pause: bool) -> None:
        self._pause = pause

    def read(self, now: float) -> Reading:
        value = property_of(
            "org.freedesktop.NetworkManager",
            "/org/freedesktop/NetworkManager",
            "org.freedesktop.NetworkManager",
            "Metered",
        )
        if value in (1, 3):
            level = Level.STOP if self._pause else Level.CLEAR
            return Reading(self.name, "metered", level, uses=("network",), waits="goes on over another network")
        if value in (2, 4):
            return Reading(self.name, "not metered", uses=("network",))
        raise RuntimeError("NetworkManager cannot tell")
