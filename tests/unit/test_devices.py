"""Ports and cameras found by their USB serial numbers, in a made-up /sys."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up_sys import plug

from zk0d.devices import find, gone, resolve
from zk0d.errors import RobotError


def test_a_binding_by_serial_survives_swapped_sockets(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    plug(one, "1-1", "ttyACM0", "5A68000001")
    plug(one, "1-2", "ttyACM1", "5A68000002")
    plug(two, "1-1", "ttyACM0", "5A68000002")
    plug(two, "1-2", "ttyACM1", "5A68000001")
    assert resolve("serial:5A68000001", root=one) == str(one / "dev/ttyACM0")
    assert resolve("serial:5A68000001", root=two) == str(two / "dev/ttyACM1")
    assert resolve("/dev/ttyACM7", root=one) == "/dev/ttyACM7"


def test_what_is_there_and_what_was_unplugged(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        plug(root, "1-1", "ttyACM0", "A")
        plug(root, "1-3", "video0", "CAM", "480")
    plug(one, "1-2", "ttyUSB0", "")
    before = find(one)
    assert [(d.kind, d.binding) for d in before] == [
        ("port", "serial:A"), ("port", str(one / "dev/ttyUSB0")), ("camera", "serial:CAM")
    ]  # fmt: skip
    assert before[2].speed == 480 and before[2].usb == "1-3" and before[2].name == "Front camera"
    left = [d for d in before if d.port != str(one / "dev/ttyUSB0")]
    assert [d.port for d in gone(before, left)] == [str(one / "dev/ttyUSB0")]


def test_an_absent_or_doubled_serial_is_said(tmp_path: Path) -> None:
    plug(tmp_path, "1-1", "ttyACM0", "A")
    with pytest.raises(RobotError, match="serial number B is plugged in \\(there: A\\)"):
        resolve("serial:B", root=tmp_path)
    plug(tmp_path, "1-2", "ttyACM1", "A")
    with pytest.raises(RobotError, match="all say"):
        resolve("serial:A", root=tmp_path)
