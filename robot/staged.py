"""A take that has ended, complete and durable in its staging folder, but not verified yet.

A kill from here on loses nothing: the next start adopts it. Not for recording (episodes.py) nor datasets (dataset.py).
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0d import durable
from zk0d.errors import DatasetError

ROWS = "rows.npz"
MARK = "take.json"


@dataclass(frozen=True)
class StagedTake:
    """Rows and the facts around them; the videos lie beside. `times`: monotonic s; `states`: (rows, joints)."""

    folder: Path
    states: NDArray[np.float32]
    actions: NDArray[np.float32]
    times: NDArray[np.float64]
    task: str
    facts: dict[str, Any]
    encoders: dict[str, dict[str, float]]
    """Per camera: `frames` given to the encoder, `wait_ms` that the control loop waited for it."""
    sealed_at: float = 0.0

    @property
    def frames(self) -> int:
        """Rows."""
        return len(self.times)

    def seal(self, videos: list[Path]) -> StagedTake:
        """Make everything durable, the mark last: with it the take counts as ended. Raises OSError (disk full)."""
        for path in videos:
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        held = io.BytesIO()
        np.savez(held, states=self.states, actions=self.actions, times=self.times)
        durable.write_bytes(self.folder / ROWS, held.getvalue())
        mark = {"schema": 1, "rows": self.frames, "task": self.task, "facts": self.facts, "encoders": self.encoders}
        durable.write_json(self.folder / MARK, {**mark, "sealed_at": self.sealed_at or time.time()})
        durable.fsync_dir(self.folder.parent)
        return self

    @staticmethod
    def load(folder: Path) -> StagedTake | None:
        """What a killed recorder left; None when the take had not ended. Raises DatasetError when it is damaged."""
        if not (folder / MARK).exists():
            return None
        try:
            mark: Mapping[str, Any] = json.loads((folder / MARK).read_text())
            with np.load(folder / ROWS, allow_pickle=False) as rows:
                take = StagedTake(
                    folder, rows["states"], rows["actions"], rows["times"], str(mark["task"]), dict(mark["facts"]),
                    dict(mark["encoders"]), float(mark["sealed_at"]),
                )  # fmt: skip
            if not len(take.states) == len(take.actions) == take.frames == mark["rows"]:
                raise ValueError("its rows are not as many as it says")
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise DatasetError(f"{folder.name} is damaged: {error}", "it is set aside, not removed") from error
        return take
