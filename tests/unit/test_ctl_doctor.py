"""The doctor: every finding that is not good names what mends it; a check that fails itself stops no other."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zk0d.ctl import checkup, checkup_machine, runtime_lists
from zk0d.ctl.checkup import CHECKS
from zk0d.ctl.checkup_machine import gpu
from zk0d.ctl.command import Context
from zk0d.ctl.findings import Case, Check, Finding, examine
from zk0d.ctl.main import main
from zk0d.runtime import COMPLETE


def context(folder: Path) -> Context:
    return Context.make(None, str(folder))


def test_without_a_daemon_it_says_so_and_checks_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--state", str(tmp_path), "doctor", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["schema_version"] == 1 and told["exit_code"] == 1
    checks = {f["check"] for f in told["findings"]}
    assert {"units", "daemon", "group", "settings", "runtime", "gpu", "arms", "cameras", "disk", "clock"} <= checks
    for finding in told["findings"]:
        assert finding["level"] in ("ok", "note", "warning", "error")
        assert finding["mend"] or finding["level"] in ("ok", "note"), finding


def test_wrong_settings_are_found(tmp_path: Path) -> None:
    (tmp_path / "zk0d.toml").write_text("[train]\nniceness = 99\n")
    found = [f for f in examine(context(tmp_path), CHECKS) if f.check == "settings"]
    assert [f.level for f in found] == ["error"] and "niceness" in found[0].message and "0 … 19" in found[0].mend


def test_a_check_that_fails_itself_is_a_note(tmp_path: Path) -> None:
    def broken(case: Case) -> list[Finding]:
        raise OSError("no such thing")

    def fine(case: Case) -> list[Finding]:
        return [Finding("fine", "ok", "good")]

    found = examine(context(tmp_path), (broken, fine))
    assert [(f.check, f.level) for f in found] == [("broken", "note"), ("fine", "ok")]


def levels(folder: Path, check: str) -> list[tuple[str, str]]:
    return [(f.level, f.mend) for f in examine(context(folder), CHECKS) if f.check == check]


def test_the_runtime_is_held_against_the_list_and_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZK0_RUNTIME", str(tmp_path))
    monkeypatch.setattr(runtime_lists, "DRIVER", tmp_path / "driver")
    assert levels(tmp_path, "runtime") == [("warning", "sudo zk0ctl runtime install")]
    env = tmp_path / "envs" / "one"
    (env / "bin").mkdir(parents=True)
    (env / "bin" / "python").symlink_to("/bin/true")
    (tmp_path / "current").symlink_to(env)

    def made(key: str) -> None:
        (env / COMPLETE).write_text(json.dumps({"key": key, "torch": "2.0", "lerobot": "0.6"}))

    made("of an earlier version")
    assert levels(tmp_path, "runtime") == [("warning", "sudo zk0ctl runtime install")]
    for build in ("cpu", "cuda"):
        made(runtime_lists.Lists.find(build).key)
        assert levels(tmp_path, "runtime") == [("ok", "")]
    (tmp_path / "driver").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.1.2\n")
    assert levels(tmp_path, "runtime")[0][0] == "error" and levels(tmp_path, "gpu")[0][0] in ("ok", "warning")
    made(runtime_lists.Lists.find("cpu").key)
    assert levels(tmp_path, "runtime") == [("warning", "sudo zk0ctl runtime install --cuda")]


def test_the_clock_is_asked_of_the_kernel(tmp_path: Path) -> None:
    ((level, mend),) = levels(tmp_path, "clock")
    assert (level, mend) in (("ok", ""), ("warning", "sudo timedatectl set-ntp true"), ("note", ""))


HUB = {"hub": {"address": "127.0.0.1:9"}, "link": {"phase": "waiting", "reason": "refused"}, "health": []}


class Answers(Context):
    """A context whose daemon gives these answers."""

    def __init__(self, folder: Path, **answers: dict[str, Any]) -> None:
        super().__init__(folder / "control.sock", folder)
        self.answers = answers

    def call(self, op: str, *rest: Any, **request: Any) -> Any:
        return self.answers[op]


def bad(case: Case, check: Check) -> list[tuple[str, str, str]]:
    """What a check finds wrong."""
    found = [(f.level, f.message, f.mend) for f in check(case) if f.level != "ok"]
    assert all(mend for level, _, mend in found if level != "note"), found
    return found


def test_a_hub_that_cannot_be_reached_and_one_that_does_not_want_us(tmp_path: Path) -> None:
    case = Case(Answers(tmp_path), HUB)
    ((level, message, mend),) = bad(case, checkup.hub)
    assert level == "error" and "127.0.0.1:9 does not answer: Connection refused" in message and "firewall" in mend
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        case.status = {**HUB, "hub": {"address": address}}
        ((level, message, mend),) = bad(case, checkup.hub)
        assert level == "error" and f"{address} answers but there is no link: refused" in message and "logs" in mend
    case.status = {**HUB, "hub": None}
    assert bad(case, checkup.hub)[0][0] == "warning" and "zk0ctl enroll" in bad(case, checkup.hub)[0][2]
    case.status = {**HUB, "link": {"phase": "connected"}}
    assert bad(case, checkup.hub) == []


@pytest.mark.parametrize(("days", "level"), [(-2.0, "error"), (5.0, "warning"), (60.0, "ok")])
def test_a_certificate_that_ends(days: float, level: str, tmp_path: Path) -> None:
    answers = Answers(tmp_path, certificate={"until": time.time() + days * 86400 + 60})
    (found,) = checkup.certificate(Case(answers, HUB))
    assert found.level == level and f"{abs(days):.0f} days" in found.message and bool(found.mend) == (level != "ok")


@pytest.mark.parametrize(("free", "level"), [(1e9, "error"), (5e9, "warning"), (5e10, "ok")])
def test_a_disk_that_is_full(free: float, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup_machine.shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    (found,) = checkup_machine.disk(Case(context(tmp_path)))
    assert found.level == level and bool(found.mend) == (level != "ok")


def test_an_arm_and_a_camera_that_are_bound_and_not_there(tmp_path: Path) -> None:
    places = {
        "follower": {"at": "/dev/zk0/arm-none", "problem": ""},
        "camera front": {"at": "/dev/video99", "problem": ""},
        "camera wrist": {"at": "", "problem": "no such camera"},
    }
    told = {"robot": {"follower": "/dev/zk0/arm-none"}, "places": places, "files": ["/etc/zk0d/conf.d/50-arm.toml"]}
    case = Case(Answers(tmp_path, robot_show=told), HUB)
    gone = [f for f in bad(case, checkup_machine.arms) if f[0] == "warning"]
    assert [f[1] for f in gone] == ["follower: /dev/zk0/arm-none is not there"] and "zk0ctl robot find" in gone[0][2]
    gone = [f for f in bad(case, checkup_machine.cameras) if f[0] == "warning"]
    assert [f[1] for f in gone] == ["camera front: /dev/video99 is not there", "camera wrist: no such camera"]


@pytest.mark.parametrize(("driver", "levels"), [("550.54.15", ["ok", "note"]), ("570.86.10", ["ok"])])
def test_a_driver_that_cannot_move_memory(
    driver: str, levels: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\necho 'NVIDIA GeForce RTX 4090, {driver}, 24564 MiB'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert [f.level for f in gpu(Case(context(tmp_path)))] == levels
