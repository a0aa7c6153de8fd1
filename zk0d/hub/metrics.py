"""A federation's metrics.jsonl: a line per version, up to the first that waits for its evaluation.

Written on and taken up where an earlier run left it; its chart is drawn by evaluation.py.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from zk0d.durable import publish
from zk0d.hub import outputs
from zk0d.hub.ledger import Ledger
from zk0d.hub.receipts import timestamp

AT_ONCE = 32
"""Versions whose lines are made between two looks of the event loop."""


class Metrics:
    """The files of all federations of a hub's folder."""

    def __init__(self, directory: Path, ledger: Ledger) -> None:
        self._directory, self._ledger = directory, ledger
        self._written: dict[str, int] = {}
        """Federation → the version whose line is the next of its metrics.jsonl."""
        self._one = asyncio.Lock()

    def path(self, name: str) -> Path:
        return self._directory / "federations" / name / "metrics.jsonl"

    async def begin_anew(self, name: str) -> None:
        """A version that had its line waits again: that line and what follows are not so any more. Raises OSError."""
        async with self._one:
            self._written.pop(name, None)
            self.path(name).unlink(missing_ok=True)

    async def report(self, name: str) -> bool:
        """Write metrics.jsonl, a line per version up to the first that still waits → whether any is new."""
        async with self._one:
            return await self._report(name, self.path(name))

    async def _report(self, name: str, path: Path) -> bool:
        first = self._written.pop(name, None)
        if first is None:  # this run's first report, or one after a report that failed
            first = self._taken_up(name, path)
        out, last = path if first else path.with_name(f".{path.name}.tmp"), first - 1
        if not first:
            out.unlink(missing_ok=True)
        async for lines in self.batches(name, first):
            await asyncio.to_thread(_append, out, _text(lines))
            last = lines[-1]["version"]
        new = last >= first
        if new and not first:
            await asyncio.to_thread(publish, out, path)
        self._written[name] = last + 1
        return new

    def _taken_up(self, name: str, path: Path) -> int:
        """The version whose line is the next of a metrics.jsonl that an earlier run left; 0: it is written anew. By its
        last line, as after years there are gigabytes of them."""
        try:
            text, end = outputs.last_line(path)
            known = int(json.loads(text)["version"])
            if self._ledger.assessments.waits(name, known):  # again: a kill came before `begin_anew`
                path.unlink()
                return 0
            if text != _text(self.lines(name, known, known + 1)):
                return 0
            os.truncate(path, end)  # a kill tore what followed
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return known + 1

    async def batches(self, name: str, first: int = 0) -> AsyncIterator[list[dict[str, Any]]]:
        """`lines`, some at a time: what a year leaves takes minutes, in which nodes are to be answered."""
        whole = True
        while whole:
            lines = self.lines(name, first, first + AT_ONCE)
            first, whole = first + AT_ONCE, len(lines) == AT_ONCE  # else some are not evaluated yet
            if lines:
                yield lines
            await asyncio.sleep(0)

    def lines(self, name: str, first: int = 0, end: int = 1 << 62) -> list[dict[str, Any]]:
        """What metrics.jsonl says of the versions from `first` to before `end`. Bytes are payload bytes that came with
        a version's updates, and that nodes took between the version before and it; losses are null where an evaluation
        was given up or had no dataset."""
        lines: list[dict[str, Any]] = []
        earlier = self._ledger.version(name, first - 1) if first else None
        before = earlier["created_at"] if earlier is not None else 0.0
        for version in self._ledger.versions(name, first, end):
            if version["evaluation"] == "waiting":
                break
            updates = self._ledger.merged_into(name, version["number"])
            result = json.loads(version["result"])
            statements = {u["node"]: json.loads(u["statement"]) for u in updates}
            lines.append(
                {
                    "version": version["number"],
                    "updates": version["updates"],
                    "samples": version["samples"],
                    "heldout_loss": version["loss"],
                    "datasets": result.get("datasets", {}),
                    "train_loss": {
                        n: {"first": s["loss_first"], "last": s["loss_last"]} for n, s in sorted(statements.items())
                    },
                    "weights": {u["node"]: u["weight"] for u in updates},
                    "norms": {u["node"]: u["norm"] for u in updates},
                    "staleness": {u["node"]: version["number"] - 1 - u["base_version"] for u in updates},
                    "bytes_up": sum(u["size"] for u in updates),
                    "bytes_down": self._ledger.assessments.bytes_down(name, before, version["created_at"]),
                    "seconds": {
                        "round": round(version["created_at"] - before, 3) if before else 0.0,
                        "merge": round(version["merge_s"], 3),
                        "evaluation": result.get("seconds"),
                    },
                    "created_at": timestamp(version["created_at"]),
                    "digest": version["digest"],
                    "evaluation": version["evaluation"],
                    "problem": result.get("error", ""),
                }
            )
            before = version["created_at"]
        return lines


def _text(lines: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _append(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
