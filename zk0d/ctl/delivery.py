"""Writes the files that the daemon sends (zk0d/daemon/delivery.py) where a person wants them, with their own rights.

They are written beside their place and appear there when all have come. The other direction is carrying.py.
"""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from zk0d.ctl.render import size
from zk0d.durable import fsync_dir, publish
from zk0d.errors import DatasetError, ProtocolError, UsageError
from zk0d.filetree import named

HINT = "name a folder that you may write to"


class Delivery:
    """Context manager around the request. `target` is a folder, or with `single` a file.

    `fresh`: it must not exist, an `empty` folder aside. Raises UsageError at once when nothing can be written there.
    """

    def __init__(self, target: Path, *, single: bool = False, fresh: bool = False, empty: bool = False) -> None:
        self.target, self._single = target, single
        self._file: IO[bytes] | None = None
        self.files = self.bytes = 0
        there = os.path.lexists(target) and not (empty and target.is_dir() and not any(target.iterdir()))
        if fresh and there:
            raise DatasetError(f"{target} is there already", "choose another name")
        if not target.name:
            raise UsageError(f"{target} is no place for files", HINT)
        self._part = target.with_name(f".{target.name}.{os.getpid()}.part")

    def __enter__(self) -> Self:
        if self._single and not self.target.parent.is_dir():
            raise UsageError(f"there is no folder {self.target.parent}", "make it first, or is its name mistyped?")
        try:
            self._part.parent.mkdir(parents=True, exist_ok=True)
            self._part.mkdir()
        except OSError as error:
            raise UsageError(f"{self.target} cannot be written: {error.strerror}", HINT) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._close()
        shutil.rmtree(self._part, ignore_errors=True)

    def took(self, event: dict[str, Any]) -> bool:
        """Whether `event` was one of ours, and then it is dealt with."""
        if event["event"] == "file":
            self._close()
            path = named(event["path"])
            self._write(lambda: self._open(path))
            self.files += 1
        elif event["event"] == "data":
            data = base64.b64decode(event["data"])
            self._write(lambda: self._into().write(data))
            self.bytes += len(data)
        else:
            return False
        return True

    def _open(self, path: Path) -> None:
        (self._part / path).parent.mkdir(parents=True, exist_ok=True)
        self._file = (self._part / path).open("xb")

    def _into(self) -> IO[bytes]:
        if self._file is None:
            raise ProtocolError("zk0d sent a piece of no file")
        return self._file

    def _write(self, step: Callable[[], object]) -> None:
        try:
            step()
        except OSError as error:
            raise DatasetError(f"{self.target} could not be written: {error.strerror}", "is the disk full?") from error

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def finish(self, result: dict[str, Any]) -> None:
        """Put everything in its place, durably. Raises DatasetError when not all came, or there is no place."""
        self._close()
        sent = (int(result["files"]), int(result["bytes"]))
        if sent != (self.files, self.bytes):
            raise DatasetError(f"{size(self.bytes)} of {size(sent[1])} came", "run the command again")
        try:
            if self._single:
                (only,) = (p for p in self._part.rglob("*") if p.is_file())
                publish(only, self.target)
            elif not self.target.exists() or not any(self.target.iterdir()):
                publish(self._part, self.target)
            else:
                for path in (p for p in sorted(self._part.rglob("*")) if p.is_file()):
                    place = self.target / path.relative_to(self._part)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    publish(path, place)
                fsync_dir(self.target)
        except OSError as error:
            raise DatasetError(f"{self.target} could not be written: {error.strerror}", HINT) from error
