"""What leaves of a dataset's statistics, and what is said when a dataset does not fit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0d.daemon import datasets
from zk0d.daemon.store import Dataset
from zk0d.errors import DatasetError
from zk0d.model.spec import Feature, ModelSpec

JOINTS = ("a.pos", "b.pos")
FEATURES: dict[str, Any] = {
    "observation.state": {"dtype": "float32", "shape": [2], "names": list(JOINTS)},
    "action": {"dtype": "float32", "shape": [2], "names": list(JOINTS)},
    "observation.images.wrist": {"dtype": "video", "shape": [96, 96, 3], "names": None},
}
VECTOR = Feature("float32", (2,), JOINTS)
SPEC = ModelSpec(
    policy_type="act", policy_config={}, backbone="", fps=30, units="degrees", exchange=(), dtype="float32",
    base_digest="",
    features={"observation.state": VECTOR, "action": VECTOR, "observation.images.wrist": Feature("image", (96, 96, 3))},
)  # fmt: skip


def stats(mean: list[float], std: list[float], low: list[float], high: list[float], count: int) -> dict[str, Any]:
    return {"mean": mean, "std": std, "min": low, "max": high, "count": [count]}


def make(root: Path, *, values: dict[str, Any] | None = None, **info: Any) -> Dataset:
    meta = {
        "codebase_version": "v3.0",
        "total_episodes": 2,
        "total_frames": 347,
        "fps": 30,
        "features": FEATURES,
        **info,
    }
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(meta))
    one = values or stats([1.26, -3.74], [0.1, 7.3], [-1.2, -20.01], [3.3, 9.0], 347)
    (root / "meta/stats.json").write_text(
        json.dumps({"observation.state": one, "action": one, "observation.images.wrist": {"mean": [[[0.123456]]]}})
    )
    return datasets.describe(root.name, root, None, units="degrees", task="secret task")


def test_only_coarse_numbers_of_two_features(tmp_path: Path) -> None:
    found = datasets.coarse_statistics([make(tmp_path / "d")])
    assert set(found) == {"observation.state", "action"}
    assert found["action"] == stats([1.5, -3.5], [0.5, 7.5], [-2, -21], [4, 9], 350)


def test_several_datasets_are_merged_before_rounding(tmp_path: Path) -> None:
    one = make(tmp_path / "a", values=stats([0, 0], [1, 1], [-1, -1], [1, 1], 100))
    two = make(tmp_path / "b", values=stats([10, 0], [1, 1], [9, -1], [11, 1], 100))
    found = datasets.coarse_statistics([one, two])["action"]
    assert found["mean"] == [5.0, 0.0]
    assert found["std"] == [5.0, 1.0]  # sqrt(1 + 5²) = 5.099
    assert (found["min"], found["max"], found["count"]) == ([-1, -1], [11, 1], [200])


finite = st.floats(-180, 180)


@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=2), st.integers(1, 10**6))
def test_coarse_holds_for_any_values(tmp_path_factory: pytest.TempPathFactory, pairs: Any, count: int) -> None:
    low = [min(p) for p in pairs]
    high = [max(p) for p in pairs]
    mean = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
    dataset = make(tmp_path_factory.mktemp("d") / "d", values=stats(mean, [1.0, 2.0], low, high, count))
    found = datasets.coarse_statistics([dataset])["action"]
    for j in range(2):
        assert (found["mean"][j] * 2).is_integer() and abs(found["mean"][j] - mean[j]) <= 0.25 + 1e-9
        assert found["min"][j] <= low[j] and found["max"][j] >= high[j]
        assert found["min"][j].is_integer() and found["max"][j].is_integer()
    n = int(found["count"][0])
    assert len(str(n).rstrip("0")) <= 2 and math.isclose(n, count, rel_tol=0.051)


def test_missing_and_damaged(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"info\.json: No such file"):
        datasets.read_meta(tmp_path)
    dataset = make(tmp_path / "d")
    (tmp_path / "d/meta/stats.json").write_text(
        '{"action": {"mean": [NaN], "std": [1], "min": [0], "max": [1], "count": [1]}}'
    )
    with pytest.raises(DatasetError, match="no usable statistics"):
        datasets.coarse_statistics([dataset])
    (tmp_path / "d/meta/info.json").write_text("{")
    with pytest.raises(DatasetError, match="damaged"):
        datasets.read_meta(tmp_path / "d")


def test_old_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"v2\.1 is not v3\.0"):
        make(tmp_path / "d", codebase_version="v2.1")


def test_a_dataset_that_fits(tmp_path: Path) -> None:
    assert datasets.misfits(make(tmp_path / "d"), SPEC) == []


def _renamed() -> dict[str, Any]:
    return {("observation.images.mycam" if "images" in k else k): v for k, v in FEATURES.items()}


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({"fps": 25}, "record at [record] fps = 30"),
        ({"total_episodes": 0}, "no episodes yet"),
        ({"features": _renamed()}, "--rename mycam=wrist"),
        (
            {"features": {**FEATURES, "action": {"dtype": "float32", "shape": [7], "names": None}}},
            "action has shape [7]",
        ),
        ({"features": {**FEATURES, "action": {"dtype": "float32", "shape": [2], "names": ["x", "y"]}}}, "joints x, y"),
    ],
)
def test_a_misfit_says_what_to_change(tmp_path: Path, info: dict[str, Any], said: str) -> None:
    wrong = datasets.misfits(make(tmp_path / "d", **info), SPEC)
    assert any(said in w for w in wrong), wrong


def test_a_renamed_camera_fits(tmp_path: Path) -> None:
    make(tmp_path / "d", features=_renamed())
    rename = datasets.renamed_cameras({"mycam": "wrist"})
    dataset = datasets.describe("d", tmp_path / "d", None, units="degrees", rename=rename)
    assert datasets.misfits(dataset, SPEC) == []


def test_units_are_those_the_recorder_noted(tmp_path: Path) -> None:
    make(tmp_path / "d")
    (tmp_path / "d/meta/zk0").mkdir()
    (tmp_path / "d/meta/zk0/dataset.json").write_text('{"units": "range"}')
    dataset = datasets.describe("d", tmp_path / "d", None, units="degrees")
    assert any("in range" in w for w in datasets.misfits(dataset, SPEC))


def test_episodes_committed_but_not_published_count(tmp_path: Path) -> None:
    make(tmp_path / "d")
    for number in (1, 2):  # 1 is published already, its folder was only left over
        folder = tmp_path / f"d/.zk0/committed/{number:06d}"
        folder.mkdir(parents=True)
        (folder / "episode.json").write_text(json.dumps({"episode_index": number}))
    assert datasets.saved_episodes(tmp_path / "d") == 3
    assert datasets.saved_episodes(tmp_path / "none") == 0
