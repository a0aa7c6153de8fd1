"""One user at a time of a dataset's folder, and its replacement by an edited one that a kill in between cannot spoil.

What a person said of episodes is renumbered with the swap, never without it. Not for the editing (robot/curation.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zk0d import durable
from zk0d.daemon.quality import Selection
from zk0d.daemon.store import Store
from zk0d.errors import DatasetError

SWAP = "dataset_swap"
"""The store's key of a swap that was begun: whose, the new folder's inode, and the episode words that hold in it."""


@contextlib.contextmanager
def held(roots: Sequence[Path], *, alone: bool = False) -> Iterator[None]:
    """Hold the lock that a recorder takes (robot/dataset.py), so that no episode comes meanwhile.

    A folder that zk0d may not write into has none, and no recorder. Raises DatasetError when one is in use.
    """
    with contextlib.ExitStack() as stack:
        for root in roots:
            try:
                (root / ".zk0").mkdir(exist_ok=True)
                lock = stack.enter_context((root / ".zk0" / "lock").open("a"))
            except OSError:
                continue
            try:
                fcntl.flock(lock, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DatasetError(
                    f"{root} is in use", "wait until its recording, or the other command, ends"
                ) from None
        yield


def swap(store: Store, choose: Selection, name: str, root: Path, fresh: Path, gone: Sequence[int]) -> Path:
    """Put `fresh`, which lacks the episodes `gone`, in `root`'s place → where the former folder is now."""
    before = root.with_name(f"{root.name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
    words = [renumbered(said, gone) for said in (choose.kept_out(name), choose.taken_in(name))]
    store.put(SWAP, {"name": name, "root": str(root), "inode": fresh.stat().st_ino, "words": words})
    try:
        durable.exchange(fresh, root)  # at no moment is there none under that name
    except OSError:
        root.rename(before)
        fresh.rename(root)
        settle(store, choose)
    else:
        settle(store, choose)
        fresh.rename(before)
    return before


def settle(store: Store, choose: Selection) -> None:
    """At the end of a swap, and at the daemon's start: the new folder's words hold if it has its name."""
    begun: dict[str, Any] | None = store.get(SWAP)
    if begun is None:
        return
    with contextlib.suppress(OSError):
        if Path(begun["root"]).stat().st_ino == begun["inode"]:
            choose.set(begun["name"], *begun["words"])
    store.put(SWAP, None)


def renumbered(episodes: set[int], gone: Sequence[int]) -> list[int]:
    """Numbers that `episodes` have once those `gone` are."""
    return sorted(n - sum(e < n for e in gone) for n in episodes - set(gone))
