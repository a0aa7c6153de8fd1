"""Recorded teleoperation, shown again on the virtual leader: one source row per control period.

Source: a parquet file with episode_index, frame_index and action (6 values, LeRobot's -100…100, gripper 0…100).
Not for scripted movements (expert.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0d.errors import DatasetError


class Recording:
    """The episodes of one file. The first take is the episode named after `#`, or the file's first; each take after it
    shows the next one. When the file has no more, a take is refused rather than silently shown twice."""

    def __init__(self, source: str) -> None:
        name, _, number = source.partition("#")
        self.path = Path(name).expanduser()
        self._rows = self._load()
        self.numbers = sorted(self._rows)
        if number and (not number.isdigit() or int(number) not in self._rows):
            raise DatasetError(
                f"{self.path} has no episode {number!r}", f"it has {self.numbers[0]} to {self.numbers[-1]}"
            )
        self._first = self.numbers.index(int(number)) if number else 0

    def _load(self) -> dict[int, NDArray[np.float64]]:
        try:
            import pyarrow.parquet as pq

            table: Any = pq.read_table(self.path, columns=["episode_index", "frame_index", "action"])
        except Exception as exc:
            raise DatasetError(
                f"{self.path} cannot be replayed: {exc}", "a parquet file with episode_index, frame_index and action"
            ) from exc
        actions = np.array(table["action"].to_pylist(), dtype=np.float64)
        if actions.ndim != 2 or actions.shape[1] != 6 or not np.isfinite(actions).all():
            raise DatasetError(f"{self.path}: action must be six finite numbers in every row, not {actions.shape}")
        episodes = table["episode_index"].to_numpy()
        order = np.lexsort((table["frame_index"].to_numpy(), episodes))
        return {int(e): actions[order][episodes[order] == e] for e in np.unique(episodes)}

    def episode_of(self, take: int) -> int:
        """The episode that take 0, 1, 2 … shows. Raises DatasetError past the end of the file."""
        index = self._first + take
        if index >= len(self.numbers):
            raise DatasetError(
                f"{self.path} has no episode left for take {take + 1}",
                f"it has {len(self.numbers)}; start again at one with replay:FILE#EPISODE",
            )
        return self.numbers[index]

    def values(self, episode: int) -> NDArray[np.float64]:
        """(rows, 6) of LeRobot's -100…100 (gripper 0…100)."""
        return self._rows[episode]
