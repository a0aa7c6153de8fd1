"""Whole datasets looked at and reshaped; every result opens with LeRobot's own loader."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lerobot")
from drawn_dataset import as_v21, make_dataset
from recorded_dataset import load

from robot import curation
from robot.salvage import salvage
from robot.verification import verify
from zk0d.daemon import datasets
from zk0d.daemon.quality import Rules, Selection
from zk0d.daemon.store import Store
from zk0d.errors import DatasetError, UsageError


def quiet(event: str, **fields: Any) -> None:
    """Nobody listens."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("curation") / "whole", episodes=3, frames=12)


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_delete_split_merge_and_copy_leave_the_source(whole: Path, tmp_path: Path) -> None:
    before = tree(whole)
    done = curation.delete({"root": str(whole), "episodes": [1], "target": str(tmp_path / "less")}, quiet)
    assert done["episodes"] == 2 and len(load(tmp_path / "less")) == 24
    parts = {"target": str(tmp_path / "one"), "rest": str(tmp_path / "two")}
    assert curation.split({"root": str(whole), "episodes": [0], **parts}, quiet)["rest"]["episodes"] == 2
    both = curation.merge({"roots": list(parts.values()), "target": str(tmp_path / "both")}, quiet)
    assert both["frames"] == 36 and load(tmp_path / "both").num_episodes == 3
    shutil.copytree(whole, came := tmp_path / "came")
    copied = curation.take_in({"source": str(came), "target": str(tmp_path / "copy")}, quiet)
    assert copied["was"].startswith("v3.") and not verify(tmp_path / "copy", quiet)["problems"]
    assert tree(whole) == before
    with pytest.raises(UsageError, match="no episode 7"):
        curation.delete({"root": str(whole), "episodes": [7], "target": str(tmp_path / "x")}, quiet)
    with pytest.raises(DatasetError, match="there already"):
        curation.take_in({"source": str(whole), "target": str(tmp_path / "copy")}, quiet)
    assert not list(tmp_path.glob(".*"))


def test_what_the_recorder_noted_goes_with_each_episode(whole: Path, tmp_path: Path) -> None:
    """An episode in which the arm was let go stays out of training, whatever is deleted, split or merged."""
    root = tmp_path / "noted"
    shutil.copytree(whole, root)
    (root / "meta/zk0/episodes").mkdir(parents=True)
    for episode, care in enumerate(("ok", "ok", "release")):
        noted = {"quality": {"care": care, "rows": 12}, "task": "lift", "files": {"x": {"path": "gone", "sha256": "0"}}}
        (root / f"meta/zk0/episodes/{episode:06d}.json").write_text(json.dumps(noted))

    def out(made: Path) -> list[int]:
        store = Store(tmp_path / "zk0d.db")
        found = Selection(store, Rules()).out(datasets.describe(made.name, made, None, units="degrees"))
        store.close()
        assert not found or set(found.values()) == {"the arm was let go"}
        return sorted(found)

    assert out(root) == [2]
    curation.delete({"root": str(root), "episodes": [0], "target": str(tmp_path / "less")}, quiet)
    assert out(tmp_path / "less") == [1]
    curation.delete({"root": str(tmp_path / "less"), "episodes": [0], "target": str(tmp_path / "least")}, quiet)
    assert out(tmp_path / "least") == [0]
    parts = {"target": str(tmp_path / "first"), "rest": str(tmp_path / "rest")}
    curation.split({"root": str(root), "episodes": [0, 2], **parts}, quiet)
    assert (out(tmp_path / "first"), out(tmp_path / "rest")) == ([1], [])
    curation.merge(
        {"roots": [str(tmp_path / n) for n in ("rest", "first", "least")], "target": str(tmp_path / "all")}, quiet
    )
    assert out(tmp_path / "all") == [2, 3]
    assert not verify(tmp_path / "all", quiet)["problems"]  # hashes of files that are no longer those stay behind


def test_verify_sees_what_is_damaged(whole: Path, tmp_path: Path) -> None:
    assert verify(whole, quiet) == {"episodes": 3, "frames": 36, "videos": 2, "hashed": 0, "problems": []}
    root = tmp_path / "damaged"
    shutil.copytree(whole, root)
    video = next(iter(sorted(root.glob("videos/*front/*/*.mp4"))))
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    assert any("does not decode" in p or "frames for" in p for p in verify(root, quiet)["problems"])


