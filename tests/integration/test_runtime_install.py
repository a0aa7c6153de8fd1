"""The managed environment made from a small index over loopback: killed and gone on with, cut lines, spoilt files, no room.

The full list is installed by bench/packages.py --runtime; the wheels here are stand-ins, everything else is the real thing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_process import wait_until
from wheel_index import WheelIndex, installer, publish, wheel

from zk0d.ctl import environment, runtime_fetch
from zk0d.ctl.environment import Source
from zk0d.ctl.main import main
from zk0d.ctl.runtime_lists import Lists
from zk0d.errors import Zk0Error
from zk0d.runtime import COMPLETE, managed_python

SIZE = 3_000_000
INSTALL = """
import sys
from pathlib import Path
from zk0d.ctl import environment
from zk0d.ctl.runtime_lists import Lists
base, tool, packages, url = sys.argv[1:]
environment.install(Path(base), Lists(Path(tool), Path(packages)), environment.Source(index=url), lambda *now: None)
"""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WheelIndex]:
    with WheelIndex(tmp_path_factory.mktemp("index")) as serving:
        installer(serving.folder)
        yield serving


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the module: its tests are an installation's life, in order."""
    return tmp_path_factory.mktemp("runtime")


class Told:
    def __init__(self) -> None:
        self.stages: dict[str, list[tuple[int, int]]] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.stages.setdefault(stage, []).append((done, total))


def torch(folder: Path) -> Path:
    return next(folder.glob("torch-*"))


