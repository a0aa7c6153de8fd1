"""Versions as folders that LeRobot loads: made by the publisher worker, under `models/` or where wanted.

Not for fetching blobs (exchange.py) nor for what is in such a folder (zk0d.train.publish).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from zk0d.daemon.store import Store, Version
from zk0d.daemon.uplink import Uplink
from zk0d.daemon.workers import Workers
from zk0d.errors import LinkLostError, UsageError, WorkerError, Zk0Error

_REPORT_S = 0.5
Emit = Callable[..., Awaitable[None]]


class Models:
    """The versions this node knows of, and their folders."""

    def __init__(self, store: Store, state: Path, workers: Workers, uplink: Uplink) -> None:
        self._store, self._workers, self._uplink = store, workers, uplink
        self._folder = state / "models"
        self._making = asyncio.Lock()

    def find(self, text: str) -> Version:
        """The version meant by "3", "latest", "FEDERATION/3" or "FEDERATION/latest". Raises UsageError."""
        name, _, number = text.rpartition("/")
        versions = self._store.versions(name or None)
        names = sorted({v.federation for v in versions})
        if not versions:
            known = ", ".join(f.name for f in self._store.federations()) or "none"
            raise Zk0Error(f"no version of {name or 'any federation'} is known yet", f"member of: {known}")
        if not name and len(names) > 1:
            raise UsageError(f"{text!r} could be of {' or '.join(names)}", f"write {names[0]}/{text}")
        wanted = number.lstrip("v") or "latest"
        if wanted == "latest":
            return versions[-1]
        found = [v for v in versions if str(v.number) == wanted]
        if not found:
            there = ", ".join(str(v.number) for v in versions)
            raise UsageError(f"there is no version {number!r} of {names[0]}", f"known: {there}, or latest")
        return found[0]

    def path(self, version: Version) -> Path:
        """Where the version's folder is, or would be."""
        return self._folder / version.federation / f"{version.number:04d}"

    def table(self) -> list[dict[str, Any]]:
        """Every known version for `model list` and `show`."""
        return [
            {
                "federation": v.federation,
                "version": v.number,
                "digest": v.digest,
                "spec_digest": v.spec_digest,
                "metrics": v.metrics,
                "at": v.at,
                "fetched": v.fetched,
                "folder": str(self.path(v)) if self.path(v).is_dir() else None,
            }
            for v in self._store.versions()
        ]

    async def pull(self, version: Version, emit: Emit) -> None:
        """Fetch all blobs of a version; `transfer` events say how far it is. LinkLostError when the hub is away."""
        needed = [version.spec_digest, version.digest, version.base_digest]
        if all(self._uplink.blobs.has(d) for d in needed):
            return
        if self._uplink.link is None:
            raise LinkLostError(f"version {version.number} is not on this machine and there is no hub", "enrol first")
        pulling = asyncio.create_task(self._uplink.exchange.pull(version, base=True))
        try:
            while not (await asyncio.wait({pulling}, timeout=_REPORT_S))[0]:
                state = self._uplink.link.state if self._uplink.link else None
                for t in state.transfers if state else []:
                    if t.digest in needed and t.direction == "down":
                        await emit("transfer", **t.row())
            await pulling
        finally:
            pulling.cancel()

    async def folder(self, version: Version, emit: Emit) -> Path:
        """The version's LeRobot folder under `models/`, made now if it is not there yet; events say what takes time."""
        path = self.path(version)
        async with self._making:
            if not path.is_dir():
                await self._publish(version, path, emit)
        return path

    async def export(self, version: Version, target: Path, made: Path, emit: Emit) -> dict[str, Any]:
        """Make the version's folder at `made`, to be moved to `target` by whoever asked.

        Made anew rather than copied: LeRobot keeps the place of a SmolVLA's backbone as an absolute path.
        """
        async with self._making:
            await self._publish(version, made, emit, target)
        return {"federation": version.federation, "version": version.number, "folder": str(target)}

    async def _publish(self, version: Version, folder: Path, emit: Emit, placed: Path | None = None) -> None:
        await emit("fetching", version=version.number)
        self._uplink.exchange.in_use.add(version.digest)
        try:
            await self._make(version, folder, emit, placed or folder)
        finally:
            self._uplink.exchange.in_use.discard(version.digest)

    async def _make(self, version: Version, folder: Path, emit: Emit, placed: Path) -> None:
        await self.pull(version, emit)
        await emit("publishing", version=version.number)
        blobs = self._uplink.blobs
        known = [v for v in self._store.versions(version.federation) if v.number <= version.number]
        job = {
            "spec": str(blobs.path(version.spec_digest)),
            "base": str(blobs.path(version.base_digest)),
            "version": str(blobs.path(version.digest)),
            "number": version.number,
            "publish": str(folder),
            "placed": str(placed),
            "card": {
                "federation": version.federation,
                **{k: version.metrics.get(k) for k in ("updates", "samples")},
                "history": [
                    {"version": v.number, "updates": v.metrics.get("updates"), "heldout_loss": heldout_loss(v.metrics)}
                    for v in known
                ],
            },
            "datasets": [],
            "seed": 0,
            "device": "cpu",
            "cache": str(self._workers.work / "cache"),
        }
        worker = await self._workers.start("publisher", f"{version.number:04d}", job, lambda event: None)
        result = await worker.wait()
        if result.get("finished") is False:
            raise WorkerError(f"making {folder} was stopped ({result.get('reason')})", "run the command again")


def heldout_loss(metrics: dict[str, Any]) -> float | None:
    """The loss the hub measured, if it has said one."""
    loss = metrics.get("heldout_loss")
    return float(loss) if isinstance(loss, int | float) else None
