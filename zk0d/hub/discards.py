"""Deleting blobs that nothing needs any more, but never under a backup that is being made.

A backup (backup.py, a process of its own) holds a lock on DIR/backup.lock from before it copies the database until
the last blob is copied; what is to go meanwhile goes later. A kill in between is swept at the next start.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from zk0d.model.blobs import BlobStore

log = structlog.get_logger("hub")

LOCK = "backup.lock"


@contextmanager
def keep_all(hub: Path) -> Iterator[None]:
    """While this lasts a hub in `hub` deletes no blob."""
    fd = os.open(hub / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)


class Discards:
    """`needed(digest)` is asked again when the deletion comes late."""

    def __init__(self, hub: Path, blobs: BlobStore, needed: Callable[[str], bool]) -> None:
        self._lock, self._blobs, self._needed = hub / LOCK, blobs, needed
        self._late: set[str] = set()
        self._problem = ""

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
            if str(error) != self._problem:  # the same at each version: said once
                self._problem = str(error)
                log.warning("blobs that nothing needs cannot be deleted", waiting=len(self._late), error=str(error))

    def _delete(self) -> None:
        fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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
            self._problem = ""
        finally:
            os.close(fd)
