"""Bandwidth limits: what people write, the time of day in the local zone, and buckets in virtual time."""

from __future__ import annotations

import calendar
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0d.link.rates import Meter, Meters, Rate

OFFICE = [{"from": "08:00", "to": "20:00", "rate": "2 MB/s"}, {"rate": "20 MB/s"}]


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Central European time by rule, so that no zone file is needed."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def utc(text: str) -> float:
    return calendar.timegm(time.strptime(text, "%Y-%m-%d %H:%M"))


def test_a_constant_rate() -> None:
    assert Rate.parse("20 MB/s").at(0) == 20e6
    assert Rate.parse("500 kB/s").at(1e9) == 500e3
    assert Rate.parse("1.5GB/s").at(0) == 1.5e9
    assert Rate.parse("unlimited").at(0) is None


@pytest.mark.parametrize(
    "value",
    [
        "fast", "20", 20, None, True, "0 MB/s", "-1 MB/s", "15 kB/s", "20 MB", [], [{}], ["2 MB/s"], [{"rate": "x"}],
        [{"from": "08:00", "rate": "2 MB/s"}], [{"from": "8:00", "to": "20:00", "rate": "2 MB/s"}],
        [{"from": "08:00", "to": "24:00", "rate": "2 MB/s"}], [{"from": "08:00", "to": "08:00", "rate": "2 MB/s"}],
        [{"from": "08:00", "to": "20:00", "rate": "2 MB/s", "on": "monday"}], [{"from": 8, "to": 20, "rate": "2 MB/s"}],
    ],
)  # fmt: skip
def test_what_is_no_rate(value: object) -> None:
    with pytest.raises(ValueError):
        Rate.parse(value)


@pytest.mark.parametrize(
    ("at", "rate"),
    [
        ("2026-01-15 06:59", 20e6),  # 07:59 in winter
        ("2026-01-15 07:00", 2e6),
        ("2026-01-15 18:59", 2e6),
        ("2026-01-15 19:00", 20e6),
        ("2026-07-15 05:59", 20e6),  # 07:59 in summer
        ("2026-07-15 06:00", 2e6),
        ("2026-07-15 18:00", 20e6),
    ],
)
def test_the_local_clock_decides(berlin: None, at: str, rate: float) -> None:
    assert Rate.parse(OFFICE).at(utc(at)) == rate


def test_the_nights_when_clocks_change(berlin: None) -> None:
    night = Rate.parse([{"from": "22:00", "to": "02:30", "rate": "1 MB/s"}])
    hours = [night.at(utc("2026-03-28 20:30") + h * 1800) for h in range(14)]
    # 21:30 … 01:30 by the clock, then 03:00: the half hour before 02:30 does not exist that night.
    assert hours == [None, *[1e6] * 8, None, None, None, None, None]
    hours = [night.at(utc("2026-10-24 19:30") + h * 1800) for h in range(16)]
    # 02:00–02:30 comes twice, and is limited twice.
    assert hours == [None, *[1e6] * 9, None, 1e6, None, None, None, None]


def test_the_first_window_that_holds(berlin: None) -> None:
    rate = Rate.parse([{"from": "12:00", "to": "13:00", "rate": "unlimited"}, *OFFICE])
    assert rate.at(utc("2026-01-15 11:30")) is None and rate.at(utc("2026-01-15 12:30")) == 2e6


def drive(meter: Meter | Meters, sizes: list[int], seconds: float, start: float = 100.0) -> list[tuple[float, int]]:
    """What goes, and when, for a sender that always has something to send; time stands still but in its waits."""
    now, out, turn = start, [], 0
    while now < start + seconds and turn < 5000:
        if delay := meter.delay(now):
            now += max(delay, 1e-6)
            continue
        out.append((now, sizes[turn % len(sizes)]))
        meter.spend(sizes[turn % len(sizes)])
        turn += 1
    return out


@given(
    rate=st.floats(20e3, 50e6),
    sizes=st.lists(st.integers(1024, 4 << 20), min_size=1, max_size=6),
    seconds=st.floats(5, 600),
)
def test_no_stretch_of_time_carries_more_than_its_rate(rate: float, sizes: list[int], seconds: float) -> None:
    out = drive(Meter(rate), sizes, seconds)
    start, most = out[0][0], max(sizes)
    for at, _ in out[:: max(1, len(out) // 50)]:
        sent = sum(n for when, n in out if when <= at)
        assert sent <= rate * (at - start) + most + 1
    if len(out) < 5000:  # and nothing is wasted: it goes on the moment it may
        assert sum(n for _, n in out) >= rate * (seconds - 30) - most


def test_everyones_limit_and_each_ones_own() -> None:
    """Four nodes of 1 MB/s each under 2.5 MB/s together, in virtual time."""
    total = Meter(2.5e6)
    nodes = [Meters([Meter(1e6), total]) for _ in range(4)]
    sent, now = [0] * 4, 50.0
    while now < 150.0:
        for number in sorted(range(4), key=lambda n: sent[n]):
            if not nodes[number].delay(now):
                nodes[number].spend(1 << 18)
                sent[number] += 1 << 18
        now += 0.01
    assert 0.95 * 250e6 < sum(sent) < 250e6 + 4 * (1 << 18) + 2.5e6
    assert max(sent) < 101e6 + (1 << 18) and min(sent) > 0.8 * max(sent)


def test_the_hour_changes_the_rate_under_a_running_transfer(berlin: None) -> None:
    wall, start = utc("2026-01-15 18:59"), 1000.0  # 19:59: a minute of 2 MB/s, then 20 MB/s
    now = start
    meter = Meter(Rate.parse(OFFICE), wall=lambda: wall + now - start)
    slow = fast = 0
    while now < start + 120:
        if delay := meter.delay(now):
            now += max(delay, 1e-6)
            continue
        meter.spend(1 << 20)
        if now < start + 60:
            slow += 1 << 20
        else:
            fast += 1 << 20
    assert 0.95 * 120e6 < slow < 125e6 and 0.95 * 1200e6 < fast < 1225e6
    meter.set(None)
    assert meter.delay(now) == 0.0
