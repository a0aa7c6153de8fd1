"""Batches equal LeRobot's own items, and a dataset that is not whole or does not fit is a local, clear error."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn_dataset import TASK, make_dataset

from zk0d.errors import DatasetError
from zk0d.model.spec import ModelSpec
from zk0d.train import presets
from zk0d.train.frames import Samples, Source, load
from zk0d.train.videos import FrameCache

OFFSETS = list(range(8))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("frames") / "drawn", episodes=3, frames=20, height=48, width=64)


def _spec(**cameras: list[int]) -> ModelSpec:
    model = presets.parse({"policy": "act", "cameras": cameras or {"front": [48, 64], "wrist": [48, 64]}})
    return ModelSpec("act", {}, "", model.features, 30, "degrees", (), "bfloat16", "blob:0")


@pytest.fixture(scope="module")
def samples(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Samples:
    return load([Source(dataset)], _spec(), OFFSETS, tmp_path_factory.mktemp("cache"))


@pytest.mark.may_leak("LeRobot keeps its memory-mapped tables open")
def test_batches_equal_lerobot_s(dataset: Path, samples: Samples) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    deltas = {"action": [o / 30 for o in OFFSETS]}
    theirs = LeRobotDataset("local/drawn", root=dataset, delta_timestamps=deltas, video_backend="pyav")
    loader = torch.utils.data.DataLoader(theirs, batch_size=len(theirs), shuffle=False)
    expected: dict[str, Any] = next(iter(loader))
    ours = samples.batch(np.arange(len(samples)))
    assert len(samples) == len(theirs) == 60
    for key in ("observation.state", "action", "action_is_pad", "observation.images.front", "observation.images.wrist"):
        assert ours[key].dtype == expected[key].dtype and torch.equal(ours[key], expected[key]), key
    assert ours["task"] == list(expected["task"]) == [TASK] * 60
    assert set(ours) <= set(expected)
    assert bool(ours["action_is_pad"].any()) and not bool(ours["action_is_pad"][:, 0].any())


def test_a_second_opening_decodes_nothing(
    dataset: Path, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load([Source(dataset)], _spec(), OFFSETS, tmp_path)
    cached = sorted(p.name for p in tmp_path.rglob("*.rgb"))
    assert len(cached) == 6
    monkeypatch.setattr(FrameCache, "_decode", lambda *_: pytest.fail("decoded again"))
    second = load([Source(dataset)], _spec(), OFFSETS, tmp_path)
    assert second.fingerprint == first.fingerprint == samples.fingerprint
    assert torch.equal(
        second.batch(np.array([5]))["observation.images.wrist"], first.batch(np.array([5]))["observation.images.wrist"]
    )
    load([Source(dataset, episodes=(1,))], _spec(), OFFSETS, tmp_path)
    assert len(list(tmp_path.rglob("*.rgb"))) == 2, "clips that are no longer read stay on the disk"


def test_episodes_are_chosen_and_cameras_renamed(dataset: Path, samples: Samples, tmp_path: Path) -> None:
    rename = {"observation.images.front": "observation.images.top"}
    chosen = load([Source(dataset, (2, 0), rename)], _spec(top=[48, 64]), OFFSETS, tmp_path)
    assert len(chosen) == 40 and chosen.fingerprint != samples.fingerprint
    ours, whole = chosen.batch(np.array([0, 20])), samples.batch(np.array([40, 0]))
    assert torch.equal(ours["observation.images.top"], whole["observation.images.front"])
    assert torch.equal(ours["action"], whole["action"])


def test_pictures_of_another_size_are_fitted(dataset: Path, tmp_path: Path) -> None:
    batch = load([Source(dataset)], _spec(front=[96, 96]), OFFSETS, tmp_path).batch(np.array([3]))
    picture = batch["observation.images.front"][0]
    assert picture.shape == (3, 96, 96)
    assert not picture[:, :12].any() and not picture[:, -12:].any() and picture[:, 12:84].mean() > 0.1


def _copy(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "copy"))


def _video(root: Path) -> Path:
    return next(root.glob("videos/observation.images.front/**/*.mp4"))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda r: shutil.rmtree(r), "no such dataset folder"),
        (lambda r: (r / "meta/info.json").unlink(), "meta/info.json is missing"),
        (lambda r: (r / "meta/info.json").write_text("{"), "damaged"),
        (lambda r: shutil.rmtree(r / "meta/episodes"), "meta/episodes is missing"),
        (lambda r: [_truncate(p) for p in r.glob("meta/episodes/**/*.parquet")], "damaged"),
        (lambda r: [_truncate(p) for p in r.glob("data/**/*.parquet")], "cannot be read"),
        (lambda r: [p.unlink() for p in r.glob("data/**/*.parquet")], "cannot be read"),
        (lambda r: _video(r).unlink(), "video of episode 0 is missing"),
        (lambda r: _truncate(_video(r)), ".mp4"),
    ],
)
@pytest.mark.may_leak("pyarrow and datasets keep what they opened until collected")
def test_a_dataset_that_is_not_whole_is_told(dataset: Path, tmp_path: Path, harm: Any, named: str) -> None:
    root = _copy(dataset, tmp_path)
    harm(root)
    with pytest.raises(DatasetError) as caught:
        load([Source(root)], _spec(), OFFSETS, tmp_path / "cache")
    assert named in caught.value.message and str(root) in caught.value.message and caught.value.hint


def test_a_dataset_that_does_not_fit_is_told_what_to_change(dataset: Path, tmp_path: Path) -> None:
    def refused(spec: ModelSpec, source: Source | None = None) -> str:
        with pytest.raises(DatasetError) as caught:
            load([source or Source(dataset)], spec, OFFSETS, tmp_path)
        return str(caught.value)

    assert "observation.images.side" in refused(_spec(side=[48, 64])) and "front, wrist" in refused(
        _spec(side=[48, 64])
    )
    assert "30 frames per second, the federation has 25" in refused(dataclasses.replace(_spec(), fps=25))
    other = presets.parse({"cameras": {"front": [48, 64]}, "joints": ["a", "b", "c", "d", "e", "f"]}).features
    assert "shoulder_pan" in refused(dataclasses.replace(_spec(), features=other))
    fewer = presets.parse({"cameras": {"front": [48, 64]}, "joints": ["a", "b"]}).features
    assert "shape" in refused(dataclasses.replace(_spec(), features=fewer))
    assert "no episode 3" in refused(_spec(), Source(dataset, (3,)))
    assert "no episodes to read" in refused(_spec(), Source(dataset, ()))


def test_the_meta_file_s_count_is_not_believed(dataset: Path, tmp_path: Path) -> None:
    root = _copy(dataset, tmp_path)
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps({**info, "total_episodes": 4}))
    with pytest.raises(DatasetError, match="counts 4 episodes"):
        load([Source(root)], _spec(), OFFSETS, tmp_path / "cache")
