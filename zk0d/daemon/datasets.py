"""What the daemon knows of a LeRobot dataset folder: its meta files, its fit to a model spec, its coarse statistics.

Reads `meta/info.json` and `meta/stats.json` only; frames and trajectories are for the workers. No lerobot here.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zk0d import dataset_info
from zk0d.daemon.store import Dataset
from zk0d.errors import DatasetError
from zk0d.model.spec import Feature, ModelSpec

SHARED = ("observation.state", "action")
"""The only features of which statistics may leave the machine (coarsely)."""
_STEP = 0.5


@dataclass(frozen=True)
class Meta:
    """`meta/info.json` as far as it is needed: counts, fps and the features with dtype, shape and names."""

    episodes: int
    frames: int
    fps: int
    features: dict[str, Any]


def read_meta(root: Path) -> Meta:
    """Read a dataset's meta file. Raises DatasetError saying which file is missing or damaged."""
    path = root / "meta" / "info.json"
    value = _read_json(path, "give the folder of a LeRobotDataset v3.0: the one that holds meta/info.json")
    try:
        if not str(value["codebase_version"]).startswith("v3."):
            raise DatasetError(
                f"{path}: format {value['codebase_version']} is not v3.0", "convert it with LeRobot's own converter"
            )
        dataset_info.check(value, path)
        features = {str(k): dict(v) for k, v in value["features"].items()}
        return Meta(int(value["total_episodes"]), int(value["total_frames"]), int(value["fps"]), features)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(f"{path}: not a LeRobot info file: {type(error).__name__}: {error}") from error


