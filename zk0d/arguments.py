"""Numbers that people give, on a command line or in a request over a control socket: what is taken, in which words.

Everything that is taken fits what it goes through (JSON, SQLite, float64, a clock). Standard library only, and little
of it: zk0ctl must start fast.
"""

from __future__ import annotations

import math

from zk0d.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOST = 2**53 - 1
"""The largest whole number that all of them hold exactly."""
LONGEST_S = 1e9
MAX_EPISODES, MAX_SEED = 100_000, 2**31


class Whole:
    """A whole number from `low` to `high`: a `type` for argparse, and `of` for what a request has."""

    def __init__(self, low: int, high: int = MOST) -> None:
        self.low, self.high = low, high

    def __call__(self, text: str) -> int:
        try:
            return self._checked(int(text))
        except ValueError:
            raise _refused(text, self.words) from None

    def of(self, value: Any, what: str) -> int:
        """A request's value, which is called `what`. Raises UsageError."""
        try:
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError
            return self._checked(value)
        except ValueError:
            raise UsageError(f"{what}: {_short(value)} is not {self.words}") from None

    def _checked(self, value: int) -> int:
        if not self.low <= value <= self.high:
            raise ValueError
        return value

    @property
    def words(self) -> str:
        most = f", below 2**{MOST.bit_length()}" if self.high == MOST else f" and at most {self.high}"
        return f"a whole number of at least {self.low}{most}"


class Number:
    """A finite number from `low` to `high`, seconds for example: a `type` for argparse."""

    def __init__(self, low: float, high: float = LONGEST_S) -> None:
        self.low, self.high = low, high

    def __call__(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not self.low <= value <= self.high:
            raise _refused(text, f"a number from {self.low:g} to {self.high:.10g}")
        return value


def _short(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 200:  # Python refuses to write very long ones out
        return "with very many digits"
    return repr(value)[:40]


def _refused(text: str, words: str) -> Exception:
    from argparse import ArgumentTypeError

    return ArgumentTypeError(f"{_short(text)} is not {words}")
