"""`zk0ctl dataset` end to end: checks and edits by the daemon's worker, and what the node trains on afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
from daemon_process import Daemon, loads

pytest.importorskip("lerobot")
from drawn_dataset import make_dataset
from recorded_dataset import load

from zk0d.ctl.dataset_edit import numbers
from zk0d.errors import UsageError


def test_episode_numbers() -> None:
    assert numbers(["3", "7-9"]) == [3, 7, 8, 9]
    for wrong in ("x", "9-7", "-1", "1-"):
        with pytest.raises(UsageError):
            numbers([wrong])


def test_check_and_edit_by_the_daemon(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "cubes", episodes=4, frames=10)
    with Daemon(tmp_path / "node") as node:
        assert node.ctl("dataset", "import", f"local:{root}").code == 0
        copy = node.state / "datasets/cubes"
        checked = node.ctl("dataset", "verify", "cubes")
        assert checked.code == 0 and "4 episodes, 40 frames" in checked.out and "whole" in checked.out

        out = node.ctl("dataset", "exclude", "cubes", "1", "3")
        assert out.code == 0 and "kept out of training: 1, 3 (of 4 episodes)" in out.out
        refused = node.ctl("dataset", "exclude", "cubes", "0-3")
        assert refused.code == 64 and "no episode would be left" in refused.err

        silent = node.ctl("dataset", "delete", "cubes", "0")
        assert silent.code == 64 and "1 of 4 episodes would be deleted" in silent.err and load(copy).num_episodes == 4
        deleted = node.ctl("dataset", "delete", "cubes", "0", "--yes")
        assert deleted.code == 0 and "3 episodes, 30 frames" in deleted.out, deleted
        assert load(copy).num_episodes == 3
        (before,) = copy.parent.glob("cubes.before-*")
        assert load(before).num_episodes == 4
        # 1 and 3 were kept out; with 0 gone they are called 0 and 2, and 2 comes back in
        assert "kept out of training: 0 (of 3" in node.ctl("dataset", "include", "cubes", "2").out

        sheet = node.ctl("dataset", "sheet", "cubes", "--out", str(tmp_path / "sheet.png"))
        assert sheet.code == 0 and (tmp_path / "sheet.png").stat().st_size > 1000
        exported = node.ctl("dataset", "export", "cubes", str(tmp_path / "out"))
        assert exported.code == 0 and load(tmp_path / "out").num_episodes == 3
        there = node.ctl("dataset", "export", "cubes", str(tmp_path / "out"))
        assert there.code == 1 and "there already" in there.err
        assert [d["name"] for d in loads(node.ctl("dataset", "list", "--json"))] == ["cubes"]