def begun(base: Path, lists: Lists) -> None:
    """Give the environment of `lists` the state in which its installer is there: what takes most of the time."""
    shutil.copytree(base / "current", base / "envs" / lists.key, symlinks=True)
    for path in [
        *(base / "envs" / lists.key).glob("lib/python3*/site-packages/*"),
        base / "envs" / lists.key / COMPLETE,
    ]:
        if path.name.startswith(("torch", "lerobot", COMPLETE)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def current(base: Path) -> str:
    return str(environment.check(base / "current")["torch"])


def test_killed_in_the_middle_it_goes_on_and_asks_for_no_byte_twice(
    index: WheelIndex, base: Path, tmp_path: Path
) -> None:
    publish(index.folder, "1.0", SIZE)
    lists, name = index.lists(tmp_path / "one"), "torch-1.0-py3-none-any.whl"
    size = (index.folder / name).stat().st_size
    index.held[name] = 1_000_000
    command = [sys.executable, "-c", INSTALL, str(base), str(lists.tool), str(lists.packages), index.url]
    with subprocess.Popen(command) as process:
        part = base / "cache/files" / f"{name}.part"
        wait_until(
            lambda: process.poll() or (part.exists() and part.stat().st_size == 1_000_000), "a part of torch", 120
        )
        assert process.poll() is None
        process.kill()
    assert managed_python(base) == ""
    index.go.set()
    index.held.clear()
    wait_until(lambda: index.sent.get(name), "the held transfer ends")
    index.sent.clear()
    index.cut[name] = 700_000  # and now the line is cut every so often
    told = Told()
    environment.install(base, lists, Source(index=index.url), told)
    index.cut.clear()
    assert index.sent[name] == size - 1_000_000
    assert current(base) == "1.0" and (base / "current" / COMPLETE).exists()
    done, total = told.stages["fetching"][-1]
    assert done == total >= SIZE and told.stages["installing"]
    assert not (base / "cache").exists()
    index.sent.clear()
    environment.install(base, lists, Source(index=index.url), told)  # it is there: nothing is fetched
    assert index.sent == {}


def test_a_file_that_the_list_does_not_name_is_refused_and_the_old_one_stays(
    index: WheelIndex, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_fetch, "TRIES", 2)
    publish(index.folder, "2.0", SIZE)
    lists, name = index.lists(tmp_path / "two"), "torch-2.0-py3-none-any.whl"
    begun(base, lists)
    index.spoilt.add(name)
    with pytest.raises(Zk0Error, match=r"torch-2.0.* is not the file that the list names") as told:
        environment.install(base, lists, Source(index=index.url), Told())
    assert "nothing of it was installed" in told.value.hint
    assert current(base) == "1.0" and not list((base / "cache/files").glob("torch*"))
    index.spoilt.clear()

    index.refused[name] = 503
    with pytest.raises(Zk0Error, match=r"broke off at 0.0 of .* MB: the server answers 503") as told:
        environment.install(base, lists, Source(index=index.url), Told())
    assert "run it again" in told.value.hint and current(base) == "1.0"
    index.refused.clear()

    index.sizes[name] = 10**15
    with pytest.raises(Zk0Error, match=r"GB free and this needs [23]\d{6}\.\d GB more"):
        environment.install(base, lists, Source(index=index.url), Told())
    assert current(base) == "1.0" and not (base / "cache/files" / f"{name}.part").exists()
    index.sizes.clear()

    environment.install(base, lists, Source(index=index.url), Told())
    assert current(base) == "2.0"
    environment.rollback(base)
    assert current(base) == "1.0"
    environment.install(base, lists, Source(index=index.url), Told())  # still there: a switch
    assert current(base) == "2.0"


def test_from_a_folder_and_what_does_not_work_is_not_switched_to(index: WheelIndex, base: Path, tmp_path: Path) -> None:
    publish(index.folder, "3.0", 1000)
    wheel(index.folder, "torch", "3.0", {"torch/__init__.py": "raise ImportError('no libcuda')"})
    lists = index.lists(tmp_path / "three")
    begun(base, lists)
    folder = tmp_path / "wheels"
    shutil.copytree(index.folder, folder)
    index.sent.clear()
    torch(folder).rename(tmp_path / torch(folder).name)
    with pytest.raises(Zk0Error, match=r"torch.*was not found|no version of torch"):
        environment.install(base, lists, Source(wheels=folder), Told())
    torch(tmp_path).rename(folder / torch(tmp_path).name)
    with pytest.raises(Zk0Error, match="does not work: ImportError: no libcuda"):
        environment.install(base, lists, Source(wheels=folder), Told())
    assert current(base) == "2.0" and index.sent == {}


def test_the_commands_from_a_mirror_and_a_folder_and_the_way_back(
    index: WheelIndex, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a person has it: `zk0ctl runtime install --index-url`, `--wheels`, `check`, `rollback`, `show`."""
    monkeypatch.setenv("ZK0_RUNTIME", str(base))

    def ctl(*words: str) -> str:
        assert main(["runtime", *words]) == 0
        return capsys.readouterr().out

    publish(index.folder, "3.1", 1000)
    lists = index.lists(tmp_path / "mirror")
    monkeypatch.setattr(Lists, "find", lambda build="cuda": lists)
    begun(base, lists)
    index.sent.clear()
    said = ctl("install", "--cpu", "--index-url", index.url)
    assert "current: torch 3.1" in said and index.sent["torch-3.1-py3-none-any.whl"] > 0

    publish(index.folder, "3.2", 1000)
    lists = index.lists(tmp_path / "folder")
    begun(base, lists)
    shutil.copytree(index.folder, tmp_path / "wheels")
    index.sent.clear()
    assert "current: torch 3.2" in ctl("install", "--cpu", "--wheels", str(tmp_path / "wheels"))
    assert index.sent == {}
    assert "works: torch 3.2" in ctl("check") and "current: torch 3.1" in ctl("rollback")
    assert "current: torch 3.1" in ctl("show") and "previous: torch 3.2" in ctl("show")


def test_what_the_server_does_not_give_to_us_is_left_to_the_installer(index: WheelIndex, tmp_path: Path) -> None:
    publish(index.folder, "4.0", 1000)
    name = "torch-4.0-py3-none-any.whl"
    hashes = index.lists(tmp_path / "four").hashes()["torch"]
    items = [runtime_fetch.Item(name, f"{index.url.removesuffix('simple/')}files/{name}", 0, hashes)]
    index.refused[name] = 401
    fetcher = runtime_fetch.Fetcher(tmp_path / "files", lambda done, total: None)
    assert fetcher.fetch(items) == items
    index.refused.clear()
    assert (
        fetcher.fetch(items) == [] and (tmp_path / "files" / name).exists()
    )  # a size that is not told is no hindrance


def test_an_index_that_cannot_be_asked_is_said(base: Path, tmp_path: Path) -> None:
    uv = Path(sys.executable).parent / "uv"
    lists = Lists(tmp_path, tmp_path / "list.txt")
    lists.packages.write_text(f"torch==1.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(Zk0Error, match="does not tell what to fetch"):
        flags = ["--index-url", "http://127.0.0.1:9/simple/"]
        env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "UV_HTTP_RETRIES": "0"}
        runtime_fetch.plan(uv, Path(sys.executable), lists, flags, env, tmp_path / "pylock.toml")
