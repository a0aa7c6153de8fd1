"""When a certificate is to be renewed: before the last third of its life. Not for issuing (identity.py) or asking."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from zk0d.link.certificate import Certificate

_SKEW = dt.timedelta(hours=1)
"""A node's clock may be behind the hub's; of a short life a tenth, or it would be due from its first day."""


@dataclass(frozen=True)
class Lifetime:
    """A certificate's dates, in seconds since the epoch."""

    start: float
    end: float

    @classmethod
    def of(cls, certificate: bytes) -> Lifetime:
        """Of a PEM certificate; ValueError if it is none."""
        found = Certificate.of(certificate)
        return cls(found.start, found.end)

    @property
    def due_at(self) -> float:
        """From then on less than a third is left, and it is to be renewed."""
        return self.end - (self.end - self.start) / 3

    def due(self, now: float) -> bool:
        return now >= self.due_at

    def halfway(self, now: float) -> bool:
        """Whether at most half is left: an earlier wish for a renewal is refused."""
        return now >= (self.start + self.end) / 2


def span(now: dt.datetime, days: float) -> tuple[dt.datetime, dt.datetime]:
    """Start and end of a certificate made `now`; negative `days` give an expired one (for tests)."""
    life = dt.timedelta(days=days)
    return min(now, now + life) - min(_SKEW, abs(life) / 10), now + life
