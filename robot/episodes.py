"""One take from its first frame to a committed episode: staged, verified, fsynced, and made to count by one rename.

Whatever dies before that rename loses only the take in progress. Not for the dataset around the episodes (dataset.py).
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from robot import quality
from robot.cutoff import Begun, RowLog, clear
from robot.staged import MARK, StagedTake
from robot.stats import FeatureStats, column_stats
from robot.video import CameraEncoder, Frame, verify
from zk0d import durable
from zk0d.errors import DatasetError

RECORD_SCHEMA = 1
FILES_PER_CHUNK = 1000
DATA = "data.parquet"
TIMES = "times.parquet"
RECORD = "episode.json"


@dataclass(frozen=True)
class RecordingSpec:
    """What all episodes of a dataset have in common. `cameras`: name → (height, width); joints by LeRobot's names."""

    fps: int
    joints: tuple[str, ...]
    cameras: dict[str, tuple[int, int]]
    robot_type: str
    units: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` reads it back."""
        return asdict(self) | {"joints": list(self.joints), "cameras": {n: list(s) for n, s in self.cameras.items()}}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> RecordingSpec:
        """The other way. KeyError or TypeError when it is something else."""
        cameras = {str(n): (int(s[0]), int(s[1])) for n, s in value["cameras"].items()}
        return RecordingSpec(
            int(value["fps"]), tuple(value["joints"]), cameras, str(value["robot_type"]), str(value["units"])
        )


@dataclass(frozen=True)
class Position:
    """Where an episode goes: its number, the number of its first row in the dataset, its task."""

    episode_index: int
    first_row: int
    task: str
    task_index: int

    @property
    def chunk(self) -> int:
        """LeRobot's chunk index: one file per episode, a thousand to a chunk."""
        return self.episode_index // FILES_PER_CHUNK

    @property
    def file(self) -> int:
        """LeRobot's file index within the chunk."""
        return self.episode_index % FILES_PER_CHUNK


@dataclass(frozen=True)
class EpisodeRecord:
    """What is known of a committed episode: enough to make the dataset's metadata from the records alone."""

    position: Position
    length: int
    stats: dict[str, FeatureStats]
    files: dict[str, dict[str, Any]]
    quality: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As stored in episode.json."""
        stats = {f: {k: v.tolist() for k, v in s.items()} for f, s in self.stats.items()}
        return {
            "schema": RECORD_SCHEMA,
            **asdict(self.position),
            "length": self.length,
            "files": self.files,
            "quality": self.quality,
            "facts": self.facts,
            "stats": stats,
        }

    @staticmethod
    def load(path: Path) -> EpisodeRecord:
        """Read episode.json. Raises DatasetError when it is damaged or from a newer zk0d."""
        try:
            raw = json.loads(path.read_text())
            if raw["schema"] != RECORD_SCHEMA:
                raise DatasetError(f"{path} has schema {raw['schema']}", "it was written by a newer zk0d: update")
            position = Position(raw["episode_index"], raw["first_row"], raw["task"], raw["task_index"])
            stats = {f: {k: np.asarray(v, dtype=np.float64) for k, v in s.items()} for f, s in raw["stats"].items()}
            return EpisodeRecord(position, raw["length"], stats, raw["files"], raw["quality"], raw["facts"])
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{path} cannot be read: {error!r}", "restore it from a backup") from error


class Take:
    """A take being recorded in its staging folder. One row and one frame per camera for each `add`."""

    def __init__(self, folder: Path, spec: RecordingSpec, begun: Begun | None = None) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.spec = spec
        self._log = RowLog(folder, len(spec.joints), begun) if begun is not None else None
        self._keep = begun.keep_rows if begun is not None else 0
        self._states: list[NDArray[np.float32]] = []
        self._actions: list[NDArray[np.float32]] = []
        self._times: list[float] = []
        self._encoders = {
            name: CameraEncoder(folder / f"{name}.mp4", height, width, spec.fps)
            for name, (height, width) in spec.cameras.items()
        }

    @property
    def frames(self) -> int:
        """Rows so far."""
        return len(self._times)

    def add(
        self, t: float, state: NDArray[np.float32], action: NDArray[np.float32], images: Mapping[str, Frame]
    ) -> None:
        """One control period: `t` seconds on a monotonic clock, joints in the order of the spec, one frame per camera.

        Blocks when an encoder is behind. Raises DatasetError or OSError; the take must then be discarded, or left.
        """
        for name, encoder in self._encoders.items():
            encoder.put(images[name])
        if self._log is not None:
            self._log.add(t, state, action)
        self._states.append(state)
        self._actions.append(action)
        self._times.append(t)

    def discard(self) -> None:
        """Stop the encoders and remove everything."""
        self.leave()
        shutil.rmtree(self.folder, ignore_errors=True)

    def leave(self) -> int:
        """Stop, and leave on the disk what is there → its rows that the next start saves, as it does after a kill.

        Frames that no encoder had written yet are lost; 0: too little is left to be saved.
        """
        for encoder in self._encoders.values():
            encoder.abort()
        if self._log is not None:
            self._log.close()
        whole = min([self.frames, *(encoder.whole for encoder in self._encoders.values())])
        return whole if self._keep and whole >= max(2, self._keep) else 0

    def seal(self, task: str, facts: Mapping[str, Any]) -> StagedTake:
        """Finish the videos and make the take durable as it is: from here on a kill loses nothing of it.

        Not for the control loop's thread: it waits for the encoders. Raises DatasetError; the take is then removed, or
        where the disk was full, left for the next start.
        """
        try:
            for encoder in self._encoders.values():
                encoder.close()
            if self.frames < 2:
                raise DatasetError("the take has fewer than two frames", "record a little longer")
            encoders = {
                n: {"frames": e.frames, "wait_ms": round(e.blocked_s * 1e3, 1)} for n, e in self._encoders.items()
            }
            states, actions = np.stack(self._states).astype(np.float32), np.stack(self._actions).astype(np.float32)
            times = np.asarray(self._times, dtype=np.float64)
            staged = StagedTake(self.folder, states, actions, times, task, dict(facts), encoders)
            if self._log is not None:
                self._log.close()
            staged = staged.seal([e.path for e in self._encoders.values()])
            clear(self.folder, self._encoders)
            return staged
        except (DatasetError, OSError) as error:
            kept = self.leave()
            if (self.folder / MARK).exists():
                kept = self.frames  # sealed; what failed was to flush it, or to clear up after it
            if not kept:
                shutil.rmtree(self.folder, ignore_errors=True)
                raise
            raise DatasetError(
                f"a take of {self.frames} rows could not be ended: {error}; its first {kept} are kept, and saved when "
                "recording starts again",
                "make room on the disk",
            ) from error
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise


def commit(take: StagedTake, spec: RecordingSpec, position: Position, committed: Path) -> EpisodeRecord:
    """Verify, fsync and commit as `committed`/NUMBER. Raises DatasetError; the take then lies where it was.

    Meant for a thread beside the next take's control loop: it mostly decodes, and fsyncs.
    """
    record = _write(take, spec, position)
    durable.mkdir(committed)
    durable.publish(take.folder, committed / f"{position.episode_index:06d}")
    return record


def _write(take: StagedTake, spec: RecordingSpec, position: Position) -> EpisodeRecord:
    fps, count, facts = spec.fps, take.frames, dict(take.facts)
    index = np.arange(count, dtype=np.int64)
    columns: dict[str, NDArray[np.generic]] = {
        "action": take.actions,
        "observation.state": take.states,
        "timestamp": (index / fps).astype(np.float32),
        "frame_index": index,
        "episode_index": np.full(count, position.episode_index, dtype=np.int64),
        "index": index + position.first_row,
        "task_index": np.full(count, position.task_index, dtype=np.int64),
    }
    stats = {name: column_stats(values) for name, values in columns.items()}
    staged = {DATA: _data_path(position)}
    for name, (height, width) in spec.cameras.items():
        seen = verify(take.folder / f"{name}.mp4", count, height, width, fps)
        stats[f"observation.images.{name}"] = seen.result()
        staged[f"{name}.mp4"] = _video_path(position, name)
    pq.write_table(_table(columns), take.folder / DATA, compression="snappy")
    times = take.times - take.times[0]
    pq.write_table(pa.table({"frame_index": index, "t": times}), take.folder / TIMES, compression="snappy")
    staged[TIMES] = f"meta/zk0/times/{position.episode_index:06d}.parquet"
    files = {
        name: {
            "path": path,
            "bytes": (take.folder / name).stat().st_size,
            "sha256": durable.sha256_file(take.folder / name),
        }
        for name, path in staged.items()
    }
    facts["committed_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record = EpisodeRecord(position, count, stats, files, quality.report(times, fps, take.encoders, take.facts), facts)
    (take.folder / RECORD).write_text(json.dumps(record.to_json(), ensure_ascii=False))
    return record


def _data_path(position: Position) -> str:
    return f"data/chunk-{position.chunk:03d}/file-{position.file:03d}.parquet"


def _video_path(position: Position, camera: str) -> str:
    return f"videos/observation.images.{camera}/chunk-{position.chunk:03d}/file-{position.file:03d}.mp4"


def _table(columns: Mapping[str, NDArray[np.generic]]) -> pa.Table:
    """Arrow columns as LeRobot writes them: vectors are lists of fixed length."""
    arrays = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        if values.ndim == 2
        else pa.array(values)
        for name, values in columns.items()
    }
    return pa.table(arrays)
