"""Signals that system services tell over D-Bus: is a person at the desktop, is the network metered.

The client is zk0d/daemon/bus.py. Where bus or service is absent: not known, with the reason.
"""

from __future__ import annotations

from zk0d.daemon.bus import get_property
from zk0d.daemon.signals.reading import Level, Reading


class Desktop:
    """logind's IdleHint, only as a veto: it is true when nobody is logged in, and unreliable on some desktops."""

    name, every_s = "desktop", 30.0

    def __init__(self, veto: bool) -> None:
        self._veto = veto

    def read(self, now: float) -> Reading:
        service = "org.freedesktop.login1"
        idle = get_property(service, "/org/freedesktop/login1", f"{service}.Manager", "IdleHint")
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
        service = "org.freedesktop.NetworkManager"
        value = get_property(service, "/org/freedesktop/NetworkManager", service, "Metered")
        if value in (1, 3):
            level = Level.STOP if self._pause else Level.CLEAR
            return Reading(self.name, "metered", level, uses=("network",), waits="goes on over another network")
        if value in (2, 4):
            return Reading(self.name, "not metered", uses=("network",))
        raise RuntimeError("NetworkManager cannot tell")
