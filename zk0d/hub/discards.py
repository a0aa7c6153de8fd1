"""Deleting blobs that nothing needs any more, but never under a backup that is being made.

A backup (backup.py, a process of its own) holds a lock on the hub's folder from before it copies the database until the
last blob is copied; what is to go meanwhile goes later. A kill in between is swept at the next start.

The folder itself, as it is there already: a file for the lock would be root's after a backup by root, and none of the
hub's user's to open, nor could one be made on a full disk, where deleting helps.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from zk0d.errors import from_os
from zk0d.model.blobs import BlobStore

log = structlog.get_logger("hub")


@contextmanager
def keep_all(hub: Path) -> Iterator[None]:
    """While this lasts a hub in `hub` deletes no blob."""
    fd = _open(hub)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


class Discards:
    """`needed(digest)` is asked again when the deletion comes late."""

    def __init__(self, hub: Path, blobs: BlobStore, needed: Callable[[str], bool]) -> None:
        self._locked, self._blobs, self._needed = hub, blobs, needed
        self._late: set[str] = set()
        self.problem = ""
        """Why what nothing needs stays on the disk, for status; "" when it goes."""

    def __call__(self, digest: str) -> None:
        """Delete a blob that nothing needs, now or after the backup."""
        self._late.add(digest)
        self.catch_up()

    def catch_up(self) -> None:
        """Delete what had to wait, unless it still has to. What the disk, the lock or the database refuses waits on:
        whoever discards has more important things to do than to fail for it."""
        if not self._late:
            return
        try:
            self._delete()
        except BlockingIOError:
            pass
        except (OSError, sqlite3.Error) as error:
            problem = from_os(error).message if isinstance(error, OSError) else str(error)
            if problem != self.problem:  # the same at each version: said once
                self.problem = problem
                log.warning("blobs that nothing needs cannot be deleted", waiting=len(self._late), error=problem)

    def _delete(self) -> None:
        fd = _open(self._locked)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            failed: OSError | None = None
            for digest in sorted(self._late):
                try:
                    if not self._needed(digest):
                        self._blobs.delete(digest)
                except OSError as error:  # of this one: the others may go
                    failed = error
                else:
                    self._late.discard(digest)
            if failed is not None:
                raise failed
            self.problem = ""
        finally:
            os.close(fd)
