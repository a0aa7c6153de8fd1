"""The check-up's cameras and USB buses: LeRobot's driver on a camera below OpenCV, sockets in a made-up /sys."""

from __future__ import annotations

from pathlib import Path

import pytest
from capture import Capture
from made_up_sys import plug

from robot import checkup
from robot.checkup import check_camera, check_usb
from robot.config import CameraTable
from zk0d import devices

pytest.importorskip("lerobot")
FRONT = CameraTable("front", 64, 64, "0")


@pytest.fixture(autouse=True)
def camera(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cv2.VideoCapture", Capture)
    monkeypatch.setattr(checkup, "_CAMERA_S", 0.5)
    monkeypatch.setattr(Capture, "hz", 30.0)
    Capture.gone.clear()


def test_the_rate_that_a_camera_really_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Capture, "hz", 200.0)  # far more than it is asked for: a machine that halts for a moment
    (good,) = check_camera(FRONT, 15)
    assert (good["level"], good["part"]) == ("ok", "camera front") and float(good["what"].split()[0]) > 15
    monkeypatch.setattr(Capture, "hz", 10.0)
    (slow,) = check_camera(FRONT, 30)
    assert slow["level"] == "warn" and "of 30 frames/s" in slow["what"] and "MJPG" in slow["do"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_camera_that_is_absent_or_gives_nothing() -> None:
    (absent,) = check_camera(CameraTable("top", 64, 64, "serial:NOSUCH"), 30)
    assert absent["level"] == "bad" and "NOSUCH" in absent["what"] and absent["do"]
    Capture.gone.set()
    (dead,) = check_camera(FRONT, 30)
    assert dead["level"] == "bad" and dead["part"] == "camera front" and dead["do"]


def test_cameras_that_share_a_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, speed in enumerate(("480", "480", "12")):
        plug(tmp_path, f"{1 + number // 2}-{number}", f"video{number}", f"CAM{number}", speed)
    find = devices.find
    monkeypatch.setattr(devices, "find", lambda root=None: find(tmp_path))
    raw = [CameraTable(f"c{n}", 480, 640, f"serial:CAM{n}") for n in range(3)]
    found = {f["part"]: f for f in check_usb(raw, 30)}
    assert found["USB bus 1"]["level"] == "warn" and "295 Mbit/s" in found["USB bus 1"]["what"]
    assert "MJPG" in found["USB bus 1"]["do"] and found["USB bus 2"]["level"] == "ok"
    assert found["camera c2"]["level"] == "bad" and "12 Mbit/s" in found["camera c2"]["what"]
    less = [CameraTable(c.name, c.height, c.width, c.source, fourcc="MJPG") for c in raw[:2]]
    assert [f["level"] for f in check_usb(less, 30)] == ["ok"]
