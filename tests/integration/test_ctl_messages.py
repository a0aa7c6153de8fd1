"""What a person is told who asks for what cannot be: a sentence with the place and what to do, never a traceback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_process import Daemon

ROOT = Path(__file__).parents[2]
CAMERA = {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("messages") / "node") as daemon:
        yield daemon


def dataset(root: Path, episodes: int) -> Path:
    (root / "meta").mkdir(parents=True)
    info = {"codebase_version": "v3.0", "total_episodes": episodes, "total_frames": 90 * episodes, "fps": 30,
            "features": {"observation.images.top": CAMERA}}  # fmt: skip
    (root / "meta" / "info.json").write_text(json.dumps(info))
    return root


def test_an_added_dataset_takes_nobodys_place_and_nothing_is_recorded_into_it(node: Daemon, tmp_path: Path) -> None:
    mine, other = dataset(tmp_path / "mine" / "cups", 2), dataset(tmp_path / "usb" / "cups", 7)
    assert node.ctl("dataset", "add", str(mine)).code == 0
    told = node.ctl("dataset", "add", str(other))
    assert told.code == 64 and str(mine) in told.err and "--name" in told.err
    assert json.loads(node.ctl("dataset", "list", "--json").out)[0]["root"] == str(mine)
    assert node.ctl("dataset", "add", str(mine), "--no-train").code == 0, "its settings may change"
    before = sorted(mine.rglob("*"))
    told = node.ctl("record", "--dataset", "cups", "--task", "stack", "--episodes", "1", "--follower", "virtual:Touch")
    assert told.code == 64 and "nothing is recorded into it" in told.err and "dataset import" in told.err
    assert sorted(mine.rglob("*")) == before


def test_a_camera_that_is_not_there_is_not_renamed(node: Daemon, tmp_path: Path) -> None:
    root = dataset(tmp_path / "bowls", 1)
    told = node.ctl("dataset", "add", str(root), "--rename", "zzz=front")
    assert told.code == 1 and "no observation.images.zzz" in told.err and "observation.images.top" in told.err
    assert node.ctl("dataset", "add", str(root), "--rename", "top=front").code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("debug", "bundle", "--out", "{tmp}/no/such/b.tgz"), r"/no/such/b\.tgz: No such file.*\n  is the path right"),
        (("debug", "bundle", "--out", "{tmp}/file"), r"file: File exists.*\n  choose a name"),
        (("dataset", "import", "local:{tmp}/no"), r"/no is no folder that you can read\n  name the folder"),
        (("enroll", "127.0.0.1:1", "--ca-fingerprint", "{fingerprint}"), r"cannot be reached: Connection refused\n"),
        (("dataset", "import", "local:~nosuchuser/x"), r"~nosuchuser/x: there is no such user\n"),
        (("rollout", "--out", "/"), r"/ is no place for files\n"),
        (("train", "pause", "--for", "2h", "--until", "08:00"), r"--for and --until contradict each other\n"),
        (("record", "next"), r"nothing is being recorded.*\n.*--dataset NAME"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_in_a_sentence(node: Daemon, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    (tmp_path / "file").write_text("")
    told = node.ctl(*(w.format(tmp=tmp_path, fingerprint="ab" * 32) for w in words))
    assert told.code == (1 if words[0] in ("debug", "enroll", "record") else 64) and re.search(said, told.err), told.err
    assert "Traceback" not in told.err and "Errno" not in told.err


@pytest.mark.parametrize(
    ("program", "words", "code", "said"),
    [
        ("hub", ("--dir", "{tmp}/hub", "backup", "{tmp}/file/x"), 78, "there is no hub in"),
        ("hub", ("--dir", "{tmp}/hub", "status"), 3, "init` makes one"),
        ("hub", ("--dir", "{tmp}/file/hub", "init"), 1, "Not a directory\n  a part of the path is a file"),
        ("daemon", ("--foreground", "--state", "{tmp}/file/x"), 1, "Not a directory\n  a part of the path is a file"),
    ],
)
def test_paths_that_cannot_be(tmp_path: Path, program: str, words: tuple[str, ...], code: int, said: str) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", f"zk0d.{program}.main", *(w.format(tmp=tmp_path) for w in words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == code and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
