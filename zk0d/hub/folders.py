"""The LeRobot folders that a hub should have and lacks: of versions whose evaluation failed, and all after a restore.

Which those are, how often each was tried and whether the disk has room for one; making one is evaluation.py's, by the
evaluator but without a dataset. Which may go again is here as well.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import structlog

from zk0d.errors import PayloadError
from zk0d.hub import outputs
from zk0d.hub.config import Config
from zk0d.hub.ledger import Ledger
from zk0d.hub.store import Row
from zk0d.model.blobs import BlobStore, DiskFullError

log = structlog.get_logger("evaluation")


class Folders:
    """`configs` holds each federation's settings; a folder is tried `attempts` times in a run of the hub.
    `merge_room()`: bytes of disk that the next merges need, which no folder may take."""

    def __init__(
        self, directory: Path, ledger: Ledger, blobs: BlobStore, configs: dict[str, Config], attempts: int,
        merge_room: Callable[[], int] = lambda: 0,
    ) -> None:  # fmt: skip
        self._directory, self._ledger, self._blobs = directory, ledger, blobs
        self._configs, self._attempts, self._merge_room = configs, attempts, merge_room
        self._look: set[str] = set()
        """Federations of which some may be lacking."""
        self._queues: dict[str, list[int]] = {}
        """Those that were found to be lacking, the next one last: to look for them reads a folder of all versions."""
        self._tried: dict[tuple[str, int], int] = {}
        self._reasons: dict[str, dict[int, str]] = {}

    def _versions(self, name: str) -> Path:
        return self._directory / "federations" / name / "versions"

    def path(self, name: str, number: int) -> Path:
        """Where a version's folder is, or would be."""
        return self._versions(name) / f"{number:04d}"

    async def present(self, name: str) -> set[int]:
        """The versions of a federation that have their folder; reads the disk in a thread."""
        return await asyncio.to_thread(_present, self._versions(name))

    def look(self, name: str) -> None:
        """Some of a federation may be lacking."""
        self._look.add(name)

    async def next(self) -> Row | None:
        """The version that is to have its folder now; None: no more."""
        while names := self._look & self._configs.keys():
            name = min(names)
            self._look.discard(name)  # before: what is said meanwhile is looked at again
            lacking = await self._lacking(name)
            known = set(lacking)
            self._reasons[name] = {n: why for n, why in self._reasons.get(name, {}).items() if n in known}
            self._queues[name] = lacking
        for name in sorted(self._queues.keys() & self._configs.keys()):
            queue = self._queues[name]
            while queue:
                row = self._ledger.version(name, queue[-1])
                waits = row is not None and row["retired_at"] is None and row["evaluation"] != "waiting"
                if waits and self._tried.get((name, queue[-1]), 0) < self._attempts:
                    return row
                queue.pop()
            del self._queues[name]
        return None

    async def _lacking(self, name: str) -> list[int]:
        """Versions that are kept, wait for no evaluation, have no folder and a file to make one of. The newest last,
        which is made first; but the oldest where every version is pushed, and in that order."""
        config, kept = self._configs[name], self._ledger.assessments.kept(name)
        numbers, best = [int(r["number"]) for r in kept], self._ledger.retention.best(name)
        gone = set(outputs.superfluous(numbers, config["publish.keep_last"], config["publish.keep_every"], best))
        settled = {int(r["number"]): r["digest"] for r in kept if r["evaluation"] != "waiting"}

        def found() -> list[int]:
            have = _present(self._versions(name)) | gone
            return [n for n, digest in settled.items() if n not in have and self._blobs.has(digest)]

        lacking = await asyncio.to_thread(found)
        return lacking[::-1] if config["publish.repo"] and config["publish.push"] == "every" else lacking

    def require_room(self, version: Row) -> None:
        """DiskFullError where a version's folder, which is a whole model, would take what the next merges need."""
        federation = self._ledger.federation(version["federation"])
        try:  # all of the model's tensors in float32, as they are published
            size = self._blobs.size(federation["base"])
        except (PayloadError, OSError):
            return  # it cannot be made at all: the worker says so
        try:
            self._blobs.require_space(size + self._merge_room())
        except DiskFullError as error:
            raise DiskFullError(error.message, "free some space: it is then made by itself") from None

    def put_off(self, version: Row, error: DiskFullError) -> None:
        """There is no room for a folder now, which counts as no attempt."""
        name, number = version["federation"], int(version["number"])
        known = self._reasons.setdefault(name, {})
        if number not in known:  # the same at each look: said once
            log.warning("no room for a version's folder", federation=name, version=number, reason=str(error))
        known[number] = str(error)

    def made(self, name: str, number: int) -> None:
        """It is there."""
        queue = self._queues.get(name, [])
        if queue and queue[-1] == number:
            queue.pop()
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

    async def clear(self, name: str, number: int) -> None:
        """Delete what an attempt at a folder left that did not end."""
        folder = self.path(name, number)
        await asyncio.to_thread(shutil.rmtree, folder.with_name(f".{folder.name}.tmp"), True)

    async def keep(self, name: str) -> None:
        """Delete the folders that retention gives up."""
        config, top = self._configs[name], self._ledger.retention.best(name)
        if config["publish.keep_last"] == 0:  # all stay
            return
        have = sorted(await self.present(name))
        for number in outputs.superfluous(have, config["publish.keep_last"], config["publish.keep_every"], top):
            await asyncio.to_thread(shutil.rmtree, self.path(name, number), True)
            log.info("folder deleted by retention", federation=name, version=number)


def _present(versions: Path) -> set[int]:
    try:
        with os.scandir(versions) as entries:
            return {int(e.name) for e in entries if e.name.isascii() and e.name.isdigit() and e.is_dir()}
    except OSError:  # none was made yet, or the worker that is to make one says what is in the way
        return set()
