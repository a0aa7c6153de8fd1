"""The LeRobot folders that a hub should have and lacks: of versions whose evaluation failed, and all after a restore.

Which those are, and how often each was tried; making one is evaluation.py's, by the evaluator but without a dataset.
"""

from __future__ import annotations

from pathlib import Path

from zk0d.hub import outputs
from zk0d.hub.config import Config
from zk0d.hub.ledger import Ledger
from zk0d.hub.store import Row


class Folders:
    """`configs` holds each federation's settings; a folder is tried `attempts` times in a run of the hub."""

    def __init__(self, directory: Path, ledger: Ledger, configs: dict[str, Config], attempts: int) -> None:
        self._directory, self._ledger, self._configs, self._attempts = directory, ledger, configs, attempts
        self._look: set[str] = set()
        """Federations of which some may be lacking."""
        self._tried: dict[tuple[str, int], int] = {}
        self._reasons: dict[str, dict[int, str]] = {}

    def path(self, name: str, number: int) -> Path:
        """Where a version's folder is, or would be."""
        return self._directory / "federations" / name / "versions" / f"{number:04d}"

    def look(self, name: str) -> None:
        """Some of a federation may be lacking."""
        self._look.add(name)

    def next(self) -> Row | None:
        """The newest version that is to have its folder now; None: no more."""
        for name in sorted(self._look & self._configs.keys()):
            lacking = self._lacking(name)
            self._reasons[name] = {n: why for n, why in self._reasons.get(name, {}).items() if n in lacking}
            for number in lacking:
                if self._tried.get((name, number), 0) < self._attempts:
                    return self._ledger.version(name, number)
            self._look.discard(name)
        return None

    def _lacking(self, name: str) -> list[int]:
        """Versions that are kept, wait for no evaluation and have no folder, newest first."""
        config, kept = self._configs[name], self._ledger.assessments.kept(name)
        numbers, best = [int(r["number"]) for r in kept], self._ledger.retention.best(name)
        gone = set(outputs.superfluous(numbers, config["publish.keep_last"], config["publish.keep_every"], best))
        settled = [int(r["number"]) for r in reversed(kept) if r["evaluation"] != "waiting"]
        return [n for n in settled if n not in gone and not self.path(name, n).is_dir()]

    def made(self, name: str, number: int) -> None:
        self._tried.pop((name, number), None)
        self._reasons.get(name, {}).pop(number, None)

    def failed(self, name: str, number: int, reason: str) -> int:
        """Count an attempt → how many there were before it."""
        before = self._tried.get((name, number), 0)
        self._tried[name, number] = before + 1
        self._reasons.setdefault(name, {})[number] = reason
        return before

    def forget(self, name: str) -> None:
        """The attempts so far: a person has mended what made them fail."""
        for key in [k for k in self._tried if k[0] == name]:
            del self._tried[key]
        self._reasons.pop(name, None)
        self.look(name)

    def problem(self, name: str) -> str:
        """What keeps a federation from having its folders, for status; "" when nothing does."""
        lacking = self._reasons.get(name)
        if not lacking:
            return ""
        number = max(lacking)
        return f"version {number} has no folder: {lacking[number]}"
