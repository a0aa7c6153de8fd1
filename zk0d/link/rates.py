"""How fast bulk may travel: rates as people write them, by time of day if they like, and what holds a sender to them.

Local wall-clock time decides which rate holds (so summer time needs nothing); the buckets run on a clock that never
goes back. Not for control messages: these are never held back.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from zk0d.link.transfer import Bucket

ACCEPTS = (
    '"20 MB/s", "500 kB/s" (16 kB/s at least), "unlimited", or by local time of day, the first that holds: '
    '[{from="08:00", to="20:00", rate="2 MB/s"}, {rate="20 MB/s"}]'
)
LOWEST = 16e3
"""Bytes per second. Below it a chunk takes longer than a transfer waits for one."""
_LONGEST_S = 30.0
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMG]?)B/s")
_SCALE = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")


class Limiter(Protocol):
    """What a sender asks before it sends."""

    def delay(self, now: float) -> float:
        """Seconds to wait before the next piece; 0: go. `now` is of a clock that never goes back."""

    def spend(self, size: int) -> None:
        """`size` bytes go."""


def parse_rate(value: Any) -> float | None:
    """Bytes per second of "20 MB/s"; None for "unlimited". Raises ValueError for anything else."""
    if value == "unlimited":
        return None
    match = _RATE.fullmatch(value) if isinstance(value, str) else None
    if match is None or (rate := float(match[1]) * _SCALE[match[2]]) < LOWEST:
        raise ValueError(f"{value!r} is not a rate")
    return rate


@dataclass(frozen=True)
class Window:
    """`rate` holds from minute `start` of the local day until before `end`; over midnight when `end` is not later."""

    start: int
    end: int
    rate: float | None

    def holds(self, minute: int) -> bool:
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end


@dataclass(frozen=True)
class Rate:
    """Bytes per second by local time of day: the first window that holds; outside all of them there is no limit."""

    windows: tuple[Window, ...]

    @classmethod
    def parse(cls, value: Any) -> Rate:
        """From a setting's value, see ACCEPTS. Raises ValueError."""
        if not isinstance(value, list):
            return cls.constant(parse_rate(value))
        windows = []
        for entry in value:
            if not isinstance(entry, dict) or entry.keys() not in ({"rate"}, {"from", "to", "rate"}):
                raise ValueError(f"{entry!r} does not have exactly from, to and rate")
            start, end = _minute(entry.get("from", "00:00")), _minute(entry.get("to", "00:00"))
            if start == end and "from" in entry:
                raise ValueError(f"{entry!r} begins when it ends")
            windows.append(Window(start, end, parse_rate(entry["rate"])))
        if not windows:
            raise ValueError("an empty list")
        return cls(tuple(windows))

    @classmethod
    def constant(cls, rate: float | None) -> Rate:
        return cls((Window(0, 0, rate),))

    def at(self, wall: float) -> float | None:
        """The rate at `wall`, seconds since the epoch, in this machine's time zone; None: no limit."""
        if self.windows[0].start == self.windows[0].end:
            return self.windows[0].rate  # all day, as most do: this is asked for every chunk
        local = time.localtime(wall)
        minute = local.tm_hour * 60 + local.tm_min
        return next((w.rate for w in self.windows if w.holds(minute)), None)


def _minute(text: Any) -> int:
    match = _TIME.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is not a time of day such as 08:00")
    return int(match[1]) * 60 + int(match[2])


class Pace:
    """Lets `burst` things happen at once and `rate` a second in the long run; None: any number."""

    def __init__(self, rate: float | None, burst: float) -> None:
        self._rate, self._burst, self._left = rate, burst, burst
        self._at = 0.0

    def go(self, now: float) -> bool:
        """Whether one more may happen; it then counts."""
        if self._rate is None:
            return True
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Meter:
    """One token bucket under a rate that may change with the hour."""

    def __init__(self, rate: Rate | float | None, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._bucket = Bucket(None)
        self.set(rate)

    def set(self, rate: Rate | float | None) -> None:
        """Another limit from now on; a debt is paid off at it."""
        self._rate = rate if isinstance(rate, Rate) else Rate.constant(rate)
        self._bucket.rate = self._rate.at(self._wall())

    def delay(self, now: float) -> float:
        self._bucket.rate = self._rate.at(self._wall())
        return min(_LONGEST_S, self._bucket.delay(now))  # a better hour may begin meanwhile: look again

    def spend(self, size: int) -> None:
        self._bucket.spend(size)


class Meters:
    """Several limits at once: this node's own and everyone's."""

    def __init__(self, parts: Sequence[Limiter]) -> None:
        self._parts = parts

    def delay(self, now: float) -> float:
        return max((p.delay(now) for p in self._parts), default=0.0)

    def spend(self, size: int) -> None:
        for part in self._parts:
            part.spend(size)
