"""What a dataset says of itself may not lead out of its folder, whoever made it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zk0d import dataset_info
from zk0d.daemon.datasets import read_meta
from zk0d.errors import DatasetError

GOOD: dict[str, Any] = {
    "codebase_version": "v3.0", "total_episodes": 1, "total_frames": 9, "fps": 30,
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    "features": {"observation.images.front": {"dtype": "video"}},
}  # fmt: skip


def written(root: Path, value: object) -> Path:
    (root / "meta").mkdir(exist_ok=True)
    (root / "meta/info.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return root


@pytest.mark.parametrize("change", [
    {"video_path": "../../keys/node.key"},
    {"video_path": "/var/lib/zk0d/keys/node.key"},
    {"video_path": "videos/{chunk_index}/x.mp4"},  # a number that may be a text: "../.."
    {"video_path": "videos/{video_key!r}/x.mp4"},
    {"video_path": "videos/{video_key.__class__}/x.mp4"},
    {"video_path": "videos/{chunk_index:{video_key}}/x.mp4"},
    {"video_path": "videos/{"},
    {"data_path": 7},
    {"features": {"../../x": {}}},
    {"features": {"..": {}}},
    {"features": {"a/b": {}}},
])  # fmt: skip
def test_what_leads_out_is_refused_wherever_it_is_read(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(DatasetError, match=r"could lead out|cannot be called"):
        dataset_info.check({**GOOD, **change}, "x")
    with pytest.raises(DatasetError, match=r"info.json: .*(could lead out|cannot be called)"):
        read_meta(written(tmp_path, {**GOOD, **change}))


def test_what_lerobot_writes_is_taken(tmp_path: Path) -> None:
    assert read_meta(written(tmp_path, GOOD)).episodes == 1
    v21 = {"data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet", "video_path": None}
    dataset_info.check({**GOOD, **v21}, "x")
    assert dataset_info.features(dataset_info.read(tmp_path)) == ["observation.images.front"]
    assert dataset_info.version(dataset_info.read(tmp_path)) == "v3.0"


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"features": 3, "codebase_version": null}'])
def test_what_says_nothing_is_empty(tmp_path: Path, text: str) -> None:
    info = dataset_info.read(written(tmp_path, text))
    assert (dataset_info.version(info), dataset_info.features(info)) == ("", [])
    assert dataset_info.read(tmp_path / "none") == {}
