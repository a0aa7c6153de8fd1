"""Episodes become a LeRobot dataset one rename at a time: opened by LeRobot's loader, and whole after any crash."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from recorded_dataset import load

from robot.cutoff import Begun
from robot.dataset import RecordedDataset, assemble, features
from robot.episodes import RecordingSpec
from robot.video import packets
from zk0d.errors import DatasetError

pytest.importorskip("lerobot")
JOINTS = tuple(
    f"{j}.pos" for j in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
)
SPEC = RecordingSpec(30, JOINTS, {"front": (64, 96), "wrist": (64, 64)}, "so_follower", "degrees")


def colour(episode: int, frame: int) -> np.ndarray:
    """A grey level that says which frame this is, far enough from its neighbours to survive the codec."""
    return np.uint8(40 + 60 * episode + 4 * (frame % 15))


def record(dataset: RecordedDataset, episode: int, frames: int, task: str = "lift the cube") -> Any:
    take = dataset.new_take()
    for k in range(frames):
        images = {n: np.full((*size, 3), colour(episode, k), np.uint8) for n, size in SPEC.cameras.items()}
        state = np.full(6, 100 * episode + k, np.float32)
        take.add(5.0 + k / 30, state, state + 0.5, images)
    return dataset.save(take, task, {})


def test_opens_with_lerobot_after_each_episode_and_frames_are_rows(tmp_path: Path) -> None:
    root = tmp_path / "set"
    lengths = [12, 20, 15]
    for number, length in enumerate(lengths):
        with RecordedDataset(root, SPEC) as dataset:
            record(dataset, number, length, task="lift the cube" if number < 2 else "put it down")
        loaded = load(root)
        so_far = sum(lengths[: number + 1])
        assert (loaded.num_episodes, loaded.num_frames, len(loaded)) == (number + 1, so_far, so_far)
    for row in range(len(loaded)):
        item = loaded[row]
        episode, frame = int(item["episode_index"]), int(item["frame_index"])
        assert int(item["index"]) == row == sum(lengths[:episode]) + frame
        assert float(item["timestamp"]) == pytest.approx(frame / 30, abs=1e-6)
        assert item["observation.state"].tolist() == [100 * episode + frame] * 6
        assert item["action"].tolist() == [100 * episode + frame + 0.5] * 6
        assert item["task"] == ("lift the cube" if episode < 2 else "put it down")
        for camera, (height, width) in SPEC.cameras.items():
            image = item[f"observation.images.{camera}"]
            assert tuple(image.shape) == (3, height, width)
            assert float(image.mean()) * 255 == pytest.approx(float(colour(episode, frame)), abs=1.9)
    assert loaded.meta.stats["action"]["count"].tolist() == [47]
    assert loaded.meta.stats["action"]["max"].tolist() == [214.5] * 6
    filtered = type(loaded)("local/test", root=root, episodes=[1])
    assert len(filtered) == 20 and int(filtered[0]["index"]) == 12


def test_features_and_video_info_are_lerobots_own(tmp_path: Path) -> None:
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.video_utils import get_video_info
    from lerobot.utils.feature_utils import hw_to_dataset_features

    from robot import video

    with RecordedDataset(tmp_path / "set", SPEC) as dataset:
        record(dataset, 0, 5)
    motors: dict[str, Any] = dict.fromkeys(JOINTS, float)
    cameras = {n: (*size, 3) for n, size in SPEC.cameras.items()}
    theirs = hw_to_dataset_features(motors, "action") | hw_to_dataset_features(motors | cameras, "observation")
    ours = features(SPEC)
    for name, feature in theirs.items():
        assert {k: ours[name][k] for k in ("dtype", "names")} == {k: feature[k] for k in ("dtype", "names")}
        assert tuple(ours[name]["shape"]) == tuple(feature["shape"])
    config = RGBEncoderConfig(vcodec="h264", g=video.GOP, crf=video.CRF, preset=video.PRESET)
    path = tmp_path / "set/videos/observation.images.front/chunk-000/file-000.mp4"
    assert get_video_info(path, config) == ours["observation.images.front"]["info"]


def test_lerobot_can_go_on_recording_and_we_then_refuse(tmp_path: Path) -> None:
    root = tmp_path / "set"
    with RecordedDataset(root, SPEC) as dataset:
        record(dataset, 0, 8)
    info = json.loads((root / "meta/info.json").read_text())
    info["total_episodes"] = 2
    (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(DatasetError, match="another program added"):
        RecordedDataset(root, SPEC)


def test_every_name_of_a_first_episode_is_on_the_disk_when_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut takes every name whose folder was not flushed after it was given (POSIX promises no more)."""
    unflushed: set[Path] = set()
    real = {name: getattr(os, name) for name in ("mkdir", "replace", "fsync")}

    def made(path: Any, *args: Any, **kw: Any) -> None:
        real["mkdir"](path, *args, **kw)
        unflushed.add(Path(path))

    def replaced(source: Any, target: Any, **kw: Any) -> None:
        real["replace"](source, target, **kw)
        unflushed.add(Path(target))

    def flushed(fd: int) -> None:
        real["fsync"](fd)
        folder = Path(os.readlink(f"/proc/self/fd/{fd}"))
        unflushed.difference_update([path for path in unflushed if path.parent == folder])

    for name, call in (("mkdir", made), ("replace", replaced), ("fsync", flushed)):
        monkeypatch.setattr(os, name, call)
    root = tmp_path / "datasets" / "cubes"
    with RecordedDataset(root, SPEC) as dataset:
        record(dataset, 0, 6)
        left = {path for path in unflushed if path.exists() and path.is_relative_to(tmp_path)}
    assert not left, sorted(left)