def saved_episodes(root: Path) -> int:
    """Episodes safe in the folder, also those that a killed recorder committed and the next one publishes."""
    published = read_meta(root).episodes if (root / "meta" / "info.json").exists() else 0
    waiting = 0
    for record in (root / ".zk0" / "committed").glob("*/episode.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            waiting += int(json.loads(record.read_text())["episode_index"]) >= published
    return published + waiting


def recorded_units(root: Path) -> str:
    """The joint units that our recorder noted beside the dataset; empty when another program made it."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((root / "meta" / "zk0" / "dataset.json").read_text())["units"])
    return ""


def describe(
    name: str,
    root: Path,
    known: Dataset | None,
    *,
    units: str,
    task: str = "",
    rename: dict[str, str] | None = None,
    train: bool | None = None,
) -> Dataset:
    """The store's record of a dataset, read anew from its folder; settings not given stay as they were `known`."""
    meta = read_meta(root)
    check_renamed(rename or {}, meta.features, root)
    tasks = known.tasks if known else ()
    if task and task not in tasks:
        tasks = (*tasks, task)
    return Dataset(
        name=name,
        root=root,
        episodes=meta.episodes,
        frames=meta.frames,
        fps=meta.fps,
        features={k: {"dtype": f.get("dtype"), "shape": f.get("shape")} for k, f in meta.features.items()},
        tasks=tasks,
        units=recorded_units(root) or units or (known.units if known else "degrees"),
        rename=rename if rename is not None else (known.rename if known else {}),
        train=train if train is not None else (known.train if known else True),
        added_at=known.added_at if known else time.time(),
    )


def check_renamed(rename: Iterable[str], features: Collection[str], where: object) -> None:
    """Raises DatasetError for a camera that is to be renamed and is none of the `features`."""
    for camera in rename:
        if camera not in features:
            has = ", ".join(k for k in features if k.startswith("observation.")) or "none"
            raise DatasetError(f"{where} has no {camera} to be renamed", f"it has: {has}")


def renamed_cameras(pairs: dict[str, str]) -> dict[str, str]:
    """Full feature names for a `{own camera: federation's camera}` map whose names may lack the usual prefix."""

    def full(name: str) -> str:
        return name if name.startswith("observation.") or name == "action" else f"observation.images.{name}"

    return {full(a): full(b) for a, b in pairs.items()}


def misfits(dataset: Dataset, spec: ModelSpec) -> list[str]:
    """Why `dataset` cannot be trained on under `spec`: one sentence each, saying what to change. Empty when it fits."""
    try:
        meta = read_meta(dataset.root)
    except DatasetError as error:
        return [str(error)]
    found: list[str] = []
    if not meta.episodes:
        found.append("it has no episodes yet; record some")
    if meta.fps != spec.fps:
        found.append(
            f"it has {meta.fps} frames per second, the federation {spec.fps}; record at [record] fps = {spec.fps}"
        )
    if dataset.units != spec.units:
        found.append(f"its joints are in {dataset.units}, the federation's in {spec.units}; set robot.units")
    own = {dataset.rename.get(k, k): f for k, f in meta.features.items()}
    for name, wanted in spec.features.items():
        found.extend(_feature_misfit(name, wanted, own, dataset, meta))
    return found


def _feature_misfit(name: str, wanted: Feature, own: dict[str, Any], dataset: Dataset, meta: Meta) -> list[str]:
    have = own.get(name)
    if have is None:
        spare = [k.removeprefix("observation.images.") for k in meta.features if k.startswith("observation.images.")]
        hint = "record with it"
        if name.startswith("observation.images.") and spare:
            camera = name.removeprefix("observation.images.")
            hint = f"`zk0ctl dataset add {dataset.name} {dataset.root} --rename {spare[0]}={camera}`"
        return [f"it has no {name}; {hint}"]
    shape, names = list(have.get("shape") or []), have.get("names")
    if wanted.dtype == "image":
        return [] if len(shape) == 3 and 3 in (shape[0], shape[2]) else [f"{name} has shape {shape}, not an RGB image"]
    if shape != list(wanted.shape):
        return [f"{name} has shape {shape}, the federation {list(wanted.shape)}; record with the same joints"]
    if wanted.names and isinstance(names, list) and names != list(wanted.names):
        return [f"{name} has joints {', '.join(map(str, names))}, the federation {', '.join(wanted.names)}"]
    return []


def coarse_statistics(datasets: list[Dataset]) -> dict[str, dict[str, list[float]]]:
    """Statistics of all `datasets` together, coarse enough to leave the machine (docs/architecture.md §6).

    Per feature of `SHARED`: `mean` and `std` rounded to 0.5 (std at least 0.5, as it is divided by), `min` and `max`
    outward to whole units, `count` to two significant digits. Raises DatasetError when a folder has none.
    """
    result: dict[str, dict[str, list[float]]] = {}
    for name in SHARED:
        parts = [_one(d, name) for d in datasets]
        parts = [p for p in parts if p["count"][0] > 0]
        if not parts:
            continue
        size = {len(p["mean"]) for p in parts}
        if len(size) != 1:
            raise DatasetError(f"the datasets differ in how many joints {name} has", "train on those of one arm type")
        total = sum(p["count"][0] for p in parts)
        joints = range(size.pop())
        mean = [sum(p["mean"][j] * p["count"][0] for p in parts) / total for j in joints]
        square = [
            sum((p["std"][j] ** 2 + (p["mean"][j] - mean[j]) ** 2) * p["count"][0] for p in parts) / total
            for j in joints
        ]
        result[name] = {
            "mean": [_half(m) for m in mean],
            "std": [max(_STEP, _half(math.sqrt(s))) for s in square],
            "min": [float(math.floor(min(p["min"][j] for p in parts))) for j in joints],
            "max": [float(math.ceil(max(p["max"][j] for p in parts))) for j in joints],
            "count": [float(coarse_count(int(total)))],
        }
    return result


def coarse_count(n: int) -> int:
    """`n` to two significant digits."""
    return int(float(f"{n:.1e}"))


def _half(value: float) -> float:
    return round(value / _STEP) * _STEP + 0.0  # + 0.0: no negative zero


def _one(dataset: Dataset, name: str) -> dict[str, list[float]]:
    path = dataset.root / "meta" / "stats.json"
    value = _read_json(path, "record or convert the dataset again with LeRobot 0.6")
    own = next((k for k, v in dataset.rename.items() if v == name), name)
    try:
        found = {k: [float(x) for x in value[own][k]] for k in ("mean", "std", "min", "max", "count")}
        lengths = {len(found[k]) for k in ("mean", "std", "min", "max")}
        if (
            len(lengths) != 1
            or len(found["count"]) != 1
            or not all(math.isfinite(x) for v in found.values() for x in v)
        ):
            raise ValueError("not one finite number per joint")
        return found
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path}: no usable statistics of {own}: {type(error).__name__}: {error}") from error


def _read_json(path: Path, hint: str) -> Any:
    try:
        if path.stat().st_size > dataset_info.MOST:
            raise DatasetError(f"{path}: {path.stat().st_size} bytes is too large for a meta file")
        return json.loads(path.read_text())
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}", hint) from error
    except ValueError as error:
        raise DatasetError(f"{path}: damaged: {error}", hint) from error


def refreshed(dataset: Dataset) -> Dataset:
    """`dataset` with the counts that its folder has now; unchanged when the folder cannot be read."""
    try:
        meta = read_meta(dataset.root)
    except DatasetError:
        return dataset
    return replace(dataset, episodes=meta.episodes, frames=meta.frames)
