"""Moments as people read them, the same in the daemon's sentences and in zk0ctl's tables. Loads nothing."""

from __future__ import annotations

import time


def clock(at: float, now: float | None = None) -> str:
    """Local time of day for `at`: with the date when it is not today's, with the year when it is not this one.

    Absolute, so that it stays true on a page. `now` (Unix seconds) is the clock's own unless given.
    """
    there, here = time.localtime(at), time.localtime(now)
    if there[:3] == here[:3]:
        return time.strftime("%H:%M", there)
    return time.strftime("%-d %b %H:%M" if there[0] == here[0] else "%-d %b %Y %H:%M", there)
