"""Which episodes are trained on: the rules on their quality reports, and what a person has said of them, which wins.

Reads the reports that the recorder left (robot/quality.py); episodes of other programs have none and are all good.
Not for the reports.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zk0d.daemon.config import Config
from zk0d.daemon.store import Dataset, Store

EXCLUDED, INCLUDED = "excluded_episodes", "included_episodes"
RECORDS = "meta/zk0/episodes"
_CARE = ("ok", "warn", "slow", "release")
_read: dict[Path, tuple[int, dict[str, Any]]] = {}
"""Reports by file, with the file's time: an episode's record does not change."""


@dataclass(frozen=True)
class Rules:
    """The `[quality]` settings; shares in percent of the rows, 0 for no such rule."""

    late: float = 25.0
    gap_s: float = 1.0
    stale: float = 25.0
    clipped: float = 50.0
    bus_errors: float = 10.0
    min_s: float = 0.2
    care: str = "release"

    @classmethod
    def of(cls, config: Config) -> Rules:
        return cls(**{name: config["quality", name] for name in cls.__dataclass_fields__})

    def against(self, report: Mapping[str, Any]) -> list[str]:
        """Why an episode with this report is not trained on; empty when it is. A missing field says nothing."""
        rows = report.get("rows") or max([0, *(report.get("frames") or {}).values()])
        found: list[str] = []

        def share(what: str, count: float, limit: float) -> None:
            if limit and rows and 100.0 * count / rows > limit:
                found.append(f"{100.0 * count / rows:.0f}% {what} (rule: {limit:g}%)")

        share("late rows", report.get("late", 0), self.late)
        for camera, count in (report.get("stale") or {}).items():
            share(f"stale images of {camera}", count, self.stale)
        share("clipped goals", report.get("clipped", 0), self.clipped)
        share("bus errors", sum((report.get("bus_errors") or {}).values()), self.bus_errors)
        longest = (report.get("gaps") or {}).get("longest_s", 0.0)
        if self.gap_s and longest > self.gap_s:
            found.append(f"a gap of {longest:.1f} s (rule: {self.gap_s:g} s)")
        if self.min_s and report.get("seconds", self.min_s) < self.min_s:
            found.append(f"only {report['seconds']:.1f} s long (rule: {self.min_s:g} s)")
        level = report.get("care", "ok")
        if self.care != "never" and level in _CARE and _CARE.index(level) >= _CARE.index(self.care):
            words = {"warn": "a servo needed care", "slow": "the arm was slowed", "release": "the arm was let go"}
            found.append(words.get(level, level))
        return found


def reports(root: Path) -> dict[int, dict[str, Any]]:
    """Quality report of each episode that our recorder made; one whose record cannot be read is left out."""
    found: dict[int, dict[str, Any]] = {}
    for path in sorted((root / RECORDS).glob("*.json")):
        try:
            stamp = path.stat().st_mtime_ns
            if path not in _read or _read[path][0] != stamp:
                record = json.loads(path.read_text())
                kept = {**record["quality"], "task": record.get("task", ""), "facts": _plain(record.get("facts") or {})}
                _read[path] = (stamp, kept)
            found[int(path.stem)] = _read[path][1]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {k: facts[k] for k in ("success", "ended_by", "committed_at") if k in facts}


def keep_out(store: Store, name: str, episode: int) -> None:
    """Keep one more episode of a dataset out of training."""
    there = store.get(EXCLUDED, {})
    store.put(EXCLUDED, {**there, name: sorted({*there.get(name, ()), episode})})


class Selection:
    """What is trained on, by rules and by word."""

    def __init__(self, store: Store, rules: Rules) -> None:
        self._store = store
        self.rules = rules

    def kept_out(self, name: str) -> set[int]:
        """Episodes that a person keeps out of training."""
        return set(self._store.get(EXCLUDED, {}).get(name, ()))

    def taken_in(self, name: str) -> set[int]:
        """Episodes that a person trains on whatever the rules say."""
        return set(self._store.get(INCLUDED, {}).get(name, ()))

    def set(self, name: str, out: Iterable[int], taken_in: Iterable[int]) -> None:
        """Remember what a person has said."""
        for key, episodes in ((EXCLUDED, set(out)), (INCLUDED, set(taken_in))):
            others = {k: v for k, v in self._store.get(key, {}).items() if k != name}
            self._store.put(key, {**others, **({name: sorted(episodes)} if episodes else {})})

    def out(self, dataset: Dataset) -> dict[int, str]:
        """The episodes that are not trained on, each with the reason."""
        kept_out, taken_in = self.kept_out(dataset.name), self.taken_in(dataset.name)
        found = {n: "; ".join(why) for n, r in reports(dataset.root).items() if (why := self.rules.against(r))}
        found = {n: why for n, why in found.items() if n not in taken_in}
        return {**found, **dict.fromkeys(sorted(kept_out), "excluded by you")}

    def trained(self, dataset: Dataset, total: int) -> list[int] | None:
        """Which of `total` episodes a job trains on; None for all."""
        out = self.out(dataset)
        return [n for n in range(total) if n not in out] if out else None
