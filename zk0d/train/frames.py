"""Training samples from local LeRobotDataset v3.0 folders: batches as LeRobot's own loader gives them, but cheaply.

Never asks a model hub: what is missing or damaged is a DatasetError that names the path. Not for writing (robot/).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zk0d.errors import DatasetError
from zk0d.model.spec import ModelSpec
from zk0d.train.images import Picture
from zk0d.train.presets import ACTION, IMAGES
from zk0d.train.videos import REPAIR, Clip, FrameCache

Batch = dict[str, Any]
FETCH = "copy it again, or `hf download --repo-type dataset USER/NAME --local-dir {root}`"


@dataclass(frozen=True)
class Source:
    """A dataset of a job: its folder, which episodes (None: all) and own feature name → canonical name."""

    root: Path
    episodes: tuple[int, ...] | None = None
    rename: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_job(cls, value: dict[str, Any]) -> Source:
        episodes = value.get("episodes")
        return cls(Path(value["root"]), None if episodes is None else tuple(episodes), dict(value.get("rename") or {}))


@dataclass(frozen=True)
class Episode:
    """One episode: `vectors` by canonical name, (length, dim) float32; `pictures` (length, height, width, 3) uint8."""

    task: str
    vectors: dict[str, NDArray[np.float32]]
    pictures: dict[str, Picture]

    @property
    def length(self) -> int:
        return len(self.vectors[ACTION])


class Samples:
    """Frames of episodes as numbered samples; sample i is one time step with the action chunk that follows it."""

    def __init__(self, episodes: list[Episode], action_offsets: list[int], fingerprint: str) -> None:
        self.episodes = episodes
        self.fingerprint = fingerprint
        """Digest of what the samples are; a checkpoint belongs to one."""
        self._offsets = np.asarray(action_offsets, dtype=np.int64)
        self._ends = np.cumsum([e.length for e in episodes])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Samples `indices` (B,) as LeRobot's DataLoader gives them, without a time dimension for observations.

        `observation.state` (B, D) float32, `observation.images.X` (B, 3, H, W) float32 in [0, 1], `action`
        (B, chunk, A) float32 in joint units, `action_is_pad` (B, chunk) bool: True past the episode's end, where the
        last action is repeated; `task` is a list of texts.
        """
        places = [self._place(int(i)) for i in indices]
        first = self.episodes[0]
        batch: Batch = {"task": [e.task for e, _ in places]}
        for name in first.vectors:
            if name != ACTION:
                batch[name] = torch.from_numpy(np.stack([e.vectors[name][t] for e, t in places]))
        for name in first.pictures:
            pictures = torch.from_numpy(np.stack([e.pictures[name][t] for e, t in places]))
            batch[name] = pictures.permute(0, 3, 1, 2).contiguous().to(torch.float32).div_(255)
        rows = np.stack([t + self._offsets for _, t in places])
        last = np.asarray([e.length - 1 for e, _ in places])[:, None]
        clipped = np.clip(rows, 0, last)
        actions = np.stack([e.vectors[ACTION][r] for (e, _), r in zip(places, clipped, strict=True)])
        batch[ACTION] = torch.from_numpy(actions)
        batch[f"{ACTION}_is_pad"] = torch.from_numpy(rows != clipped)
        return batch

    def _place(self, index: int) -> tuple[Episode, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[number - 1]) if number else 0
        return self.episodes[number], index - before


def load(sources: list[Source], spec: ModelSpec, action_offsets: list[int], cache: Path) -> Samples:
    """Open datasets for a spec, decoding what is not in `cache` yet.

    `action_offsets` are LeRobot's action_delta_indices. Raises DatasetError if a folder is missing or damaged or does
    not fit the spec, saying what to change, or if there is nothing to train on.
    """
    episodes: list[Episode] = []
    digest = hashlib.sha256()
    for source in sources:
        for episode, identity in _open(source, spec, cache):
            episodes.append(episode)
            digest.update(identity)
    if not episodes:
        where = ", ".join(str(s.root) for s in sources) or "no dataset was named"
        raise DatasetError(f"there are no episodes to read ({where})", "record some, or add a dataset")
    return Samples(episodes, action_offsets, digest.hexdigest())


def open_metadata(root: Path) -> Any:
    """LeRobot's metadata of a local dataset. Raises DatasetError instead of letting LeRobot ask a model hub."""
    fetch = FETCH.format(root=root)
    if not root.is_dir():
        raise DatasetError(f"{root}: there is no such dataset folder", fetch)
    for name in ("meta/info.json", "meta/tasks.parquet", "meta/episodes"):
        if not (root / name).exists():
            raise DatasetError(f"{root}: {name} is missing, so this is no whole LeRobotDataset v3.0", fetch)
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    try:
        meta = LeRobotDatasetMetadata(f"local/{root.name}", root=root)
        described = len(meta.episodes or ())
    except Exception as error:  # whatever a damaged file makes pyarrow, pandas or LeRobot raise
        raise DatasetError(f"{root}: its meta files are damaged: {type(error).__name__}: {error}", fetch) from error
    if described != meta.total_episodes:
        raise DatasetError(
            f"{root}: meta/info.json counts {meta.total_episodes} episodes, meta/episodes has {described}", fetch
        )
    return meta