class Crash(BaseException):
    """Stands for kill -9 at one system call: nothing of ours runs after it."""


def test_a_crash_at_any_rename_or_fsync_loses_no_committed_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tmp_path / "template"
    with RecordedDataset(template, SPEC) as dataset:
        record(dataset, 0, 6)
        take = dataset.new_take()
        for k in range(7):
            images = {n: np.full((*size, 3), colour(1, k), np.uint8) for n, size in SPEC.cameras.items()}
            take.add(k / 30, np.zeros(6, np.float32), np.zeros(6, np.float32), images)
        staged = take.folder
        real = {name: getattr(os, name) for name in ("replace", "fsync")}
        calls = 0

        def counted(name: str, stop_at: int) -> Any:
            def call(*args: Any, **kw: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == stop_at:
                    raise Crash
                return real[name](*args, **kw)

            return call

        # What commit's clean-up does on an exception does not happen on kill -9.
        monkeypatch.setattr("robot.episodes.shutil", SimpleNamespace(rmtree=lambda *a, **k: None))
        for encoder in take._encoders.values():
            encoder.close()
            monkeypatch.setattr(encoder, "close", lambda: None)
        seen: set[int] = set()
        for stop_at in range(1, 200):
            root = tmp_path / f"at{stop_at}"
            shutil.copytree(template, root)
            copy = RecordedDataset.__new__(RecordedDataset)
            copy.__dict__.update(dataset.__dict__)
            copy.root, copy.records = root, list(dataset.records)
            copy._committed = root / ".zk0/committed"
            take.folder = root / staged.relative_to(template)
            calls = 0
            for name in real:
                monkeypatch.setattr(os, name, counted(name, stop_at))
            crashed = False
            try:
                copy.save(take, "lift the cube", {})
            except Crash:
                crashed = True
            for name, function in real.items():
                monkeypatch.setattr(os, name, function)
            committed = (root / ".zk0/committed/000001/episode.json").exists() or (
                root / "meta/zk0/episodes/000001.json"
            ).exists()
            committed = committed or any((root / ".zk0/staging").glob("*/take.json"))  # sealed: adopted
            with RecordedDataset(root, SPEC) as reopened:
                episodes = len(reopened.records)
                assert episodes == (2 if committed else 1), f"crash at call {stop_at}"
                assert not reopened.recovery.quarantined
            info = json.loads((root / "meta/info.json").read_text())
            assert info["total_episodes"] == episodes and info["total_frames"] == (13 if committed else 6)
            for record_ in reopened.records:
                for facts in record_.files.values():
                    assert (root / facts["path"]).stat().st_size == facts["bytes"]
            assert not list((root / ".zk0/staging").iterdir())
            seen.add(episodes)
            if not crashed:
                break
        assert not crashed and seen == {1, 2}
    loaded = load(root)
    assert loaded.num_episodes == 2 and len(loaded) == 13


def test_assembling_again_changes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "set"
    with RecordedDataset(root, SPEC) as dataset:
        record(dataset, 0, 6)
        before = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}
        assemble(root)
        assert {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()} == before
        (root / "meta/info.json").unlink()
        assemble(root)
    assert load(root).num_episodes == 1


