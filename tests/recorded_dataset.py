"""Reads back what the recorder wrote, through LeRobot's own loader, and checks that it is whole. Not for writing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest


def load(root: Path) -> Any:
    import tqdm
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    tqdm.tqdm.monitor_interval = 0
    return LeRobotDataset("local/test", root=root)


def check_whole(root: Path) -> Any:
    """Opens; rows, frames of every camera and true times agree; the last frame of each episode decodes."""
    dataset = load(root)
    assert len(dataset) == dataset.meta.total_frames == sum(dataset.meta.episodes["length"])
    for episode in range(dataset.num_episodes):
        meta = dataset.meta.episodes[episode]
        record = json.loads((root / f"meta/zk0/episodes/{episode:06d}.json").read_text())
        times = pq.read_table(root / f"meta/zk0/times/{episode:06d}.parquet")["t"].to_numpy()
        assert len(times) == meta["length"] and (np.diff(times) > 0).all()
        assert set(record["quality"]["frames"].values()) <= {meta["length"]}
        last = dataset[meta["dataset_to_index"] - 1]
        assert int(last["episode_index"]) == episode and int(last["frame_index"]) == meta["length"] - 1
        assert float(last["timestamp"]) == pytest.approx((meta["length"] - 1) / dataset.fps, abs=1e-5)
        for key in dataset.meta.video_keys:
            image = last[key]
            assert image.shape[0] == 3 and float(image.std()) > 0.01
    return dataset
