"""Episode and dataset statistics are the ones that LeRobot computes itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from robot.stats import ImageStats, column_stats, merge, sample_indices

lerobot_stats = pytest.importorskip("lerobot.datasets.compute_stats")
RNG = np.random.default_rng(5)


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], spread: float) -> None:
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        # Their quantiles come from 5000 bins, and their variance of images from float32 squares.
        tolerance = spread / 2500 if key.startswith("q") else spread * 1e-3
        assert ours[key].shape == np.asarray(value).shape, key
        np.testing.assert_allclose(ours[key], value, atol=tolerance, rtol=0, err_msg=key)


def test_columns() -> None:
    state = RNG.normal(0, 40, (300, 6)).astype(np.float32)
    index = np.arange(300)
    features = {"observation.state": {"dtype": "float32", "shape": (6,)}, "index": {"dtype": "int64", "shape": (1,)}}
    theirs = lerobot_stats.compute_episode_stats({"observation.state": state, "index": index}, features)
    assert_same(column_stats(state), theirs["observation.state"], float(np.ptp(state)))
    assert_same(column_stats(index), theirs["index"], 300.0)


@pytest.mark.parametrize("size", [(64, 64), (480, 640)])
def test_images(size: tuple[int, int], tmp_path: Path) -> None:
    from PIL import Image

    frames = [(RNG.integers(0, 120, (*size, 3)) + 9 * k).astype(np.uint8) for k in range(12)]
    paths = []
    for k, frame in enumerate(frames):
        paths.append(str(tmp_path / f"{k}.png"))
        Image.fromarray(frame).save(paths[-1])
    key = "observation.images.front"
    theirs = lerobot_stats.compute_episode_stats({key: paths}, {key: {"dtype": "video", "shape": (*size, 3)}})[key]
    ours = ImageStats()
    for number in sample_indices(len(frames)):
        ours.add(frames[number])
    result = ours.result()
    for name in [k for k in result if k.startswith("q")]:  # whole levels, where LeRobot interpolates within one
        np.testing.assert_allclose(result.pop(name), theirs.pop(name), atol=1.01 / 255, err_msg=name)
    assert_same(result, theirs, 1.0)


@pytest.mark.parametrize("length", [1, 2, 99, 100, 300, 2000, 30_000])
def test_which_frames_are_sampled(length: int) -> None:
    assert sample_indices(length).tolist() == lerobot_stats.sample_indices(length)


def test_merging() -> None:
    parts = [{"action": column_stats(RNG.normal(k, 1 + k, (50 + 30 * k, 6)))} for k in range(3)]
    ours, theirs = merge(parts), lerobot_stats.aggregate_stats(parts)
    for key, value in theirs["action"].items():
        np.testing.assert_allclose(ours["action"][key], value, rtol=1e-12)
