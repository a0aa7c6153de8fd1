"""Signals from the kernel's files: pressure, foreign CPU use, power, temperature, disk space, the hold file.

Each class takes its root folder, so that tests lay out a /proc or /sys of their own. Not for D-Bus (bus.py) or NVML.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable
from pathlib import Path

from zk0d.daemon.signals.board import finite
from zk0d.daemon.signals.processes import cpu_ticks
from zk0d.daemon.signals.reading import Level, Reading, above, not_yet, unknown
from zk0d.errors import os_reason


class Pressure:
    """Share of the last ten seconds in which somebody waited for `what` (PSI, Documentation/accounting/psi.rst)."""

    every_s = 5.0

    def __init__(self, what: str, stop: float, root: Path = Path("/proc/pressure")) -> None:
        """`what`: cpu, memory or io; `stop`: percent from which training stops, 0 for never. Starts below half."""
        self.name = f"{what} pressure"
        self._stop, self._path = stop, root / what

    def read(self, now: float) -> Reading:
        try:
            line = self._path.read_text().splitlines()[0]
        except OSError as error:
            return unknown(self.name, f"{self._path}: {error.strerror}")
        value = finite(line.split("avg10=")[1].split()[0], 0, 100)
        return Reading(self.name, f"{value:.0f}% of the time", above(value, self._stop, self._stop / 2))


class ForeignCpu:
    """Share of all processors that others than zk0d and its workers use, over the last half minute.

    Over less, every page that is opened and every start of an editor would pause the training.
    """

    name, every_s, over_s = "foreign cpu", 5.0, 30.0

    def __init__(self, stop: float, own: Callable[[], list[int]], root: Path = Path("/proc")) -> None:
        """`own`: process ids whose time, with that of their ended children, is ours."""
        self._stop, self._own, self._root = stop, own, root
        self._before: tuple[float, float, dict[int, float]] | None = None
        self._spans: collections.deque[tuple[float, float, float]] = collections.deque()
        """When each reading was, the ticks of all processors up to it, and what others used of them."""

    def read(self, now: float) -> Reading:
        fields = [float(n) for n in (self._root / "stat").read_text().split("\n", 1)[0].split()[1:9]]
        total, busy = sum(fields), sum(fields) - fields[3] - fields[4]
        ours = {pid: cpu_ticks(pid) for pid in self._own()}
        before, self._before = self._before, (total, busy, ours)
        if before is None or total <= before[0]:
            self._spans.clear()
            why = "the first reading comes in a few seconds"
            return not_yet(self.name, why) if self._stop > 0 else unknown(self.name, why)
        mine = sum(max(0.0, t - before[2].get(pid, t)) for pid, t in ours.items())
        self._spans.append((now, total - before[0], max(0.0, busy - before[1] - mine)))
        while now - self._spans[0][0] >= self.over_s or now < self._spans[0][0]:  # or the clock was put back
            self._spans.popleft()
        share = 100 * min(1.0, sum(s[2] for s in self._spans) / sum(s[1] for s in self._spans))
        return Reading(self.name, f"{share:.0f}% used by others", above(share, self._stop, self._stop / 2))


class Power:
    """Mains or battery, from /sys/class/power_supply."""

    name, every_s = "power", 10.0

    def __init__(self, pause: bool, root: Path = Path("/sys/class/power_supply")) -> None:
        self._pause, self._root = pause, root

    def read(self, now: float) -> Reading:
        mains, batteries = [], 0
        for supply in sorted(self._root.iterdir()) if self._root.is_dir() else ():
            kind = (supply / "type").read_text().strip()
            if kind in ("Mains", "USB") and (supply / "online").exists():
                mains.append((supply / "online").read_text().strip() == "1")
            elif kind == "Battery" and not (supply / "scope").exists():  # a scope: a mouse's, not the machine's
                batteries += 1
        if any(mains) or (not batteries and not mains):
            return Reading(self.name, "on mains") if mains else unknown(self.name, "the machine tells of no supply")
        level = Level.STOP if self._pause else Level.CLEAR
        return Reading(self.name, "on battery", level, waits="resumes on mains power")


class Temperature:
    """The hottest sensor of /sys/class/hwmon, °C. Starts five degrees below where it stops."""

    name, every_s = "temperature", 10.0

    def __init__(self, stop: float, root: Path = Path("/sys/class/hwmon")) -> None:
        self._stop, self._root = stop, root

    def read(self, now: float) -> Reading:
        hottest: tuple[float, str] | None = None
        for path in self._root.glob("hwmon*/temp*_input"):
            try:
                found = (finite(path.read_text(), -50_000, 150_000) / 1000, (path.parent / "name").read_text().strip())
            except (OSError, ValueError):
                continue  # a sensor that sleeps or lies: there are others
            hottest = max(hottest or found, found)
        if hottest is None:
            return unknown(self.name, "no sensor answers")
        value, sensor = hottest
        level = above(value, self._stop, self._stop - 5)
        return Reading(self.name, f"{value:.0f} °C ({sensor})", level, firm=True, waits="resumes when it has cooled")


class DiskSpace:
    """Space left where the state is. A trainer that cannot write its checkpoint had better not run."""

    name, every_s = "disk", 10.0

    def __init__(self, folder: Path, least_gb: float) -> None:
        self._folder, self._least = folder, least_gb

    def read(self, now: float) -> Reading:
        found = os.statvfs(self._folder)
        free = found.f_bavail * found.f_frsize / 1e9
        level = Level.STOP if free < self._least else Level.WARY if free < 1.1 * self._least else Level.CLEAR
        return Reading(self.name, f"{free:.1f} GB free in {self._folder}", level, uses=("train", "network"), firm=True,
                       waits="waits for room on the disk")  # fmt: skip


class HoldFile:
    """A file that scripts put there to keep training away; its first line is the reason."""

    name, every_s = "hold file", 2.0

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, now: float) -> Reading:
        try:
            with self._path.open("rb") as f:
                why = f.readline(200).decode(errors="replace").strip()
        except FileNotFoundError:
            return Reading(self.name, "not there")
        except (PermissionError, IsADirectoryError) as error:  # that it cannot be read makes it mean no less
            why = f"it cannot be read: {os_reason(error)}"
        says = f"{self._path} is there" + (f": {why}" if why else "")
        return Reading(self.name, says, Level.STOP, uses=("train", "network"), firm=True,
                       waits="resumes when it is removed")  # fmt: skip
