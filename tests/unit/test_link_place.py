"""One place has one share: of the hub's places for strangers, an IPv6 /64 cannot take more by having many addresses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from zk0d.link.place import place
from zk0d.link.terminator import _make_room


@dataclass
class Waiting:
    """What is asked of a connection when room is made."""

    address: str
    deadline: float
    closed: list[str] = field(default_factory=list)

    def close(self, reason: str) -> None:
        self.closed.append(reason)


@pytest.mark.parametrize(
    ("address", "where"),
    [
        ("192.0.2.7:50000", "192.0.2.7"),
        ("2001:db8:1:2:3::9:50000", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7:50000", "192.0.2.7"),
        ("fe80::1%eth0:50000", "fe80::/64"),
    ],
)
def test_a_place_is_a_host_or_a_64(address: str, where: str) -> None:
    assert place(address) == where


def test_a_crowd_of_one_64_makes_room_for_others_and_not_for_itself() -> None:
    honest = [Waiting(f"192.0.2.{n}:4000", deadline=float(n)) for n in (1, 2)]
    crowd = [Waiting(f"2001:db8::{n:x}:4000", deadline=10.0 + n) for n in range(1, 5)]
    waiting = cast("list[Any]", honest + crowd)
    assert not _make_room(waiting, "2001:db8::99:4000"), "the /64 of the crowd gets no more"
    assert not any(s.closed for s in waiting)
    assert _make_room(waiting, "198.51.100.1:4000")
    assert [s.address for s in waiting if s.closed] == ["2001:db8::1:4000"], "the oldest of the crowd, no honest one"
