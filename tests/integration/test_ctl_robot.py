"""`zk0ctl robot` end to end: the daemon's worker on a virtual pair, steered from another terminal."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from daemon_process import Daemon, loads
from virtual_pair import Hand

pytest.importorskip("lerobot")
pytest.importorskip("so101_nexus")


def test_show_doctor_teleop_setup_and_calibrate_by_the_daemon(station: Any, tmp_path: Path) -> None:
    folder = tmp_path / "calibration"
    station.write_calibration(folder, "follower", "leader")
    config = (
        f'[robot]\nfollower = "{station.follower_port}"\nleader = "{station.leader_port}"\n'
        f'calibration_dir = "{folder}"\n[robot.cameras]\n'
    )
    ports = ("--follower", station.follower_port, "--leader", station.leader_port)
    with Daemon(tmp_path / "node", config) as node:
        shown = node.ctl("robot", "show")
        assert shown.code == 0 and station.follower_port in shown.out, shown
        absent = node.ctl("robot", "teleop", "--follower", "serial:NOSUCH", "--leader", station.leader_port)
        assert absent.code == 1 and "USB serial number NOSUCH" in absent.err

        checked = node.ctl("robot", "doctor", "--reads", "20", "--json", *ports)
        found = loads(checked)["findings"]
        assert {f["part"] for f in found} >= {"follower", "leader", "disk"}
        moved = loads(node.ctl("robot", "teleop", "--seconds", "1", "--json", *ports))
        assert moved["hz"] > 1

        setting_up = node.begin("robot", "setup", "leader")
        assert setting_up.stdout is not None
        step = next(line for line in setting_up.stdout if line.startswith("gripper: "))
        assert "to no other" in step, step  # one servo at a time
        assert node.ctl("record", "--task", "x", "--dataset", "d", "--episodes", "1").code == 1  # the arm is held
        busy = node.ctl("robot", "release")
        assert busy.code == 1 and "in use: setup" in busy.err
        assert node.ctl("robot", "abort").code == 0
        out = setting_up.communicate(timeout=120)[0]
        assert setting_up.returncode == 1 and "no servo was changed" in out, out

        before = (folder / "leader.json").read_bytes()
        hand = Hand(station)  # to its end, answered from another terminal, as over ssh
        hand.put(*[3000] * 6)
        calibrating = node.begin("robot", "calibrate", "leader")
        assert calibrating.stdout is not None
        next(line for line in calibrating.stdout if line.startswith("middle: "))
        assert node.ctl("robot", "next").code == 0
        next(line for line in calibrating.stdout if line.startswith("ranges: "))
        calibrating.kill()  # the ssh session drops: the work goes on
        calibrating.communicate(timeout=120)
        for reach in itertools.cycle((-900, 900)):
            if node.status()["session"] is None:
                break
            hand.put(*[3000 + reach] * 6)
            node.ctl("robot", "next")  # not moved far enough yet: it is asked again
        (old,) = (folder / "old").glob("leader.*.json")
        assert old.read_bytes() == before != (folder / "leader.json").read_bytes()
