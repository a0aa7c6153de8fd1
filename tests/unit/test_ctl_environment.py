"""The managed environment: the lists and the driver, refusals before anything is made, the switch, the way back.

Installations are made in tests/integration/test_runtime_install.py.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from zk0d.ctl import environment, runtime_lists
from zk0d.ctl.environment import Source
from zk0d.ctl.runtime_fetch import Rate
from zk0d.ctl.runtime_lists import Lists
from zk0d.errors import Zk0Error
from zk0d.runtime import COMPLETE, managed_python


def nothing(stage: str, done: int, count: int) -> None:
    pass


def made(base: Path, key: str) -> Path:
    env = base / "envs" / key
    (env / "bin").mkdir(parents=True)
    (env / "bin" / "python").symlink_to("/bin/false")
    (env / COMPLETE).write_text(json.dumps({"key": key}))
    return env


def test_the_lists_are_found_and_name_the_environment(tmp_path: Path) -> None:
    lists = Lists.find()
    assert lists.count > 50 and lists.key == Lists.find().key
    hashes = lists.hashes()
    assert len(hashes) == lists.count and all(hashes.values())
    cpu = Lists.find("cpu").hashes()
    left_out = set(hashes) - set(cpu)
    assert {"triton", "nvidia-cusolver"} <= left_out and len(left_out) < 10 and "torch" in cpu
    assert all(cpu[name] == hashes[name] for name in cpu) and not set(cpu) - set(hashes)
    other = tmp_path / "full.txt"
    other.write_text(lists.packages.read_text() + "\n")
    assert Lists(lists.tool, other).key != lists.key


def test_the_build_follows_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_lists, "DRIVER", tmp_path / "version")
    assert runtime_lists.choose()[0] == "cpu" and runtime_lists.choose("cuda")[0] == "cuda"
    cuda = Lists.find("cuda").cuda
    oldest = runtime_lists.DRIVERS[cuda]
    text = "NVRM version: NVIDIA UNIX {}x86_64 Kernel Module  {}.65.06  Release Build\nGCC version: gcc 12.3.0\n"
    for variant in ("", "Open "):
        (tmp_path / "version").write_text(text.format(variant, oldest))
        assert runtime_lists.driver() == f"{oldest}.65.06"
        assert runtime_lists.choose()[0] == "cuda" and runtime_lists.choose("cpu")[0] == "cpu"
    (tmp_path / "version").write_text(text.format("", oldest - 30))
    with pytest.raises(Zk0Error, match=f"too old for CUDA {cuda}, which needs {oldest}") as told:
        runtime_lists.choose()
    assert "--cpu" in told.value.hint and runtime_lists.choose("cpu")[0] == "cpu"


def test_the_rate_looks_at_the_last_seconds() -> None:
    rate = Rate()
    assert rate.left(0, 1000, 0.0) == (0.0, None)
    assert rate.left(100, 1000, 2.0) == (50.0, 18.0)
    rate.left(100, 1000, 11.5)
    assert rate.left(100, 1000, 20.0) == (0.0, None)  # it stands: nobody knows how long


def test_too_little_room_is_said_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(Zk0Error, match="GB free") as told:
        environment.install(tmp_path, Lists.find(), Source(), nothing, needs=10**18)
    assert "ZK0_RUNTIME" in told.value.hint
    assert not (tmp_path / "envs").exists() and not (tmp_path / "current").exists()


def test_only_one_at_a_time(tmp_path: Path) -> None:
    with (
        environment.locked(tmp_path),
        pytest.raises(Zk0Error, match="another installation"),
        environment.locked(tmp_path),
    ):
        pass


def test_the_switch_is_one_step_and_has_a_way_back(tmp_path: Path) -> None:
    one, two = made(tmp_path, "one"), made(tmp_path, "two")
    assert managed_python(tmp_path) == ""
    environment.switch(tmp_path, one)
    with pytest.raises(Zk0Error, match="no earlier"):
        environment.rollback(tmp_path)
    environment.switch(tmp_path, two)
    assert (tmp_path / "current").resolve() == two and managed_python(tmp_path)
    assert environment.rollback(tmp_path) == one and (tmp_path / "current").resolve() == one
    assert environment.rollback(tmp_path) == two  # and forth again
    assert not os.path.isabs(os.readlink(tmp_path / "current"))  # the folder may be moved to another disk


def test_made_again_beside_the_one_in_use(tmp_path: Path) -> None:
    one = made(tmp_path, "one")
    environment.switch(tmp_path, one)
    assert environment._place(tmp_path, "one", again=False) == one
    again = environment._place(tmp_path, "one", again=True)
    assert again != one and not again.exists() and one.exists()


def test_what_does_not_work_is_not_switched_to(tmp_path: Path) -> None:
    good = made(tmp_path, "good")
    environment.switch(tmp_path, good)
    with pytest.raises(Zk0Error, match="does not work"):
        environment.check(good)  # its Python is /bin/false
    with pytest.raises(Zk0Error, match="does not work"):
        made(tmp_path, Lists.find().key)
        (tmp_path / "envs" / Lists.find().key / COMPLETE).write_text("{}")
        environment.install(tmp_path, Lists.find(), Source(), nothing, needs=0)
    assert (tmp_path / "current").resolve() == good
