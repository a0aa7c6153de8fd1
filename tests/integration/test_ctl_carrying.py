"""What zk0ctl carries into the daemon: only regular files of the folder, only as much as there is room, never half."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_process import CONFIG, Daemon, over, wait_until

from zk0d.ctl.carrying import cached
from zk0d.errors import DatasetError

INFO = json.dumps({"codebase_version": "v1.0"})


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("node"), CONFIG + "[datasets]\nquota_gb = 0.01\n") as node:
        yield node


@pytest.fixture
def node(lasting: Daemon) -> Iterator[Daemon]:
    yield lasting
    left(lasting)
    assert lasting.ask("dataset_list") == []


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (root := tmp_path / "mine").mkdir()
    (root / "meta").mkdir()
    (root / "meta/info.json").write_text(INFO)
    return root


def left(node: Daemon) -> None:
    """Whatever was carried in is gone, and soon."""
    wait_until(lambda: not list((node.state / "datasets").glob(".carried/*")), "nothing half is left")


class Sender:
    """A client of the control socket that may send anything."""

    def __init__(self, node: Daemon, name: str = "x", **carry: Any) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(str(node.socket))
        self.lines = self.sock.makefile("rb")
        carried = {"files": 1, "bytes": 10, "folder": "/home/alice/cubes", "version": "v3.0", **carry}
        self.tell({"op": "dataset_import", "name": name, "carry": carried})

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *error: object) -> None:
        self.lines.close()
        self.sock.close()

    def tell(self, value: Any) -> None:
        self.sock.sendall(json.dumps(value).encode() + b"\n")

    def hear(self) -> dict[str, Any]:
        return dict(json.loads(self.lines.readline()))

    def refused(self) -> str:
        error = self.hear()["error"]
        return f"{error['code']}: {error['message']}"


def test_only_what_truly_lies_in_the_folder_is_carried(node: Daemon, mine: Path, tmp_path: Path) -> None:
    (secret := tmp_path / "secret").write_text("a key")

    def refused() -> str:
        ran = node.ctl("dataset", "import", f"local:{mine}", "--name", "x")
        assert ran.code == 1 and "cp -rL" in ran.err, ran
        return ran.err

    for target in (secret, tmp_path / "nothing", "/dev/null", "/proc/self/environ"):
        (mine / "meta/link.json").symlink_to(target)
        assert "meta/link.json is a link that leads nowhere or out of it" in refused()
        (mine / "meta/link.json").unlink()
    (mine / "videos").symlink_to(tmp_path)
    assert "mine/videos is a link" in refused()
    (mine / "videos").unlink()
    os.mkfifo(mine / "pipe")
    assert "mine/pipe is no regular file" in refused()
    (mine / "pipe").unlink()
    (deep := mine.joinpath(*"d" * 32)).mkdir(parents=True)
    (deep / "file").touch()
    ran = node.ctl("dataset", "import", f"local:{mine}", "--name", "x")
    assert ran.code == 1 and f"{deep / 'file'} lies too deep" in ran.err and "32 folders" in ran.err, ran
    shutil.rmtree(mine / "d")
    # A link inside it is that file; what comes is what the worker then looks at, and it names the sender's folder.
    (mine / "meta/info.json").rename(mine / "blob")
    (mine / "meta/info.json").symlink_to("../blob")
    absent = node.ctl("dataset", "import", f"local:{mine / 'none'}", "--name", "x")
    assert absent.code == 64 and "none is no folder that you can read" in absent.err
    pytest.importorskip("lerobot")
    ran = node.ctl("dataset", "import", f"local:{mine}", "--name", "x")
    assert ran.code == 1 and f"{mine} is a dataset of v1.0" in ran.err, ran


def test_a_name_or_a_size_that_was_not_announced_is_refused(node: Daemon, tmp_path: Path) -> None:
    long, deep = "/".join(["d" * 200] * 30), "/".join(["d"] * 33)
    for name in ("../x", "/etc/x", "a/../../x", "", "a//b", "./a", "a\0b", "n" * 256, long, deep, 7, None):
        with Sender(node) as sender:
            assert sender.hear() == {"event": "send"}
            sender.tell({"path": name, "size": 1})
            assert sender.refused().startswith("protocol: no file below a folder can have the name"), name
            assert sender.lines.read() == b""  # nothing that follows is taken for a request
    for header in ({"path": "a", "size": 11}, {"path": "a", "size": -1}, {"path": "a", "size": "1"}, [], {"end": True}):
        with Sender(node) as sender:
            sender.hear()
            sender.tell(header)
            assert sender.refused().startswith("protocol: "), header
    with Sender(node, files=2) as sender:  # the same name again does not replace what came
        sender.hear()
        for _ in range(2):
            sender.sock.sendall(b'{"path": "a", "size": 1}\nx')
        assert "File exists" in sender.refused()
    with Sender(node, files=1) as sender:
        sender.hear()
        sender.sock.sendall(b'{"path": "a", "size": 3}\nabc{"end": true}\n')
        assert sender.refused() == "protocol: other files came than were announced"
    for wrong in ({"bytes": -1}, {"files": "many"}, {"files": 10**9}):  # and none of it kept the name
        with Sender(node, **wrong) as sender:
            assert sender.refused().startswith("usage: "), wrong


def test_what_fails_after_whoever_asked_has_left_is_an_event(node: Daemon) -> None:
    with Sender(node, bytes=len(INFO)) as sender:
        sender.hear()
        sender.sock.sendall(b'{"path": "meta/info.json", "size": %d}\n' % len(INFO))
        sender.sock.sendall(INFO.encode() + b'{"end": true}\n')

    def told() -> bool:
        return any("import of 'x' for" in e["text"] and "failed" in e["text"] for e in node.ask("why")["events"])

    wait_until(told, "the failure is an event")
    with Sender(node, "y") as sender:  # it leaves in the midst of sending
        sender.hear()
    wait_until(lambda: "import of 'y' for" in str(node.ask("why")["events"]), "that is an event too")


def test_no_more_is_taken_than_there_is_room_for(node: Daemon, mine: Path) -> None:
    (mine / "big").write_bytes(bytes(11_000_000))
    ran = node.ctl("dataset", "import", f"local:{mine}", "--name", "x")
    assert ran.code == 1 and "it has 0.01 GB, and as much again while it is made anew, and the quota" in ran.err, ran
    with Sender(node, version="v2.1", bytes=6_000_000) as sender:
        assert "the quota of all datasets leaves 0.01 GB" in sender.refused()
    with Sender(node, version="v3.0", bytes=6_000_000) as sender:  # which it is not
        sender.hear()
        info = INFO.encode() + b" " * (6_000_000 - len(INFO))
        sender.sock.sendall(b'{"path": "meta/info.json", "size": 6000000}\n' + info + b'{"end": true}\n')
        assert "it has 0.01 GB, and as much again while it is made anew, and the quota" in sender.refused()
    with Sender(node, bytes=10**15) as sender:
        assert "and the disk has" in sender.refused()
    with Sender(node, bytes=8_000_000) as first, Sender(node, "y", bytes=8_000_000) as second:
        told = {first.hear().get("event"), second.hear().get("event")}
        assert told == {"send", None}  # what the one is promised is not promised to the other


def test_what_is_no_dataset_or_has_no_such_camera_is_told_before_anything_is_sent(node: Daemon, mine: Path) -> None:
    home = node.ctl("dataset", "import", f"local:{mine.parent}", "--name", "x")
    assert home.code == 64 and f"{mine.parent} is no dataset" in home.err
    (mine / "meta/info.json").write_text(
        json.dumps({"codebase_version": "v3.0", "features": {"observation.images.top": {}}})
    )
    os.truncate(_file(mine / "sparse"), 10**12)  # never to be sent
    ran = node.ctl("dataset", "import", f"local:{mine}", "--name", "x", "--rename", "zzz=front")
    assert ran.code == 1 and f"{mine} has no observation.images.zzz to be renamed" in ran.err, ran
    assert "it has: observation.images.top" in ran.err


def test_ctrl_c_after_all_was_sent_ends_the_import_too(node: Daemon, mine: Path) -> None:
    pytest.importorskip("lerobot")
    whole = {"codebase_version": "v3.0", "total_episodes": 1, "total_frames": 1, "fps": 30, "features": {}}
    last = node.events()[-1]
    (mine / "meta/info.json").write_text(json.dumps(whole))  # which LeRobot is to open, and that takes it some seconds
    with node.begin("dataset", "import", f"local:{mine}", "--name", "x") as importing:
        worker = wait_until(lambda: node.worker("robot.curation"), "zk0d has all of it, and a worker")
        importing.send_signal(2)
        said = importing.communicate(timeout=120)[0]
    assert importing.returncode == 130 and "cancelled: zk0d keeps nothing of it" in said, said
    assert over(worker)
    left(node)
    there = node.state / "datasets"
    wait_until(lambda: [p.name for p in there.iterdir()] == [".carried"], "what it was making is gone too")
    assert node.events()[-1] == last, "nobody is told of a failure"
    assert node.ask("dataset_cancel") == {"cancelled": False}  # nothing of this program's
    with Sender(node, bytes=len(INFO)) as sender:  # said while the last of it is still to be written
        sender.hear()
        assert node.ask("dataset_cancel") == {"cancelled": True}
        sender.sock.sendall(
            b'{"path": "meta/info.json", "size": %d}\n' % len(INFO) + INFO.encode() + b'{"end": true}\n'
        )
        assert sender.refused() == "dataset: cancelled"


def test_a_name_that_is_taken_is_refused_before_anything_comes(node: Daemon) -> None:
    (there := node.state / "datasets/x").mkdir(parents=True)  # no dataset of the node's, and on its disk
    with Sender(node) as sender:
        error = sender.hear()["error"]
        assert error["message"] == f"{there} is there already" and f"dataset add local:{there}" in error["hint"]
    there.rmdir()
    with Sender(node) as first, Sender(node) as second:
        told = [first.hear(), second.hear()]
        assert [t.get("event") for t in told] in (["send", None], [None, "send"])
        assert "'x' is just being taken in" in str(told)


def test_cut_or_killed_nothing_half_is_left(tmp_path: Path) -> None:
    with Daemon(tmp_path / "node") as node:
        place = node.state / "datasets/.carried"

        def half(sender: Sender) -> Path:
            sender.hear()
            sender.sock.sendall(b'{"path": "data/a", "size": 2000000}\n' + bytes(1_500_000))
            found = wait_until(lambda: [p for p in place.glob("*/data/a") if p.stat().st_size], "the file comes")
            return Path(found[0])

        with Sender(node, bytes=2_000_000) as sender:
            came = half(sender)
            assert all(p.stat().st_mode & 0o077 == 0 for p in (place, came.parents[1], came.parent, came))
        left(node)
        (mine := tmp_path / "mine/meta").mkdir(parents=True)
        (mine / "info.json").write_text(INFO)
        mine = mine.parent
        os.truncate(_file(mine / "sparse"), 1_000_000_000)  # so long that it is still coming
        with node.begin("dataset", "import", f"local:{mine}", "--name", "x") as cancelled:
            wait_until(lambda: list(place.glob("*/sparse")), "it comes")
            node.stop()  # else all of it may have come before the word does
            cancelled.send_signal(signal.SIGINT)
            os.kill(node.pid, signal.SIGCONT)
            said = cancelled.communicate(timeout=120)[0]
            assert cancelled.returncode == 130 and "cancelled: zk0d keeps nothing of it" in said, said
        left(node)
        with Sender(node, bytes=2_000_000) as sender:
            half(sender)
            _deep(place / "0_1")  # such as no longer comes: shutil.rmtree fails there
            (others := node.state / "datasets/.x.77.part/meta").mkdir(parents=True)  # an export, by zk0ctl
            (node.state / "datasets/.x.77.zk0d-part_v30/meta").mkdir(parents=True)  # of a worker that was killed
            (node.state / "work/results/sheet_1").mkdir(parents=True)
            node.kill()
        assert list(place.glob("*/data/a"))
        node.start()
        swept = [node.state / "datasets", node.state / "work"]
        names = {"datasets": [".x.77.part"], "work": list[str]()}
        wait_until(lambda: all([p.name for p in s.iterdir()] == names[s.name] for s in swept), "all is swept")
        assert others.exists()


def _deep(folder: Path) -> None:
    folder.mkdir()
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def _file(path: Path) -> Path:
    path.touch()
    return path


def test_a_dataset_in_the_operators_own_caches(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_LEROBOT_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with pytest.raises(DatasetError, match="me/cubes is not in your Hugging Face cache") as absent:
        cached("me/cubes")
    assert "hf download me/cubes --repo-type dataset" in absent.value.hint
    for cache in ("hub", "lerobot/hub"):
        repo = tmp_path / "hf" / cache / "datasets--me--cubes"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs/main").write_text("abc")
        (repo / "snapshots/abc/meta").mkdir(parents=True)
        (repo / "snapshots/abc/meta/info.json").write_text(INFO)
        assert cached("me/cubes") == (repo / "snapshots/abc", repo)
    (own := tmp_path / "hf/lerobot/me/cubes").parent.mkdir()
    mine.rename(own)
    assert cached("me/cubes") == (own, own)
