"""`zk0ctl dataset` end to end: checks and edits by the daemon's worker, and what the node trains on afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from daemon_process import Daemon, loads

pytest.importorskip("lerobot")
from drawn_dataset import JOINTS, as_v21, make_dataset
from recorded_dataset import load

from robot.dataset import RecordedDataset
from robot.episodes import Position, RecordingSpec, commit
from zk0d.control import call
from zk0d.ctl.dataset_edit import numbers
from zk0d.errors import UsageError


def test_episode_numbers() -> None:
    assert numbers(["3", "7-9"]) == [3, 7, 8, 9]
    for wrong in ("x", "9-7", "-1", "1-"):
        with pytest.raises(UsageError):
            numbers([wrong])


def recorded(root: Path) -> None:
    """Three episodes as a killed recorder leaves them: two published, the third committed only; and an ended take."""
    spec = RecordingSpec(30, tuple(f"{j}.pos" for j in JOINTS), {"front": (64, 64)}, "so_follower", "degrees")
    with RecordedDataset(root, spec) as dataset:
        for number in range(4):
            take = dataset.new_take()
            for k in range(10):
                picture = np.full((64, 64, 3), 20 * number + k, np.uint8)
                take.add(k / 30, np.full(6, k, np.float32), np.full(6, number, np.float32), {"front": picture})
            if number < 2:
                dataset.save(take, "lift", {})
            elif number == 2:
                staged = dataset.seal(take, "lift", {})
                commit(staged, spec, Position(2, 20, "lift", 0), root / ".zk0/committed")
            else:
                dataset.seal(take, "lift", {})


def test_check_and_edit_by_the_daemon(tmp_path: Path) -> None:
    parts = [make_dataset(tmp_path / f"p{n}", episodes=1, frames=10, seed=n, task="t") for n in range(2)]
    as_v21(parts, tmp_path / "old")
    (whole := tmp_path / "node/datasets/lifts").parent.mkdir(parents=True)
    recorded(whole)
    snapshot = tmp_path / "hf/hub/datasets--alice--lifts/snapshots/abc"
    shutil.copytree(parts[0], snapshot)
    (blobs := snapshot.parents[1] / "blobs").mkdir()
    (snapshot / "meta/info.json").rename(blobs / "1234")
    (snapshot / "meta/info.json").symlink_to("../../../blobs/1234")  # as `hf download` leaves it
    (refs := snapshot.parents[1] / "refs").mkdir()
    (refs / "main").write_text("abc")
    with Daemon(tmp_path / "node", HF_HOME=str(tmp_path / "hf")) as node:
        # From the Hugging Face cache, and no hub is asked for what is not in it.
        cached = node.ctl("dataset", "import", "hf:alice/lifts", "--name", "cached", "--no-train")
        assert cached.code == 0 and "1 episode, 10 frames, not trained on" in cached.out, cached
        assert load(node.state / "datasets/cached").num_episodes == 1
        missing = node.ctl("dataset", "import", "hf:alice/none", "--name", "none")
        assert missing.code == 1 and "alice/none is not in your Hugging Face cache" in missing.err

        imported = node.ctl(
            "dataset", "import", f"local:{tmp_path / 'old'}", "--name", "cubes", "--rename", "front=top"
        )
        assert imported.code == 0, imported
        assert [d["rename"] for d in loads(node.ctl("dataset", "list", "--json")) if d["name"] == "cubes"] == [
            {"observation.images.front": "observation.images.top"}
        ]
        checked = node.ctl("dataset", "verify", "cubes")
        assert checked.code == 0 and "2 episodes, 20 frames" in checked.out and "whole" in checked.out

        heard: list[dict[str, Any]] = []
        call(node.socket, {"op": "dataset_verify", "name": "cubes"}, heard.append, timeout=60)
        assert [e["done"] for e in heard if e["event"] == "progress"] == [0, 1] and heard[-1]["of"] == 2, heard

        # What a killed recorder left is saved before anything is deleted, so that it is in the new folder too.
        assert node.ctl("dataset", "add", f"local:{whole}").code == 0
        silent = node.ctl("dataset", "delete", "lifts", "0")
        assert silent.code == 64 and "1 of 4 episodes would be deleted" in silent.err and load(whole).num_episodes == 4
        out = node.ctl("dataset", "exclude", "lifts", "1", "3")
        assert out.code == 0 and "kept out of training: 1, 3 (of 4 episodes)" in out.out
        refused = node.ctl("dataset", "exclude", "lifts", "0-3")
        assert refused.code == 64 and "no episode would be left" in refused.err
        deleted = node.ctl("dataset", "delete", "lifts", "0", "--yes")
        assert deleted.code == 0 and "3 episodes, 30 frames" in deleted.out, deleted
        less = load(whole)
        assert [float(less[row]["action"][0]) for row in (0, 10, 20)] == [1.0, 2.0, 3.0]
        (before,) = whole.parent.glob("lifts.before-*")
        assert load(before).num_episodes == 4
        # 1 and 3 were kept out; with 0 gone they are called 0 and 2, and 2 comes back in
        assert "kept out of training: 0 (of 3" in node.ctl("dataset", "include", "lifts", "2").out

        split = node.ctl("dataset", "split", "lifts", "1", "--into", "one", "--rest", "two")
        assert split.code == 0, split
        merged = node.ctl("dataset", "merge", "one", "two", "--into", "all")
        assert merged.code == 0, merged
        both = load(node.state / "datasets/all")
        assert [float(both[row]["action"][0]) for row in (0, 10, 20)] == [2.0, 1.0, 3.0]
        # What was said of an episode goes with it: 0 of lifts is kept out, and so it is in what was made of it.
        told = {n: loads(node.ctl("dataset", "show", n, "--json"))["quality"] for n in ("one", "two", "all")}
        assert {n: [e["trained"] for e in told[n]] for n in told} == {
            "one": [True], "two": [False, True], "all": [True, False, True],
        }  # fmt: skip
        shutil.rmtree(before / "meta/episodes")
        repaired = node.ctl("dataset", "repair", str(before), "--into", "saved")
        assert repaired.code == 0 and load(node.state / "datasets/saved").num_episodes == 4, repaired
        named = {d["name"]: d["train"] for d in loads(node.ctl("dataset", "list", "--json"))}
        assert set(named) == {"cached", "cubes", "lifts", "one", "two", "all", "saved"}
        assert not any(named[n] for n in ("one", "two", "all", "saved"))  # nothing is trained on twice unasked

        mistyped = node.ctl("dataset", "sheet", "cubes", "--out", str(tmp_path / "none/sheet.png"))
        assert mistyped.code == 64 and f"there is no folder {tmp_path / 'none'}" in mistyped.err
        assert not (tmp_path / "none").exists()
        sheet = node.ctl("dataset", "show", "cubes", "--sheet", str(tmp_path / "sheet.png"))
        assert sheet.code == 0 and str(tmp_path / "sheet.png") in sheet.out, sheet
        assert (tmp_path / "sheet.png").stat().st_size > 1000
        # Exports are written by zk0ctl. What a link in a dataset shows stays, and a place that nobody may write to
        # is refused before anything is done, and is no backup.
        (secret := tmp_path / "secret").write_text("the node's key")
        (node.state / "datasets/cubes/meta/leak.json").symlink_to(secret)
        refused = node.ctl("dataset", "export", "cubes", "/proc/out")
        assert refused.code == 64 and "/proc/out cannot be written" in refused.err, refused
        assert "backup   none" in node.ctl("dataset", "show", "cubes").out
        exported = node.ctl("dataset", "export", "cubes", str(tmp_path / "out"))
        assert not (tmp_path / "out/meta/leak.json").exists() and not (tmp_path / "out/.zk0").exists()
        assert exported.code == 0 and load(tmp_path / "out").num_episodes == 2
        assert "2 of 2, " in (told := node.ctl("dataset", "show", "cubes").out) and str(tmp_path / "out") in told
        told = node.ctl("dataset", "show", "lifts", "--episodes").out
        assert "backup   none" in told and "3 episodes, 1 not trained on" in told and "excluded by you" in told
        there = node.ctl("dataset", "export", "cubes", str(tmp_path / "out"))
        assert there.code == 1 and "there already" in there.err
