"""At the daemon's start: takes that had ended when it was killed, but were not verified yet, become episodes.

The work is the recorder worker's (`robot.recorder.recover`), with no arm opened. Not for sessions (sessions.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from zk0d.daemon.store import Store
from zk0d.daemon.workers import Workers
from zk0d.errors import WorkerError


def left_behind(roots: Iterable[Path]) -> list[Path]:
    """The datasets among `roots` in which an ended take waits in its staging folder."""
    return sorted({root for root in roots if any((root / ".zk0" / "staging").glob("*/take.json"))})


async def adopt(workers: Workers, store: Store, roots: Iterable[Path]) -> list[Path]:
    """Adopt them all, a dataset at a time, and say so in the store's events → the datasets that have changed."""
    changed: list[Path] = []
    for number, root in enumerate(left_behind(roots)):
        try:
            worker = await workers.start("recorder", f"adopt-{number}", {"recover": str(root)}, lambda event: None)
            result = await worker.wait()
        except WorkerError as error:
            store.event("record", f"ended takes of {root.name!r} could not be saved yet: {error.message}")
            continue
        found = result["recovered"]
        adopted, aside = len(found.get("adopted", [])), found.get("quarantined", [])
        store.event(
            "record", f"{adopted} ended take(s) of {root.name!r} were saved after the last run of zk0d was cut"
            + (f"; set aside: {'; '.join(aside)}" if aside else "")
        )  # fmt: skip
        changed.append(root)
    return changed
