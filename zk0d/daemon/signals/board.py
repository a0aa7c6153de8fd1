"""Asks every source in turn, beside the event loop, and keeps what they last said.

A source that raises is not known, with its error; one that hangs is not known, and the others are asked by another
thread meanwhile. Not for what a reading means.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence

import structlog

from zk0d.daemon.signals.reading import Level, Reading, Source, not_yet, unknown
from zk0d.errors import Zk0Error

log = structlog.get_logger("signals")

HANGS_S = 5.0


class Board:
    """The latest reading of every source. `check` is called about once a second; it never blocks."""

    def __init__(self, sources: Sequence[Source], on_change: Callable[[], None] = lambda: None) -> None:
        """`on_change` is called in the asking thread when a source's level or being known changed."""
        self._sources = tuple(sources)
        self._on_change = on_change
        self._readings = {s.name: not_yet(s.name, "not asked yet") for s in sources}
        self._due = dict.fromkeys(self._readings, 0.0)
        self._lock = threading.Lock()
        self._stuck: set[str] = set()
        self._asking: tuple[str, float] | None = None
        self._turn = 0
        self._closed = threading.Event()

    def readings(self) -> tuple[Reading, ...]:
        """In the order of the sources."""
        with self._lock:
            return tuple(self._readings[s.name] for s in self._sources)

    def read_now(self, now: float) -> tuple[Reading, ...]:
        """Ask all of them here, one after the other."""
        for source in self._sources:
            self._keep(source, self._read(source, now))
        return self.readings()

    def start(self) -> None:
        self._turn += 1
        threading.Thread(target=self._run, args=(self._turn,), name=f"signals-{self._turn}", daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def check(self) -> None:
        """See that the asking goes on: leave a thread that hangs to its source, and go on with another."""
        with self._lock:
            asking = self._asking
            if asking is None or time.monotonic() - asking[1] < HANGS_S or self._closed.is_set():
                return
            name = asking[0]
            self._stuck.add(name)
            self._asking = None
            self._readings[name] = unknown(name, f"no answer within {HANGS_S:g} s")
        log.warning("a signal hangs", signal=name)
        self.start()
        self._on_change()

    def _run(self, turn: int) -> None:
        while not self._closed.is_set():
            for source in self._sources:
                with self._lock:
                    if source.name in self._stuck or self._due[source.name] > time.monotonic():
                        continue
                    self._asking = (source.name, time.monotonic())
                reading = self._read(source, time.time())
                with self._lock:
                    late = turn != self._turn
                    if not late:
                        self._asking = None
                    self._stuck.discard(source.name)
                    self._due[source.name] = time.monotonic() + source.every_s
                self._keep(source, reading)
                if late or self._closed.is_set():
                    return
            with self._lock:
                rest = min(self._due.values(), default=0.0) - time.monotonic()
            self._closed.wait(min(max(rest, 0.5), 60.0))

    def _read(self, source: Source, now: float) -> Reading:
        try:
            reading = source.read(now)
            if not isinstance(reading, Reading) or reading.name != source.name:
                raise TypeError(f"it gave {reading!r}")
            return reading
        except Exception as error:  # a source that lies or breaks must not stop the others, whatever it raises
            told = error.message if isinstance(error, Zk0Error) else str(error)
            return unknown(source.name, told or type(error).__name__)

    def _keep(self, source: Source, reading: Reading) -> None:
        with self._lock:
            before = self._readings[source.name]
            self._readings[source.name] = reading
        if (before.level, before.known) != (reading.level, reading.known):
            self._on_change()


def finite(text: str, low: float, high: float) -> float:
    """A number from a file of the system. Raises ValueError for anything that cannot be one."""
    value = float(text)
    if not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{text.strip()!r} is no plausible value")
    return value


__all__ = ["HANGS_S", "Board", "Level", "finite"]
