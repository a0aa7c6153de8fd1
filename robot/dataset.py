"""A folder of committed episodes as a LeRobotDataset v3.0 that any LeRobot tool opens at any time between takes.

One data file and one video per camera for each episode, so a new episode only adds files; the metadata is made from the
episodes' records and replaced file by file in an order in which every moment opens. Not for reading frames.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from robot.cutoff import BEGUN, Begun, rescue
from robot.episodes import FILES_PER_CHUNK, RECORD, EpisodeRecord, Position, RecordingSpec, Take, commit
from robot.staged import MARK, StagedTake
from robot.stats import FeatureStats, merge
from robot.video import video_info
from zk0d import durable
from zk0d.errors import DatasetError

VERSION = "v3.0"
PRIVATE = ".zk0"
RECORDS = "meta/zk0/episodes"
SPEC = "meta/zk0/dataset.json"


@dataclass
class Recovery:
    """What was found at the start, by names: takes removed (too short), episodes adopted, which of them are of a take
    that was cut off, folders set aside, and takes that cannot be saved before there is room on the disk."""

    removed: list[str] = field(default_factory=list)
    adopted: list[int] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For the recorder's `ready` event; empty when there was nothing."""
        return {k: v for k, v in vars(self).items() if v}


class RecordedDataset:
    """The dataset while a recorder works in it: locked, recovered, assembled. Use as a context manager."""

    def __init__(self, root: Path, spec: RecordingSpec) -> None:
        """Open `root`, making it if there is none. Raises DatasetError when it is in use or holds something else."""
        self.root = root
        self.spec = spec
        self._private = root / PRIVATE
        self._staging = self._private / "staging"
        self._committed = self._private / "committed"
        _refuse_foreign(root)
        durable.mkdir(self._staging)
        self._lock = (self._private / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise DatasetError(
                f"{root} is being recorded into, or worked on", "end the other recording or wait"
            ) from None
        try:
            self._check_spec()
            self.recovery = Recovery()
            self.records = assemble(root, self.recovery)
            self._takes = 0
            self.adopted_staged = 0
            self._adopt_staged()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._lock.close()

    @property
    def frames(self) -> int:
        """Rows of all published episodes."""
        return sum(r.length for r in self.records)

    def new_take(self, begun: Begun | None = None) -> Take:
        """Begin a take in its own staging folder. With `begun`, a kill in the midst of it does not lose all of it."""
        self._takes += 1
        if begun is not None and not (self.root / SPEC).exists():
            durable.write_json(self.root / SPEC, {"schema": 1, **self.spec.to_json()})
        return Take(self._staging / f"take-{os.getpid()}-{self._takes:04d}", self.spec, begun)

    def seal(self, take: Take, task: str, facts: dict[str, Any]) -> StagedTake:
        """The take has ended: make it durable, unverified. Raises DatasetError or OSError; the take is then removed."""
        if not (self.root / SPEC).exists():
            durable.write_json(self.root / SPEC, {"schema": 1, **self.spec.to_json()})
        return take.seal(task, facts)

    def save(self, take: Take | StagedTake, task: str = "", facts: dict[str, Any] | None = None) -> EpisodeRecord:
        """Verify, commit and publish a take as the next episode; one that is not sealed yet is sealed first.

        Raises DatasetError when it does not verify: it is then set aside in .zk0/quarantine and nothing has changed.
        On OSError (disk full) it stays staged, and the next start adopts it.
        """
        staged = take if isinstance(take, StagedTake) else self.seal(take, task, facts or {})
        tasks = task_list(self.records)
        index = tasks.index(staged.task) if staged.task in tasks else len(tasks)
        position = Position(len(self.records), self.frames, staged.task, index)
        if not self.records:
            durable.write_json(self.root / SPEC, {"schema": 1, **self.spec.to_json()})
        try:
            record = commit(staged, self.spec, position, self._committed)
        except DatasetError:
            _quarantine(self.root, staged.folder)
            raise
        self.records = assemble(self.root, self.recovery, self.records)
        return record

    def _adopt_staged(self) -> None:
        """Takes of a recorder that died become episodes, in their order; one cut off in the midst up to there."""
        found: list[StagedTake] = []
        for folder in sorted(self._staging.iterdir()):
            try:
                staged = StagedTake.load(folder)
                if staged is None:
                    staged = rescue(folder, len(self.spec.joints), self.spec.cameras, self.spec.fps)
            except DatasetError as error:
                self.recovery.quarantined.append(f"{folder.name}: {error.message}")
                _quarantine(self.root, folder)
                continue
            except OSError as error:  # no room: it waits, for the next start
                self.recovery.waiting.append(f"{folder.name}: {error.strerror or error}")
                continue
            if staged is None:
                shutil.rmtree(folder)
                self.recovery.removed.append(folder.name)
            else:
                found.append(staged)
        for staged in sorted(found, key=lambda t: t.sealed_at):
            try:
                record = self.save(staged)
            except DatasetError as error:
                self.recovery.quarantined.append(f"{staged.folder.name}: {error.message}")
            except OSError as error:
                self.recovery.waiting.append(f"{staged.folder.name}: {error.strerror or error}")
            else:
                number = record.position.episode_index
                self.recovery.adopted.append(number)
                if record.facts.get("ended_by") == "killed":
                    self.recovery.cut.append(f"episode {number}: {record.length / self.spec.fps:.1f} s")
                self.adopted_staged += 1

    def free_bytes(self) -> int:
        """What the disk under the dataset still holds."""
        return shutil.disk_usage(self.root).free

    def _check_spec(self) -> None:
        path = self.root / SPEC
        if not path.exists():
            return
        there, ours = read_spec(self.root).to_json(), self.spec.to_json()
        if not any(any(f.glob(p)) for f, p in ((self.root / RECORDS, "*.json"), (self._committed, "*"))) and not any(
            any(self._staging.glob(f"*/{mark}")) for mark in (MARK, BEGUN)
        ):
            return  # nothing recorded yet: the first episode decides
        differing = [f"{k} is {there[k]} there and {ours[k]} now" for k in ours if there[k] != ours[k]]
        if differing:
            raise DatasetError(
                f"{self.root} was recorded with other settings: {'; '.join(differing)}",
                "record into a new dataset, or use the settings of the old one",
            )


def read_spec(root: Path) -> RecordingSpec:
    """The spec of a dataset that zk0d recorded. Raises DatasetError."""
    try:
        return RecordingSpec.from_json(json.loads((root / SPEC).read_text()))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DatasetError(f"{root / SPEC} cannot be read: {error!r}", "did zk0d record this dataset?") from error


def task_list(records: Sequence[EpisodeRecord]) -> list[str]:
    """Tasks in the order of their first episode; the position is LeRobot's task_index."""
    return list(dict.fromkeys(r.position.task for r in records))


def assemble(
    root: Path, recovery: Recovery | None = None, known: Sequence[EpisodeRecord] | None = None
) -> list[EpisodeRecord]:
    """Publish what is committed and make the metadata say so. Idempotent; a crash in it is made good by the next call.

    The caller holds the dataset's lock. `known` spares reading the records again. Gives the records of all episodes.
    """
    recovery = recovery or Recovery()
    records = list(known) if known is not None else read_records(root)
    published = len(records)
    for folder in sorted((root / PRIVATE / "committed").glob("*")):
        try:
            record = EpisodeRecord.load(folder / RECORD) if (folder / RECORD).exists() else None
            if record is None or record.position.episode_index < len(records):
                shutil.rmtree(folder)  # its record is published already: only the folder was left
                continue
            if record.position.episode_index != len(records):
                raise DatasetError(f"episode {record.position.episode_index} follows episode {len(records) - 1}")
            _place(root, folder, record)
        except DatasetError as error:
            recovery.quarantined.append(f"{folder.name}: {error.message}")
            _quarantine(root, folder)
            continue
        records.append(record)
        if known is None:
            recovery.adopted.append(record.position.episode_index)
    if records and (len(records) > published or _published_episodes(root) != len(records)):
        _write_meta(root, read_spec(root), records)
    return records


def read_records(root: Path) -> list[EpisodeRecord]:
    """The records of all published episodes, in order. Raises DatasetError when one is missing or damaged."""
    paths = sorted((root / RECORDS).glob("*.json"))
    records = [EpisodeRecord.load(path) for path in paths]
    for number, record in enumerate(records):
        if record.position.episode_index != number:
            raise DatasetError(f"{root}: the record of episode {number} is missing", "restore it from a backup")
    there = _published_episodes(root)
    if there > len(records):
        raise DatasetError(
            f"{root} has {there - len(records)} episode(s) that another program added", "record into a new dataset"
        )
    return records


def _refuse_foreign(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise DatasetError(f"{root} is not a folder", "name a folder for the dataset")
    if (root / "meta/info.json").exists() and not (root / SPEC).exists():
        raise DatasetError(
            f"{root} is a dataset that zk0d did not record", "record into a new dataset; both can be trained on"
        )


def _published_episodes(root: Path) -> int:
    try:
        return int(json.loads((root / "meta/info.json").read_text())["total_episodes"])
    except FileNotFoundError:
        return 0
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{root}/meta/info.json is damaged: {error!r}", "restore it from a backup") from error


def _place(root: Path, folder: Path, record: EpisodeRecord) -> None:
    """Move an episode's files to where LeRobot looks; the record last, because it is what says that they are there."""
    moves = [(folder / name, root / facts["path"], facts["bytes"]) for name, facts in record.files.items()]
    for staged, final, size in moves:
        source = staged if staged.exists() else final
        if not source.exists() or source.stat().st_size != size:
            raise DatasetError(f"{source} is missing or has another size than when it was committed")
    for staged, final, _ in moves:
        durable.mkdir(final.parent)
        if staged.exists():
            staged.replace(final)
    for parent in {final.parent for _, final, _ in moves}:
        while parent != root:
            durable.fsync_dir(parent)
            parent = parent.parent
    target = root / RECORDS / f"{record.position.episode_index:06d}.json"
    durable.mkdir(target.parent)
    (folder / RECORD).replace(target)
    durable.fsync_dir(target.parent)
    durable.fsync_dir(root)
    shutil.rmtree(folder)


def _quarantine(root: Path, folder: Path) -> None:
    aside = root / PRIVATE / "quarantine"
    durable.mkdir(aside)
    number = 0
    while (target := aside / f"{folder.name}.{number}").exists():
        number += 1
    folder.replace(target)
    durable.fsync_dir(aside)


def _write_meta(root: Path, spec: RecordingSpec, records: Sequence[EpisodeRecord]) -> None:
    """Replace the metadata. info.json counts the episodes, so it comes last: before it, the rest is a superset."""
    import pandas as pd  # LeRobot keeps tasks as a pandas index, and has loaded it already

    tasks = task_list(records)
    frame = pd.DataFrame({"task_index": range(len(tasks))}, index=pd.Index(tasks, name="task"))
    durable.write_bytes(root / "meta/tasks.parquet", frame.to_parquet(None))
    sink = pa.BufferOutputStream()
    rows = [_episode_row(spec, record) for record in records]
    pq.write_table(pa.table({key: [row[key] for row in rows] for key in rows[0]}), sink, compression="snappy")
    durable.write_bytes(root / "meta/episodes/chunk-000/file-000.parquet", sink.getvalue().to_pybytes())
    stats = {name: _plain(s) for name, s in merge([r.stats for r in records]).items()}
    durable.write_json(root / "meta/stats.json", stats)
    durable.write_json(root / "meta/info.json", _info(spec, records, len(tasks)))


def _plain(stats: FeatureStats) -> dict[str, Any]:
    return {k: [int(n) for n in v] if k == "count" else v.tolist() for k, v in stats.items()}


def _episode_row(spec: RecordingSpec, record: EpisodeRecord) -> dict[str, Any]:
    at = record.position
    row: dict[str, Any] = {
        "episode_index": at.episode_index,
        "tasks": [at.task],
        "length": record.length,
        "data/chunk_index": at.chunk,
        "data/file_index": at.file,
        "dataset_from_index": at.first_row,
        "dataset_to_index": at.first_row + record.length,
    }
    for name in spec.cameras:
        key = f"videos/observation.images.{name}"
        row[f"{key}/chunk_index"], row[f"{key}/file_index"] = at.chunk, at.file
        row[f"{key}/from_timestamp"], row[f"{key}/to_timestamp"] = 0.0, record.length / spec.fps
    for feature, stats in record.stats.items():
        for key, value in _plain(stats).items():
            row[f"stats/{feature}/{key}"] = value
    row["meta/episodes/chunk_index"] = row["meta/episodes/file_index"] = 0
    return row


def features(spec: RecordingSpec) -> dict[str, dict[str, Any]]:
    """The features of meta/info.json: LeRobot's hw_to_dataset_features of these arms, and its default columns."""
    joints: dict[str, Any] = {"dtype": "float32", "shape": [len(spec.joints)], "names": list(spec.joints)}
    described: dict[str, dict[str, Any]] = {"action": joints, "observation.state": dict(joints)}
    for name, (height, width) in spec.cameras.items():
        described[f"observation.images.{name}"] = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": video_info(height, width, spec.fps),
        }
    described["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    for name in ("frame_index", "episode_index", "index", "task_index"):
        described[name] = {"dtype": "int64", "shape": [1], "names": None}
    return described


def _info(spec: RecordingSpec, records: Sequence[EpisodeRecord], tasks: int) -> dict[str, Any]:
    return {
        "codebase_version": VERSION,
        "fps": spec.fps,
        "features": features(spec),
        "total_episodes": len(records),
        "total_frames": sum(r.length for r in records),
        "total_tasks": tasks,
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4" if spec.cameras else None,
        "robot_type": spec.robot_type,
        "splits": {"train": f"0:{len(records)}"},
    }
