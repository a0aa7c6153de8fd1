"""Removes folders that are half done: what a killed daemon left, and what came in and is used up.

At the start they only get another name; a thread removes them, so that READY does not wait. Not for anybody's data.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import structlog

from zk0d.filetree import PART

log = structlog.get_logger("sweeping")

FOLDER = ".carried"
"""Below the folder of datasets, so that what has come becomes a dataset by its new name alone."""
_AWAY = ".swept_"


class Sweeper:
    """Removes what nobody can name any more, and never raises. One for the daemon; `close` cuts it short."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, datasets: Path, work: Path) -> None:
        """Put away what a killed daemon, or its workers, had half done, and begin to remove it."""
        away = [new for old in _halves(datasets, work) if (new := _put_away(old))]
        if away:
            self._thread = threading.Thread(target=self._remove_all, args=(away,), name="sweeping", daemon=True)
            self._thread.start()

    def _remove_all(self, folders: list[Path]) -> None:
        for folder in folders:
            self.remove(folder)

    def remove(self, folder: Path) -> None:
        """Remove a folder with all that is in it (blocks). What stays is logged, and tried again at the next start."""
        try:
            # Not shutil.rmtree: of Python 3.12, it ends with a RecursionError in a folder that is deep enough.
            for where, below, names in os.walk(folder, topdown=False):
                for path in (os.path.join(where, name) for name in [*names, *below]):
                    if self._stop.is_set():
                        return
                    with contextlib.suppress(FileNotFoundError):  # a folder, emptied and gone by now
                        os.unlink(path)
                os.rmdir(where)
        except Exception as error:
            log.warning("a folder that is half done stays", folder=str(folder), why=repr(error))

    def close(self) -> None:
        """End soon; the rest is for the next start."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(1.0)


def _halves(datasets: Path, work: Path) -> Iterator[Path]:
    """`datasets` may be a folder that others write in too: only names that nobody else gives."""
    patterns = ((datasets, FOLDER), (datasets, f".*{PART}*"), (datasets, f"{_AWAY}*"), (work, "results"),
                (work, f"{_AWAY}*"))  # fmt: skip
    for folder, pattern in patterns:
        with contextlib.suppress(OSError):
            yield from (path for path in sorted(folder.glob(pattern)) if path.is_dir() and not path.is_symlink())


def _put_away(folder: Path) -> Path | None:
    if folder.name.startswith(_AWAY):
        return folder
    away = folder.with_name(f"{_AWAY}{time.time_ns():x}")
    try:
        folder.rename(away)
    except OSError as error:
        log.warning("a folder that is half done stays", folder=str(folder), why=repr(error))
        return None
    return away