def test_a_cut_off_take_is_removed_and_said(tmp_path: Path) -> None:
    root = tmp_path / "set"
    with RecordedDataset(root, SPEC) as dataset:
        record(dataset, 0, 6)
    left = root / ".zk0/staging/take-1-0001"
    left.mkdir()
    (left / "front.mp4").write_bytes(b"half a video")
    with RecordedDataset(root, SPEC) as dataset:
        assert dataset.recovery.to_json() == {"removed": ["take-1-0001"]}
        assert not left.exists() and len(dataset.records) == 1


def test_a_take_cut_off_anywhere_becomes_an_episode_up_to_its_last_whole_frame(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    dice, template = random.Random(seed), tmp_path / "template"
    with RecordedDataset(template, SPEC) as dataset:
        record(dataset, 0, 6)
        take = dataset.new_take(Begun("cut", {"take": 2}, 10))
        for k in range(30):
            images = {n: np.full((*size, 3), colour(1, k), np.uint8) for n, size in SPEC.cameras.items()}
            take.add(k / 30, np.full(6, k, np.float32), np.zeros(6, np.float32), images)
        take._encoders["front"].close()  # one camera was just done when the kill came, the other is still at it
        wrist = take.folder / "wrist.live.mp4"
        while packets(wrist) < 29:
            time.sleep(0.01)
        for attempt in range(6):
            root = tmp_path / f"cut{attempt}"
            shutil.copytree(template, root)
            for name in ("rows.part", "wrist.live.mp4") if attempt else ():
                path = root / take.folder.relative_to(template) / name
                os.truncate(path, dice.randrange(path.stat().st_size))
            left = root / take.folder.relative_to(template)
            whole = min(packets(left / "wrist.live.mp4"), (left / "rows.part").stat().st_size // 56)
            with RecordedDataset(root, SPEC) as again:
                if whole < 10:
                    assert again.recovery.removed == [left.name] and len(again.records) == 1
                    continue
                assert again.recovery.adopted == [1] and again.recovery.cut == [f"episode 1: {whole / 30:.1f} s"]
                assert again.records[1].length == whole and again.records[1].facts["ended_by"] == "killed"
            loaded = load(root)
            assert loaded.num_episodes == 2 and len(loaded) == 6 + whole
            last = loaded[5 + whole]
            assert last["observation.state"].tolist() == [whole - 1] * 6 and last["task"] == "cut"
            for camera in SPEC.cameras:
                shown = float(last[f"observation.images.{camera}"].mean()) * 255
                assert shown == pytest.approx(float(colour(1, whole - 1)), abs=1.9)
        take.discard()


def test_takes_that_had_ended_when_the_recorder_was_killed_become_episodes(tmp_path: Path) -> None:
    root = tmp_path / "set"
    with RecordedDataset(root, SPEC) as dataset:
        record(dataset, 0, 6)
        for episode, frames in ((1, 7), (2, 8)):
            take = dataset.new_take()
            for k in range(frames):
                images = {n: np.full((*size, 3), colour(episode, k), np.uint8) for n, size in SPEC.cameras.items()}
                take.add(k / 30, np.full(6, k, np.float32), np.zeros(6, np.float32), images)
            dataset.seal(take, f"task {episode}", {"take": episode})
        (root / ".zk0/staging/take-1-0001").mkdir()
        (root / ".zk0/staging/take-1-0001/take.json").write_text("{}")
    with RecordedDataset(root, SPEC) as dataset:
        assert dataset.recovery.adopted == [1, 2] and [r.length for r in dataset.records] == [6, 7, 8]
        assert "take-1-0001 is damaged" in dataset.recovery.quarantined[0]
        assert dataset.records[2].position.task == "task 2" and dataset.records[2].facts["take"] == 2
    with RecordedDataset(root, SPEC) as dataset:
        assert not dataset.recovery.to_json()
    assert load(root).num_episodes == 3


def test_a_damaged_committed_episode_is_set_aside_and_said(tmp_path: Path) -> None:
    root = tmp_path / "set"
    with RecordedDataset(root, SPEC) as dataset:
        record(dataset, 0, 6)
    odd = root / ".zk0/committed/000001"
    odd.mkdir(parents=True)
    (odd / "episode.json").write_text("{")
    with RecordedDataset(root, SPEC) as dataset:
        assert "000001" in dataset.recovery.quarantined[0]
        record(dataset, 1, 6)
    assert (root / ".zk0/quarantine/000001.0/episode.json").exists()
    assert load(root).num_episodes == 2


def test_a_lost_frame_is_noticed_before_it_counts(tmp_path: Path) -> None:
    with RecordedDataset(tmp_path / "set", SPEC) as dataset:
        take = dataset.new_take()
        for k in range(6):
            images = {n: np.full((*size, 3), colour(0, k), np.uint8) for n, size in SPEC.cameras.items()}
            take.add(k / 30, np.zeros(6, np.float32), np.zeros(6, np.float32), images)
        take._encoders["wrist"].put(images["wrist"])  # one more than rows
        with pytest.raises(DatasetError, match=r"wrist\.mp4 has 7 frames for 6 rows"):
            dataset.save(take, "t", {})
        assert not dataset.records and not take.folder.exists()
        record(dataset, 0, 6)
    assert load(tmp_path / "set").num_episodes == 1


def test_two_recorders_one_dataset_and_other_settings_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "set"
    with RecordedDataset(root, SPEC) as dataset:
        record(dataset, 0, 6)
        with pytest.raises(DatasetError, match="is being recorded into"):
            RecordedDataset(root, SPEC)
    other = RecordingSpec(15, JOINTS, {"front": (64, 96)}, "so_follower", "range")
    with pytest.raises(DatasetError) as refused:
        RecordedDataset(root, other)
    for word in ("fps", "cameras", "units"):
        assert word in refused.value.message
    (tmp_path / "foreign/meta").mkdir(parents=True)
    (tmp_path / "foreign/meta/info.json").write_text("{}")
    with pytest.raises(DatasetError, match="did not record"):
        RecordedDataset(tmp_path / "foreign", SPEC)


def test_wrong_frame_size_is_refused_with_the_camera_named(tmp_path: Path) -> None:
    with RecordedDataset(tmp_path / "set", SPEC) as dataset:
        take = dataset.new_take()
        images = {"front": np.zeros((64, 96, 3), np.uint8), "wrist": np.zeros((64, 65, 3), np.uint8)}
        with pytest.raises(DatasetError, match="camera wrist"):
            take.add(0.0, np.zeros(6, np.float32), np.zeros(6, np.float32), images)
        take.discard()
        assert not take.folder.exists()
