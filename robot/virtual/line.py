"""A FeetechBus on a pseudo-terminal, under a stable name that LeRobot opens like a USB serial port.

The name is a link in the station's folder, so that an arm can be unplugged and plugged in again. Not for the protocol.
"""

from __future__ import annotations

import os
import time
import tty
from collections import deque
from pathlib import Path

from robot.virtual.bus import FeetechBus

SILENCE_S = 0.02
"""A frame at 1 Mbaud takes under 3 ms; a gap this long inside one means that its sender gave up."""


class PtyLine:
    """One serial line: the servos' end of a pseudo-terminal."""

    def __init__(self, path: Path, bus: FeetechBus) -> None:
        self.path = path
        self.bus = bus
        self.master = -1
        self._slave = -1
        self._heard = 0.0
        self.late = 0
        self.late_s = 0.0
        self._owed: deque[tuple[float, bytes]] = deque()
        self.plug()

    @property
    def plugged(self) -> bool:
        """Whether the port exists."""
        return self.master >= 0

    @property
    def owing(self) -> bool:
        """Whether a late reply is still to be sent."""
        return bool(self._owed)

    def plug(self) -> None:
        """Make the port appear. The slave end stays open here too, or a client that closes would end the line."""
        if self.plugged:
            return
        self.master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self.master, False)
        temporary = self.path.with_name(self.path.name + ".new")
        temporary.symlink_to(os.ttyname(self._slave))
        temporary.replace(self.path)

    def unplug(self) -> None:
        """Pull the cable: open ports fail with an I/O error, and the name is gone."""
        if not self.plugged:
            return
        self.path.unlink(missing_ok=True)
        for fd in (self.master, self._slave):
            os.close(fd)
        self.master = self._slave = -1

    def pump(self) -> bool:
        """Serve what has arrived. True when there was something."""
        if not self.plugged:
            return False
        try:
            data = os.read(self.master, 4096)
        except (BlockingIOError, OSError):
            return False
        now = time.monotonic()
        if now - self._heard > SILENCE_S:
            self.bus.silence()
        self._heard = now
        reply = self.bus.feed(data)
        if reply and self.late:
            self.late -= 1
            self._owed.append((now + self.late_s, reply))
            return True
        if reply:
            self._send(reply)
        return bool(data)

    def owed(self) -> float | None:
        """Send the late replies whose time has come → seconds to the next one, None when there is none."""
        now = time.monotonic()
        while self._owed and self._owed[0][0] <= now:
            self._send(self._owed[0][1])
            self._owed.popleft()
        return max(0.0, self._owed[0][0] - now) if self._owed else None

    def _send(self, reply: bytes) -> None:
        if self.plugged:
            try:
                os.write(self.master, reply)
            except BlockingIOError:
                pass  # nobody reads: a serial line loses bytes too
