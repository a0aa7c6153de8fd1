"""However a session ends, no servo is left under torque: told to, with zk0d, or killed; and on a person's word."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from daemon_process import Daemon, loads, wait_until

from robot.virtual.servo import TORQUE_ENABLE

pytest.importorskip("lerobot")
pytest.importorskip("so101_nexus")

RECORD = ("record", "--dataset", "d", "--task", "x", "--episodes", "1")


def torque(station: Any) -> list[int]:
    return [servo.table[TORQUE_ENABLE] for servo in station._follower.servos]


def config(station: Any, folder: Path) -> str:
    station.write_calibration(folder, "follower", "leader")
    return (
        f'[robot]\nfollower = "{station.follower_port}"\nleader = "{station.leader_port}"\n'
        f'calibration_dir = "{folder}"\n[robot.cameras]\n'
    )


def test_an_end_while_the_arm_is_set_in_motion(station: Any, tmp_path: Path) -> None:
    with Daemon(tmp_path / "node", config(station, tmp_path / "calibration")) as node:
        recording = node.begin(*RECORD, "--episode-s", "60")
        wait_until(lambda: any(torque(station)), "the follower is under torque", 120)
        assert node.ctl("record", "stop").code == 0
        recording.communicate(timeout=120)
        assert torque(station) == [0] * 6
        recording = node.begin(*RECORD, "--episode-s", "60")
        wait_until(lambda: any(torque(station)), "the follower is under torque", 120)
        node.terminate()
        recording.communicate(timeout=120)
        assert torque(station) == [0] * 6


def test_an_arm_whose_process_is_killed_from_outside_is_let_down(station: Any, tmp_path: Path) -> None:
    with Daemon(tmp_path / "node", config(station, tmp_path / "calibration")) as node:

        def moving(module: str, *words: str) -> tuple[Any, int]:
            """A session that has the arm under torque → the command that began it, its worker's pid."""
            begun = node.begin(*words)
            wait_until(lambda: all(torque(station)), "all of the follower is under torque", 120)
            worker = node.worker(module)
            assert worker is not None
            return begun, worker.pid

        teleop, pid = moving("robot.tending", "robot", "teleop")
        os.kill(pid, signal.SIGKILL)
        out = teleop.communicate(timeout=120)[0]
        assert teleop.returncode == 1 and "was killed by SIGKILL" in out and "was let down, and is limp" in out
        assert torque(station) == [0] * 6
        assert any("SIGKILL: the follower on" in text and "limp" in text for text in node.events("care"))
        assert not [p for p in node.status()["health"] if p["code"] == "arm"]

        recording, pid = moving("robot.recorder", *RECORD, "--episode-s", "60")
        os.kill(pid, signal.SIGSTOP)  # else it may let the arm down before it is killed
        node.kill()  # and its recorder with it, which cannot act on that
        os.kill(pid, signal.SIGKILL)
        recording.communicate(timeout=120)
        assert all(torque(station))
        assert "may be under torque" in node.ctl("status").out  # told while no daemon runs
        node.start()
        wait_until(lambda: not any(torque(station)), "the next daemon lets the arm down", 120)
        wait_until(lambda: node.status()["session"] is None, "and is done with it")
        assert not [p for p in node.status()["health"] if p["code"] == "arm"]


def test_release_on_a_persons_word(station: Any, tmp_path: Path) -> None:
    with Daemon(tmp_path / "node", config(station, tmp_path / "calibration")) as node:
        recording = node.begin(*RECORD, "--by-hand")
        wait_until(lambda: "take" in str(node.status()["session"]), "a take", 120)
        released = node.ctl("robot", "release")
        assert torque(station) == [0] * 6
        assert released.code == 0 and "limp: the follower on" in released.out and "recording" in released.out
        out = recording.communicate(timeout=120)[0]
        assert "told to let the arm go by" in out

        station._do(lambda: [s.write(TORQUE_ENABLE, b"\1") for s in station._follower.servos])  # another program's
        released = node.ctl("robot", "release", "--json")
        assert released.code == 0 and torque(station) == [0] * 6 and loads(released)["ended"] == "", released
