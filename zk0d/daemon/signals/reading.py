"""What a signal says (`Reading`) and what gives one (`Source`). Levels only ever grow worse: clear, wary, stop.

Plain values, so that the arbiter stays a pure function. Not for how things are sensed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol


class Level(IntEnum):
    """CLEAR: nothing against it. WARY: training that runs may stay, but none starts. STOP: none runs."""

    CLEAR = 0
    WARY = 1
    STOP = 2


@dataclass(frozen=True)
class Reading:
    """One signal now: what it `says` for a person, and how much it is against training (`uses` "train") or transfers.

    `known` False: the source cannot tell, `says` why; it then holds nothing back (but see `not_yet`). `hard`: pausing
    in place is not enough, the trainer must leave. `memory`: it must give its GPU memory back. `firm`: holds against
    `train now` too. `waits`: what ends it.
    """

    name: str
    says: str
    level: Level = Level.CLEAR
    known: bool = True
    uses: tuple[str, ...] = ("train",)
    hard: bool = False
    memory: bool = False
    firm: bool = False
    waits: str = "resumes when that is over"


def unknown(name: str, why: str) -> Reading:
    return Reading(name, f"not known: {why}", known=False)


def not_yet(name: str, why: str) -> Reading:
    """A source that will tell in a moment: nothing starts before it has, or after every start of the daemon training
    would begin in the face of whoever uses the machine."""
    return Reading(name, f"not known yet: {why}", Level.WARY, known=False, waits="it tells within seconds")


def above(value: float, stop: float, start: float) -> Level:
    """How bad `value` is: STOP from `stop`, WARY from `start` (below it). A `stop` of 0 means: only shown."""
    if stop <= 0 or value < start:
        return Level.CLEAR
    return Level.STOP if value >= stop else Level.WARY


class Source(Protocol):
    """Something that senses. `read` may block and may raise: the board takes care of both."""

    name: str
    every_s: float

    def read(self, now: float) -> Reading: ...
