"""Moments in words."""

import time

from zk0d.moments import clock


def at(text: str) -> float:
    return time.mktime(time.strptime(text, "%Y-%m-%d %H:%M"))


def test_a_moment_has_as_much_date_as_it_needs() -> None:
    now = at("2026-12-31 23:30")
    assert clock(at("2026-12-31 08:05"), now) == "08:05"
    assert clock(at("2026-12-30 08:05"), now) == "30 Dec 08:05"
    assert clock(at("2027-01-01 01:30"), now) == "1 Jan 2027 01:30"
    assert clock(time.time()).count(":") == 1
