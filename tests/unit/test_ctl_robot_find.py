"""`zk0ctl robot find`: what is plugged in, and which one was just unplugged; in a made-up /sys."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from made_up_sys import plug

from zk0d import devices
from zk0d.ctl import robot_cmd
from zk0d.ctl.main import main


@pytest.fixture
def looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two arms and a camera; ttyACM1 goes before the third look. Gives the looks so far."""
    plug(tmp_path, "1-1", "ttyACM0", "5A68000001")
    plug(tmp_path, "1-2", "ttyACM1", "5A68000002")
    plug(tmp_path, "1-3", "video0", "CAM", "480")
    seen: list[int] = []
    find = devices.find

    def look() -> list[devices.Device]:
        seen.append(len(seen))
        if len(seen) == 3:
            shutil.rmtree(tmp_path / "sys/class/tty/ttyACM1")
        return find(tmp_path)

    monkeypatch.setattr(devices, "find", look)
    monkeypatch.setattr(robot_cmd, "_LOOK_S", 0.0)
    return seen


def test_ports_and_cameras_by_their_serial_numbers(looks: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robot", "find"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["port", "port", "camera"]
    assert "serial:5A68000002" in lines[2] and lines[2].split()[1].endswith("/dev/ttyACM1") and "1-2" in lines[2]
    assert main(["robot", "find", "--json"]) == 0
    assert [d["serial"] for d in json.loads(capsys.readouterr().out)] == ["5A68000001", "5A68000002", "CAM"]


def test_which_one_did_you_just_unplug(looks: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robot", "find", "--unplugged"]) == 0
    said = capsys.readouterr()
    assert "unplug the one you mean now (3 are plugged in" in said.err
    assert said.out.startswith("port ") and said.out.strip().endswith("ttyACM1: write 'serial:5A68000002'")
    assert main(["robot", "find", "--unplugged", "--wait-s", "0"]) == 1
    assert "nothing was unplugged in 0 s" in capsys.readouterr().err


def test_nothing_is_plugged_in(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(devices, "find", list)
    assert main(["robot", "find"]) == 2 and "virtual arms need none" in capsys.readouterr().out
    assert main(["robot", "find", "--unplugged"]) == 1 and "plug the arm in first" in capsys.readouterr().err
