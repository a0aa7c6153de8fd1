"""Hours of the week in which training may run: "Mon-Fri 20:00-07:00". Wall-clock time, right over DST changes.

Pure functions of the time. A window that ends before it begins runs over midnight; its day is the one it begins on.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zk0d.daemon.signals.reading import Level, Reading

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW = re.compile(r"([a-z,\- ]+?)(?:\s+(\d{1,2}):(\d\d)\s*-\s*(\d{1,2}):(\d\d))?", re.IGNORECASE)
LEAVE_S = 35.0
"""Least seconds before a window closes at which the trainer writes its checkpoint and leaves."""
LAST_START_S = 300.0
"""Seconds before a window closes from which no trainer starts any more: its imports would be most of what it does.
Sooner where leaving takes long."""


@dataclass(frozen=True)
class Window:
    """Week days (0 is Monday) on which it begins, and minutes of the day; `end` ≤ `begin` is on the next day."""

    days: frozenset[int]
    begin: int
    end: int

    def contains(self, weekday: int, minute: int) -> bool:
        if self.begin < self.end:
            return weekday in self.days and self.begin <= minute < self.end
        today, yesterday = weekday in self.days, (weekday - 1) % 7 in self.days
        return (today and minute >= self.begin) or (yesterday and minute < self.end)


def parse(text: str) -> Window:
    """A window of "Mon-Fri 20:00-07:00", "Sat,Sun" (the whole day) or "daily 22:00-06:00". Raises ValueError."""
    match = _WINDOW.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a window")
    days = _days(match[1].replace(" ", "").lower())
    if match[2] is None:
        return Window(days, 0, 0)
    numbers = [int(n) for n in match.groups()[1:]]
    begin, end = numbers[0] * 60 + numbers[1], numbers[2] * 60 + numbers[3]
    if begin >= 1440 or end > 1440 or numbers[1] > 59 or numbers[3] > 59:
        raise ValueError(f"{text!r} has no such time of day")
    return Window(days, begin, end % 1440)


def _days(text: str) -> frozenset[int]:
    if text == "daily":
        return frozenset(range(7))
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first not in _DAYS or (last or first) not in _DAYS:
            raise ValueError(f"{part!r} is no week day")
        a, b = _DAYS.index(first), _DAYS.index(last or first)
        found.update((a + k) % 7 for k in range((b - a) % 7 + 1))
    return frozenset(found)


def open_at(windows: Sequence[Window], now: float, zone: ZoneInfo | None) -> bool:
    """Whether `now` (seconds since the epoch) lies in a window; always without any. `zone` None: the machine's."""
    there = dt.datetime.fromtimestamp(now, zone)
    return not windows or any(w.contains(there.weekday(), there.hour * 60 + there.minute) for w in windows)


def next_change(windows: Sequence[Window], now: float, zone: ZoneInfo | None) -> float | None:
    """When `open_at` changes next, within the coming eight days; None when it does not."""
    today = dt.datetime.fromtimestamp(now, zone).date()
    minutes = {m for w in windows for m in (w.begin, w.end)} | {0}
    edges = sorted(
        dt.datetime.combine(today + dt.timedelta(days=d), dt.time(m // 60, m % 60), tzinfo=zone).timestamp()
        for d in range(9)
        for m in minutes
    )
    here = open_at(windows, now, zone)
    # An hour that is skipped or repeated moves the wall clock at a moment that is no window's edge.
    tries = sorted(edges + [e + shift for e in edges for shift in (-3600.0, 3600.0)])
    return next((e for e in tries if e > now and open_at(windows, e, zone) != here), None)


class Windows:
    """The operator's hours as a signal. Outside them the trainer leaves, its checkpoint written before they end."""

    name, every_s = "hours", 5.0

    def __init__(self, texts: Sequence[str], timezone: str = "", save_s: Callable[[], float] = float) -> None:
        """`save_s`: seconds that the trainer was measured to need for its checkpoint."""
        self._windows, self._save_s = tuple(map(parse, texts)), save_s
        self._zone: ZoneInfo | None = None
        if timezone:
            from zoneinfo import ZoneInfo

            self._zone = ZoneInfo(timezone)

    def read(self, now: float) -> Reading:
        if not self._windows:
            return Reading(self.name, "any hour")
        change = next_change(self._windows, now, self._zone)
        at = "" if change is None else dt.datetime.fromtimestamp(change, self._zone).strftime("%a %H:%M")
        if not open_at(self._windows, now, self._zone):
            return Reading(self.name, "outside the hours for training", Level.STOP, hard=True, waits=f"resumes {at}")
        lead = max(LEAVE_S, 3 * self._save_s())
        if change is None or change - now > max(LAST_START_S, 2 * lead):
            return Reading(self.name, f"open until {at}" if at else "open")
        level = Level.STOP if change - now <= lead else Level.WARY
        return Reading(
            self.name, f"the hours for training end {at}", level, hard=True, waits="resumes in the next hours"
        )
