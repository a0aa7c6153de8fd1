"""Entries of a program's log by their fields: from its own files of JSON lines, and as the journal tells them.

What `zk0ctl logs` filters by. Not for writing logs (log.py, journal.py). Standard library only.
"""

from __future__ import annotations

import datetime as dt
import fnmatch
import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LEVELS = ("debug", "info", "warning", "error")
_PRIORITY = {"0": "error", "1": "error", "2": "error", "3": "error", "4": "warning", "7": "debug"}
_NOT_FIELDS = frozenset(("event", "level", "timestamp", "exception", "text"))
_PLUMBING = ("logger", "program")
_JOURNALS_OWN = frozenset(("event", "text"))


@dataclass(frozen=True)
class Entry:
    """One entry. `at` in seconds since the epoch; `event` is "" for what is none of our own (systemd's words)."""

    at: float
    level: str
    event: str
    text: str
    fields: dict[str, str]

    def row(self) -> dict[str, Any]:
        """For `--json`."""
        return {"at": self.at, "level": self.level, "event": self.event, "text": self.text, **self.fields}


@dataclass(frozen=True)
class Filter:
    """Which entries are wanted. `event` and the values of `fields` may be patterns (* and ?); `since` 0: any time."""

    event: str = ""
    level: str = ""
    since: float = 0.0
    fields: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, request: dict[str, Any]) -> Filter:
        """From the plain values of a request. Raises ValueError."""
        level, fields = str(request.get("level") or ""), request.get("fields") or {}
        if (level and level not in LEVELS) or not isinstance(fields, dict):
            raise ValueError("level or fields cannot be used")
        given = {str(k).lower(): str(v) for k, v in fields.items()}
        return cls(str(request.get("event") or ""), level, float(request.get("since") or 0.0), given)

    def plain(self) -> dict[str, Any]:
        return {"event": self.event, "level": self.level, "since": self.since, "fields": self.fields}

    def wants(self, entry: Entry) -> bool:
        if entry.at < self.since or (self.level and LEVELS.index(entry.level) < LEVELS.index(self.level)):
            return False
        if self.event and not fnmatch.fnmatchcase(entry.event, self.event):
            return False
        return all(fnmatch.fnmatchcase(entry.fields.get(k, ""), v) for k, v in self.fields.items())


def of_line(line: str) -> Entry | None:
    """A line of `log/zk0d.log`; None when it is none, as after a power cut."""
    try:
        value = json.loads(line)
        at = dt.datetime.fromisoformat(value["timestamp"]).timestamp()
        fields = {k: str(v) for k, v in value.items() if k not in _NOT_FIELDS and v is not None}
        told = str(value.get("text") or "") or " ".join(f"{k}={v}" for k, v in fields.items() if k not in _PLUMBING)
        level = str(value.get("level", "info"))
        return Entry(at, level if level in LEVELS else "error", str(value["event"]), told, fields)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def of_journal(line: str) -> Entry | None:
    """A line of `journalctl -o json`; None when it is none."""
    try:
        value = json.loads(line)
        fields = {k[4:].lower(): _text(v) for k, v in value.items() if k.startswith("ZK0_")}
        event = fields.get("event", "")
        unit = value.get("UNIT") or value.get("_SYSTEMD_UNIT")
        own = {k: v for k, v in fields.items() if k not in _JOURNALS_OWN and v}
        if unit:
            own.setdefault("unit", _text(unit))
        message = _text(value.get("MESSAGE", ""))
        if event and not fields.get("text"):
            message = message.removeprefix(event).strip()
        at = int(value["__REALTIME_TIMESTAMP"]) / 1e6
        return Entry(at, _PRIORITY.get(str(value.get("PRIORITY", "6")), "info"), event, message, own)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _text(value: Any) -> str:
    if isinstance(value, list):  # the journal gives bytes that are no UTF-8 as numbers, and several values as a list
        return bytes(value).decode(errors="replace") if all(isinstance(n, int) for n in value) else str(value[-1])
    return str(value)


def rotated(path: Path) -> list[Path]:
    """A log file and those it was rotated into, oldest first."""
    older = [path.with_name(f"{path.name}.{n}") for n in range(9, 0, -1)]
    return [p for p in (*older, path) if p.exists()]


def matching(paths: Iterable[Path], wanted: Filter, count: int) -> list[Entry]:
    """The last `count` entries that are wanted, oldest first."""
    found: deque[Entry] = deque(maxlen=count)
    for path in paths:
        with path.open(errors="replace") as lines:
            found.extend(among(lines, wanted))
    return list(found)


def among(lines: Iterable[str], wanted: Filter) -> Iterator[Entry]:
    """The entries among lines of a log file that are wanted."""
    for line in lines:
        entry = of_line(line)
        if entry is not None and wanted.wants(entry):
            yield entry
