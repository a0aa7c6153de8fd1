"""At the daemon's start: takes that had ended when it was killed, or were cut off by that, become episodes.

The work is the recorder worker's (`robot.recorder.recover`), with no arm opened. Not for sessions (sessions.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from zk0d.daemon.store import Store
from zk0d.daemon.workers import Workers
from zk0d.errors import WorkerError


def left_behind(roots: Iterable[Path]) -> list[Path]:
    """The datasets among `roots` in which a take waits in its staging folder, or an episode to be published."""
    waiting = ("staging/*/*.json", "committed/*/episode.json")
    return sorted({root for root in roots if any(any((root / ".zk0").glob(p)) for p in waiting)})


async def adopt(workers: Workers, store: Store, roots: Iterable[Path]) -> list[Path]:
    """Adopt them all, a dataset at a time, and say so in the store's events → the datasets that are settled."""
    changed: list[Path] = []
    for root in left_behind(roots):
        name = f"adopt_{time.time_ns():x}"
        try:
            worker = await workers.start("recorder", name, {"recover": str(root)}, lambda event: None)
            result = await worker.wait()
        except WorkerError as error:
            store.event("record", f"takes of {root.name!r} could not be saved yet: {error.message}")
            continue
        found: dict[str, list[str]] = result["recovered"]
        parts = [f"{len(found.get('adopted', []))} take(s) of {root.name!r} were saved after the last run was cut"]
        for key, what in (("cut", "up to where they were cut off"), ("removed", "not kept"),
                          ("quarantined", "set aside in .zk0/quarantine"), ("waiting", "not saved yet")):  # fmt: skip
            if found.get(key):
                parts.append(f"{what}: {', '.join(map(str, found[key]))}")
        store.event("record", "; ".join(parts))
        if not found.get("waiting"):
            changed.append(root)
    return changed