def test_the_sheet_is_a_picture(whole: Path, tmp_path: Path) -> None:
    from PIL import Image

    from robot.sheet import draw

    assert draw(load(whole), tmp_path / "sheet.png", [])["episodes"] == 3
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 24) or []) > 50


def test_salvage_of_a_killed_lerobot(whole: Path, tmp_path: Path) -> None:
    root = tmp_path / "broken"
    shutil.copytree(whole, root)
    shutil.rmtree(root / "meta/episodes")  # LeRobot keeps these in memory until it ends
    (root / "data/chunk-000/file-001.parquet").write_bytes(b"PAR1 and no footer")
    with pytest.raises(DatasetError):
        curation.load(root)
    report = curation.ACTIONS["repair"]({"root": str(root), "target": str(tmp_path / "saved")}, quiet)
    assert report["saved"] == [0, 1, 2] and any("file-001.parquet cannot be read" in p for p in report["lost"])
    assert len(load(tmp_path / "saved")) == 36 and not verify(tmp_path / "saved", quiet)["problems"]
    (root / "data/chunk-000/file-000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match="nothing of"):
        salvage(root, tmp_path / "none", quiet)


def test_other_versions_are_refused(whole: Path, tmp_path: Path) -> None:
    root = tmp_path / "old"
    shutil.copytree(whole, root)
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps({**info, "codebase_version": "v1.6"}))
    with pytest.raises(DatasetError, match=r"v1\.6"):
        curation.take_in({"source": str(root), "target": str(tmp_path / "new")}, quiet)


def test_what_cannot_be_converted_is_called_by_its_own_name(tmp_path: Path) -> None:
    (root := tmp_path / "cubes").joinpath("meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps({"codebase_version": "v2.1"}))
    with pytest.raises(DatasetError) as failed:
        curation.take_in({"source": str(root), "target": str(tmp_path / "x")}, quiet)
    assert str(root) in failed.value.message and "part" not in failed.value.message
    (whole := tmp_path / "later").joinpath("meta").mkdir(parents=True)
    (whole / "meta/info.json").write_text(json.dumps({"codebase_version": "v3.0"}))
    with pytest.raises(DatasetError, match=f"{whole} does not open") as failed:
        curation.take_in({"source": str(whole), "target": str(tmp_path / "x")}, quiet)
    assert "part" not in failed.value.message and not list(tmp_path.iterdir())


def test_v21_becomes_v30(tmp_path: Path) -> None:
    parts = [make_dataset(tmp_path / f"p{n}", episodes=1, frames=10 + n, seed=n, task="t") for n in range(2)]
    as_v21(parts, tmp_path / "old")
    shutil.copytree(tmp_path / "old", broken := tmp_path / "broken")
    (broken / "meta/episodes.jsonl").unlink()
    saved = curation.ACTIONS["repair"]({"root": str(broken), "target": str(tmp_path / "saved")}, quiet)
    assert (saved["episodes"], saved["frames"], saved["lost"]) == (2, 21, [])
    assert load(tmp_path / "saved")[15]["task"] == "t"
    next(broken.glob("videos/*/observation.images.front/episode_000000.mp4")).unlink()
    with pytest.raises(DatasetError, match="front has too few frames"):  # not those of episode 1 in its place
        salvage(broken, tmp_path / "none", quiet)
    done = curation.take_in({"source": str(tmp_path / "old"), "target": str(tmp_path / "new")}, quiet)
    assert done["was"] == "v2.1" and done["episodes"] == 2 and done["frames"] == 21
    dataset = load(tmp_path / "new")
    assert dataset.num_episodes == 2 and dataset[20]["observation.images.front"].shape[0] == 3
    assert not verify(tmp_path / "new", quiet)["problems"] and not (tmp_path / "old").exists()  # it was used up


def test_a_dataset_whose_files_are_said_to_be_elsewhere_is_not_opened(tmp_path: Path) -> None:
    """LeRobot's split copies a video as it is, from where the dataset says: the node's key, say."""
    root = make_dataset(tmp_path / "bad", episodes=2, frames=5, seed=0, task="t")
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps({**info, "video_path": "../node.key"}))
    for job in ({"action": "split", "root": str(root), "target": str(tmp_path / "new"), "episodes": [0]},
                {"action": "take_in", "source": str(root), "target": str(tmp_path / "new")},
                {"action": "repair", "root": str(root), "target": str(tmp_path / "new")}):  # fmt: skip
        with pytest.raises(DatasetError, match="could lead out of the dataset"):
            curation.ACTIONS[str(job["action"])](job, quiet)
    assert root.exists() and not (tmp_path / "new").exists()
