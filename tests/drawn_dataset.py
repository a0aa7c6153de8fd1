"""Small LeRobotDatasets for tests, made through LeRobot's own writer. Not for recording, which tests do for real.

What is drawn follows from the state, and the action from both, so that a policy has something to learn.
"""

from __future__ import annotations

from pathlib import Path

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
