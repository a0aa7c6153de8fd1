"""A take in progress on the disk: a recorder that is killed leaves rows and frames that are whole up to a point.

`RowLog` is written along with the take; `rescue` makes an ended take of what a killed recorder left. Nothing is synced
before the take ends: a power cut may cost the last seconds of it. Not for takes that have ended (staged.py).
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from robot.staged import StagedTake
from robot.video import live_path, packets, rewrite
from zk0d.durable import Unbuffered
from zk0d.errors import DatasetError

BEGUN = "begun.json"
ROWS = "rows.part"


@dataclass(frozen=True)
class Begun:
    """What is known when a take begins. `keep_rows`: with fewer rows than that it is not worth keeping; 0: never."""

    task: str
    facts: dict[str, Any] = field(default_factory=dict)
    keep_rows: int = 0


def _layout(joints: int) -> np.dtype[Any]:
    return np.dtype([("t", "<f8"), ("state", "<f4", (joints,)), ("action", "<f4", (joints,))])


class RowLog:
    """The rows of a take in progress, each written to the file as it comes. Raises OSError when the disk is full."""

    def __init__(self, folder: Path, joints: int, begun: Begun) -> None:
        facts = {"schema": 1, "task": begun.task, "facts": begun.facts, "keep_rows": begun.keep_rows}
        (folder / BEGUN).write_text(json.dumps(facts))
        self._row = np.zeros(1, _layout(joints))
        self._file = Unbuffered(folder / ROWS, "w")

    def add(self, t: float, state: NDArray[np.float32], action: NDArray[np.float32]) -> None:
        """One row: seconds on a monotonic clock, joints as the dataset has them."""
        self._row["t"], self._row["state"], self._row["action"] = t, state, action
        self._file.write(self._row.tobytes())

    def close(self) -> None:
        self._file.close()


def rescue(folder: Path, joints: int, cameras: Mapping[str, Any], fps: int) -> StagedTake | None:
    """Make an ended take, up to the last row that has a frame of every camera, of one that was cut off.

    None when it was not to be kept or is too short. Raises DatasetError when it cannot be read, OSError when it cannot
    be written (disk full); it is as it was then.
    """
    if not (folder / BEGUN).exists() or not (folder / ROWS).exists():
        return None
    try:
        begun = json.loads((folder / BEGUN).read_text())
        keep = int(begun["keep_rows"])
        size = (folder / ROWS).stat().st_size // _layout(joints).itemsize
        rows = np.fromfile(folder / ROWS, _layout(joints), count=size)
        sources = {name: _source(folder / f"{name}.mp4") for name in cameras}
        count = min([len(rows), *(packets(path) for path in sources.values())])
        if not keep or count < max(2, keep):
            return None
        for name, path in sources.items():
            rewrite(path, folder / f"{name}.mp4", fps, count)
        facts = {**begun["facts"], "success": None, "ended_by": "killed", "rows_lost": len(rows) - count}
        encoders = {name: {"frames": count, "wait_ms": 0.0} for name in cameras}
        at = (folder / ROWS).stat().st_mtime
        rows = rows[:count]
        take = StagedTake(
            folder, np.array(rows["state"]), np.array(rows["action"]), np.array(rows["t"]), str(begun["task"]), facts,
            encoders, at,
        )  # fmt: skip
        return take.seal([folder / f"{name}.mp4" for name in cameras])
    except (OSError, ValueError, KeyError, TypeError, av.FFmpegError) as error:
        if (number := getattr(error, "errno", None)) in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(number, os.strerror(number), str(folder)) from error
        raise DatasetError(f"{folder.name} was cut off and cannot be read: {error}", "it is set aside") from error


def _source(path: Path) -> Path:
    """The video as it was being written, or the finished one where the kill came after that."""
    live = live_path(path)
    return live if live.exists() else path


def clear(folder: Path, cameras: Mapping[str, Any]) -> None:
    """The take has ended and is durable: what served for its rescue can go."""
    for path in (folder / ROWS, folder / BEGUN, *(live_path(folder / f"{name}.mp4") for name in cameras)):
        path.unlink(missing_ok=True)