def check(meta: Any, source: Source, spec: ModelSpec) -> dict[str, str]:
    """Whether a dataset fits the spec → canonical feature name → the dataset's own. Raises DatasetError if not."""
    root = source.root
    if meta.fps != spec.fps:
        raise DatasetError(
            f"{root}: {meta.fps} frames per second, the federation has {spec.fps}", f"record at {spec.fps}"
        )
    own = {source.rename.get(name, name): name for name in meta.features}
    for name, wanted in spec.features.items():
        if name not in own:
            cameras = ", ".join(n.removeprefix(IMAGES) for n in meta.features if n.startswith(IMAGES)) or "none"
            raise DatasetError(
                f"{root}: has no {name} (its cameras: {cameras})",
                f'map one of its own to it: rename = {{"{IMAGES}MINE" = "{name}"}}',
            )
        have = meta.features[own[name]]
        if wanted.dtype == "image":
            if have["dtype"] != "video":
                raise DatasetError(
                    f"{root}: {own[name]} is stored as {have['dtype']}, only video is read",
                    "convert it: `lerobot-edit-dataset --operation.type convert_image_to_video`",
                )
            continue
        if tuple(have["shape"]) != wanted.shape:
            raise DatasetError(f"{root}: {own[name]} has shape {have['shape']}, the federation {wanted.shape}")
        names = tuple(str(n).removesuffix(".pos") for n in have.get("names") or ())
        expected = tuple(n.removesuffix(".pos") for n in wanted.names)
        if names and expected and names != expected:
            raise DatasetError(
                f"{root}: {own[name]} is {', '.join(names)}; the federation has {', '.join(expected)}",
                "record with the same joints in the same order",
            )
    return {name: own[name] for name in spec.features}


def _open(source: Source, spec: ModelSpec, cache: Path) -> list[tuple[Episode, bytes]]:
    """Episodes of one dataset, each with bytes that identify its content."""
    meta = open_metadata(source.root)
    own = check(meta, source, spec)
    wanted = range(meta.total_episodes) if source.episodes is None else source.episodes
    outside = [n for n in wanted if not 0 <= n < meta.total_episodes]
    if outside:
        raise DatasetError(f"{source.root}: has no episode {outside[0]} (it has {meta.total_episodes})")
    frames = FrameCache(cache, source.root)
    tables: dict[Path, Any] = {}
    result = []
    for number in wanted:
        vectors, task = _read_vectors(meta, source.root, number, own, tables)
        clips = _clips(meta, source.root, number, own, spec)
        identity = hashlib.sha256(task.encode())
        for name in sorted(vectors):
            identity.update(vectors[name].tobytes())
        for name in sorted(clips):
            identity.update(clips[name].key.encode())
        pictures = {name: frames.open(clip) for name, clip in clips.items()}
        result.append((Episode(task, vectors, pictures), identity.digest()))
    frames.prune()
    return result


def _read_vectors(
    meta: Any, root: Path, number: int, own: dict[str, str], tables: dict[Path, Any]
) -> tuple[dict[str, NDArray[np.float32]], str]:
    import pyarrow
    import pyarrow.parquet

    path = root / meta.get_data_file_path(number)
    columns = {name: key for name, key in own.items() if not name.startswith(IMAGES)}
    try:
        if path not in tables:
            needed = ["episode_index", "task_index", *columns.values()]
            tables[path] = pyarrow.parquet.read_table(path, columns=needed)
        table = tables[path]
        rows = np.flatnonzero(table["episode_index"].to_numpy() == number)
        length = int(meta.episodes[number]["length"])
        if len(rows) != length:
            raise DatasetError(f"{path}: episode {number} has {len(rows)} rows, its meta file says {length}", REPAIR)
        part = table.slice(int(rows[0]), length)
        vectors: dict[str, NDArray[np.float32]] = {}
        for name, key in columns.items():
            vectors[name] = np.asarray(part[key].to_pylist(), dtype=np.float32).reshape(length, -1)
        task = str(meta.tasks.iloc[int(part["task_index"][0].as_py())].name)
    except (OSError, KeyError, IndexError, ValueError, pyarrow.ArrowException) as error:
        raise DatasetError(f"{path}: cannot be read: {error}", REPAIR) from error
    for name, values in vectors.items():
        if not np.isfinite(values).all():
            raise DatasetError(f"{path}: episode {number} has a {name} that is not a number", REPAIR)
    return vectors, task


def _clips(meta: Any, root: Path, number: int, own: dict[str, str], spec: ModelSpec) -> dict[str, Clip]:
    clips = {}
    for camera, (height, width) in spec.cameras.items():
        key = own[IMAGES + camera]
        row = meta.episodes[number]
        path = root / meta.get_video_file_path(number, key)
        if not path.is_file():
            raise DatasetError(f"{path}: the video of episode {number} is missing", REPAIR)
        start = float(row[f"videos/{key}/from_timestamp"])
        clips[IMAGES + camera] = Clip(path, start, int(row["length"]), spec.fps, height, width)
    return clips
