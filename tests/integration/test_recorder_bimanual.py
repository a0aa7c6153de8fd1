"""Two pairs of arms: recorded under the names of LeRobot's bi_so_follower, on virtual benches and behind four ports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_dataset import check_whole
from virtual_pair import Told
from worker_process import WorkerProcess

from robot.arms import open_bench
from robot.config import RobotTable
from robot.ear import Ear

pytest.importorskip("lerobot")
pytest.importorskip("so101_nexus")
SMALL = {"height": 64, "width": 64}


def lerobots_features() -> tuple[list[str], list[str]]:
    """What LeRobot's own bimanual robot calls joints and cameras of such arms."""
    from lerobot.cameras.opencv import OpenCVCameraConfig
    from lerobot.robots.bi_so_follower import BiSOFollower, BiSOFollowerConfig
    from lerobot.robots.so_follower import SOFollowerConfig

    def camera() -> Any:
        return OpenCVCameraConfig(index_or_path=0, fps=30, height=64, width=64)

    robot = BiSOFollower(
        BiSOFollowerConfig(
            left_arm_config=SOFollowerConfig(port="/dev/null", cameras={"wrist": camera()}),
            right_arm_config=SOFollowerConfig(port="/dev/null", cameras={"wrist": camera()}),
            cameras={"front": camera()},
        )
    )
    return list(robot.action_features), [n for n, s in robot.observation_features.items() if isinstance(s, tuple)]


def test_two_virtual_pairs_recorded_under_lerobots_names(tmp_path: Path) -> None:
    side = {"follower": "virtual:Touch", "leader": "expert", "cameras": {"wrist": SMALL}}
    robot = {"type": "so100", "left": side, "right": side, "cameras": {"front": SMALL}}
    job = {"dataset": str(tmp_path / "set"), "task": "touch both", "episodes": 1, "episode_s": 3, "robot": robot}
    with WorkerProcess("robot.recorder", job, tmp_path / "work") as worker:
        ready = worker.until("ready")
        saved, result = worker.until("saved"), worker.until("done")["result"]
        assert worker.process.wait(60) == 0, worker.tail()
    assert set(ready["ports"]) == {"left_follower", "left_leader", "right_follower", "right_leader"}
    assert result["episodes"] == 1 and set(saved["quality"]["bus_errors"]) == set(ready["ports"])
    dataset = check_whole(tmp_path / "set")
    joints, cameras = lerobots_features()
    assert dataset.meta.robot_type == "bi_so_follower"
    assert dataset.meta.features["action"]["names"] == joints == dataset.meta.features["observation.state"]["names"]
    assert {k.removeprefix("observation.images.") for k in dataset.meta.video_keys} == set(cameras)
    moved = np.ptp(np.stack(dataset.hf_dataset["action"]), axis=0)
    assert moved[:6].max() > 5 and moved[6:].max() > 5  # both leaders


def test_four_ports_and_a_fault_that_names_its_arm(tmp_path: Path) -> None:
    from robot.virtual.spec import StationSpec
    from robot.virtual.station import VirtualStation
    from zk0d.errors import RobotError

    spec = StationSpec("Touch", leader="rest", clock="wall")
    with VirtualStation(spec) as left, VirtualStation(spec) as right:
        left.write_calibration(tmp_path, "follower_left", "leader_left")
        right.write_calibration(tmp_path, "follower_right", "leader_right")
        table = RobotTable.parse({
            "calibration_dir": str(tmp_path),
            "left": {"follower": left.follower_port, "leader": left.leader_port},
            "right": {"follower": right.follower_port, "leader": right.leader_port},
            "limits": {"right_wrist_flex": [-1, 1]},
        })  # fmt: skip
        told = Told()
        with open_bench(table, fps=30, guarded=True, ear=Ear(told)) as bench:
            assert bench.robot_type == "bi_so_follower" and len(bench.joints) == 12
            state, _ = bench.observe()
            assert bench.leader_pose() == pytest.approx(state, abs=20)  # the followers sag until they hold
            asked = state + np.float32(10)
            sent = bench.command(asked)
            at = bench.joints.index("right_wrist_flex.pos")
            assert sent[at] == 1 and sent[at - 6] == pytest.approx(asked[at - 6], abs=0.5)
            right.faults.follower.temperature("elbow_flex", 57)
            for side in bench._sides:
                side.watch._every = side.watch._due = 0.0
            found: list[dict[str, Any]] = []
            for _ in range(20):
                bench.observe()
                found += bench.tend()
            heat = [f["text"] for f in found if f["kind"] == "temperature" and f["joint"] == "right_elbow_flex"]
            assert heat == ["right elbow_flex is 57 °C hot"], found
            right.faults.leader.unplug()
            with pytest.raises(RobotError, match="the right leader"):
                bench.leader_pose()
            station_torque = [[s.table[40] for s in pair._follower.servos] for pair in (left, right)]
            right.faults.follower.unplug()  # one arm cannot be told: the other one is let down all the same
        assert station_torque == [[1] * 6] * 2
        assert [s.table[40] for s in left._follower.servos] == [0] * 6
        on = {e["arm"]: e for e in told.of("torque")}  # the last word on each
        assert not on["left follower"]["on"] and on["right follower"]["on"]
        assert "right follower" in on["right follower"]["text"] and "could not be told" in on["right follower"]["text"]
