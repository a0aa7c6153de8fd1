"""Forty episodes that people recorded, shown again on the virtual leader and recorded by the real drivers, end to end.

Counted: episodes, rows and frames of each camera that differ from the source, and actions beyond one encoder step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from _harness import REPOSITORY, arguments, write

SOURCE = REPOSITORY.parent / "shared/data/so101_teleop"
SIZE = {"height": 96, "width": 128}


def steps(path: Path) -> np.ndarray:
    """How much of LeRobot's -100…100 (gripper 0…100) one encoder step is, per joint."""
    joints = json.loads(path.read_text())
    return np.array([
        (100.0 if name == "gripper" else 200.0) / (values["range_max"] - values["range_min"])
        for name, values in joints.items()
    ])  # fmt: skip


def record(root: Path, first: int, count: int, folder: Path) -> dict[str, Any]:
    job = {
        "dataset": str(root), "task": "pick the tiger and place near the elephant", "episodes": count,
        "episode_s": 600, "robot": {
            "follower": "virtual:?clock=step", "leader": f"replay:{SOURCE / 'episodes_000-039.parquet'}#{first}",
            "calibration_dir": str(SOURCE / "calibration"), "units": "range", "cameras": {"front": SIZE, "wrist": SIZE},
        },
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "robot.recorder", str(folder / "job.json")]
    began, said = time.monotonic(), {"event": "nothing"}
    with (
        (folder / "recorder.log").open("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as recorder,
    ):
        for line in recorder.stdout or ():
            said = json.loads(line)
            if said["event"] == "saved":
                print(f"  {time.monotonic() - began:6.1f} s: episode {said['episode'] + 1} of {count}, {said['frames']} rows",
                      flush=True)  # fmt: skip
        if recorder.wait():
            log.seek(0)
            raise SystemExit(log.read()[-3000:] or str(said))
    return dict(said["result"])


def compare(root: Path, first: int, count: int) -> dict[str, Any]:
    """What LeRobot's loader gives, against the source."""
    import av
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("local/replay", root=root)
    recorded = np.stack(dataset.hf_dataset["action"])
    source = pq.read_table(SOURCE / "episodes_000-039.parquet").to_pandas()
    limit, rows_wrong, frames_wrong, worst = steps(SOURCE / "calibration/leader.json"), 0, 0, 0.0
    for number in range(dataset.num_episodes):
        meta = dataset.meta.episodes[number]
        wanted = np.stack(source[source.episode_index == first + number].sort_values("frame_index").action)
        ours = recorded[meta["dataset_from_index"] : meta["dataset_to_index"]]
        rows_wrong += len(ours) != len(wanted)
        if len(ours) == len(wanted):
            worst = max(worst, float((np.abs(ours - wanted) / limit).max()))
        for key in dataset.meta.video_keys:
            with av.open(str(root / dataset.meta.get_video_file_path(number, key))) as container:
                frames_wrong += sum(1 for _ in container.decode(video=0)) != meta["length"]
        dataset[meta["dataset_to_index"] - 1]  # its last row, with its frames
    return {
        "episodes": dataset.num_episodes, "rows": len(dataset), "episodes_missing": count - dataset.num_episodes,
        "episodes_with_other_rows": rows_wrong, "videos_with_other_frames": frames_wrong,
        "videos": dataset.num_episodes * len(dataset.meta.video_keys), "worst_action_in_encoder_steps": round(worst, 4),
    }  # fmt: skip


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    if not SOURCE.is_dir():
        print(f"replay: {SOURCE} is not there, so nothing is measured")
        write("replay", options.small, {}, {"episodes": None}, ("lerobot",))
        return
    first, count = (6, 2) if options.small else (0, 40)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.monotonic()
        record(folder / "set", first, count, folder)
        seconds = time.monotonic() - began
        figures = compare(folder / "set", first, count)
    figures["seconds"] = round(seconds, 1)
    write("replay", options.small, {"first": first, "count": count, "camera": "2x96x128"}, figures, ("lerobot", "av"))


if __name__ == "__main__":
    main()
