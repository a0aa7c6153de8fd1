"""However a session ends, no servo is left under torque: told to end while the arm is being set in motion, or with zk0d."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from daemon_process import Daemon, wait_until

pytest.importorskip("lerobot")
pytest.importorskip("so101_nexus")
TORQUE_ENABLE = 40  # STS3215's table of registers, Feetech


def torque(station: Any) -> list[int]:
    return [servo.table[TORQUE_ENABLE] for servo in station._follower.servos]


@pytest.mark.parametrize("end", ["record stop", "zk0d"])
def test_an_end_while_the_arm_is_set_in_motion(station: Any, tmp_path: Path, end: str) -> None:
    folder = tmp_path / "calibration"
    station.write_calibration(folder, "follower", "leader")
    config = (
        f'[robot]\nfollower = "{station.follower_port}"\nleader = "{station.leader_port}"\n'
        f'calibration_dir = "{folder}"\n[robot.cameras]\n'
    )
    with Daemon(tmp_path / "node", config) as node:
        recording = node.begin("record", "--dataset", "d", "--task", "x", "--episodes", "1", "--episode-s", "60")
        wait_until(lambda: any(torque(station)), "the follower is under torque", 90)
        if end == "zk0d":
            node.terminate()
        else:
            assert node.ctl("record", "stop").code == 0
        recording.communicate(timeout=60)
        if end != "zk0d":
            wait_until(lambda: not node.worker("robot.recorder"), "the recorder has ended", 60)
        assert torque(station) == [0] * 6
