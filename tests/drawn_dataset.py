"""Small LeRobotDatasets for tests, made through LeRobot's own writer. Not for recording, which tests do for real.

What is drawn follows from the state, and the action from both, so that a policy has something to learn.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
TASK = "put the block on the mark"


def make_dataset(
    root: Path,
    *,
    episodes: int = 3,
    frames: int = 30,
    cameras: tuple[str, ...] = ("front", "wrist"),
    height: int = 64,
    width: int = 64,
    fps: int = 30,
    seed: int = 0,
    task: str = TASK,
    joints: tuple[str, ...] = JOINTS,
) -> Path:
    """Write a dataset of `episodes` × `frames` frames into the new folder `root`; all numbers follow from `seed`."""
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    names = [f"{j}.pos" for j in joints]
    vector = {"dtype": "float32", "shape": (len(joints),), "names": names}
    features: dict[str, dict[str, object]] = {"observation.state": dict(vector), "action": dict(vector)}
    for camera in cameras:
        shape = (height, width, 3)
        features[f"observation.images.{camera}"] = {
            "dtype": "video", "shape": shape, "names": ["height", "width", "channels"],
        }  # fmt: skip
    encoder = RGBEncoderConfig(vcodec="h264", g=2, crf=18, preset="ultrafast")
    dataset = LeRobotDataset.create(
        f"local/{root.name}", fps, features, root=root, robot_type="so101", rgb_encoder=encoder, encoder_threads=1
    )
    rng = np.random.default_rng(seed)
    for _ in range(episodes):
        goal = rng.uniform(-60, 60, len(joints)).astype(np.float32)
        state = rng.uniform(-60, 60, len(joints)).astype(np.float32)
        for _ in range(frames):
            action = state + np.clip(goal - state, -6, 6).astype(np.float32)
            frame: dict[str, object] = {"observation.state": state.copy(), "action": action, "task": task}
            for number, camera in enumerate(cameras):
                frame[f"observation.images.{camera}"] = _draw(height, width, state[number:], goal[number:])
            dataset.add_frame(frame)
            state = state + 0.8 * (action - state)
        dataset.save_episode(parallel_encoding=False)
    dataset.finalize()
    return root


def _draw(height: int, width: int, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """A goal in red and a gripper in green, placed by the first two numbers of each (−90…90), on grey."""
    picture = np.full((height, width, 3), 40, dtype=np.uint8)
    for place, channel in ((goal, 0), (state, 1)):
        y, x = (int((0.5 + float(v) / 180) * (n - 1)) for v, n in zip(place[:2], (height, width), strict=True))
        radius = max(2, height // 10)
        picture[max(0, y - radius) : y + radius, max(0, x - radius) : x + radius, channel] = 255
    return picture


def as_v21(parts: list[Path], root: Path) -> None:
    """A dataset in the old format, from datasets of one episode each: files as lerobot 0.3 laid them out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (root / "meta").mkdir(parents=True)
    lines: dict[str, list[dict[str, Any]]] = {"episodes": [], "episodes_stats": [], "tasks": []}
    total = 0
    for number, part in enumerate(parts):
        table = pq.read_table(next(part.glob("data/*/*.parquet")))
        for name, values in (("episode_index", [number] * len(table)), ("index", range(total, total + len(table)))):
            at = table.column_names.index(name)
            table = table.set_column(at, name, pa.array(list(values), pa.int64()))
        target = root / f"data/chunk-000/episode_{number:06d}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, target)
        for video in part.glob("videos/*/*/*.mp4"):
            there = root / f"videos/chunk-000/{video.parts[-3]}/episode_{number:06d}.mp4"
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(video, there)
        stats = json.loads((part / "meta/stats.json").read_text())
        lines["episodes"].append({"episode_index": number, "tasks": ["t"], "length": len(table)})
        lines["episodes_stats"].append({"episode_index": number, "stats": stats})
        total += len(table)
    lines["tasks"] = [{"task_index": 0, "task": "t"}]
    for name, rows in lines.items():
        (root / f"meta/{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    info = json.loads((parts[0] / "meta/info.json").read_text())
    info |= {"codebase_version": "v2.1", "total_episodes": len(parts), "total_frames": total, "total_chunks": 1}
    info |= {"total_videos": 2 * len(parts), "splits": {"train": f"0:{len(parts)}"}}
    info |= {"data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"}
    info |= {"video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"}
    (root / "meta/info.json").write_text(json.dumps(info))
