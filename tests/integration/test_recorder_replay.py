"""Real human teleoperation through the real drivers: what the recorder stores is what the person did."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from recorded_dataset import check_whole
from worker_process import WorkerProcess

pytest.importorskip("lerobot")
pytest.importorskip("so101_nexus")
EPISODES = (6, 7)


def test_recorded_actions_are_the_source_within_one_encoder_step(shared_teleop: Path, tmp_path: Path) -> None:
    source = shared_teleop / "episodes_000-039.parquet"
    root = tmp_path / "set"
    job = {
        "dataset": str(root),
        "task": "pick the tiger and place near the elephant",
        "episodes": len(EPISODES),
        "episode_s": 60,
        "keep": "all",
        "robot": {
            "follower": "virtual:?clock=step",
            "leader": f"replay:{source}#{EPISODES[0]}",
            "calibration_dir": str(shared_teleop / "calibration"),
            "units": "range",
            "cameras": {"front": {"height": 64, "width": 64}},
        },
    }
    with WorkerProcess("robot.recorder", job, tmp_path / "work") as worker:
        result = worker.until("done", timeout_s=120)["result"]
        assert worker.process.wait(60) == 0, worker.tail()
    assert result["episodes"] == len(EPISODES)
    dataset = check_whole(root)
    recorded = np.stack(dataset.hf_dataset["action"])
    rows = pq.read_table(source, columns=["episode_index", "frame_index", "action"]).to_pandas()
    ranges = np.array([calibrated(shared_teleop / "calibration/leader.json")])
    for number, episode in enumerate(EPISODES):
        wanted = np.stack(rows[rows.episode_index == episode].sort_values("frame_index").action)
        meta = dataset.meta.episodes[number]
        ours = recorded[meta["dataset_from_index"] : meta["dataset_to_index"]]
        assert len(ours) == len(wanted)
        off = np.abs(ours - wanted) / ranges
        assert off.max() <= 1.0, f"episode {episode}: {off.max():.3f} encoder steps off"


def calibrated(path: Path) -> list[float]:
    """How much of LeRobot's −100…100 (gripper 0…100) one encoder step is, per joint."""
    joints = json.loads(path.read_text())
    return [
        (100.0 if name == "gripper" else 200.0) / (values["range_max"] - values["range_min"])
        for name, values in joints.items()
    ]
