"""What can be saved of a dataset that a killed LeRobot left: episodes whose rows and frames are all still there.

Its tables of episodes (meta/episodes, in v2.1 episodes.jsonl) are made anew from the rows. A parquet file without its
footer and an MP4 without its index cannot be read; what they held is said to be lost.
Works on the broken folder without changing it. Not for datasets of our own recorder, which does not leave such.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from robot.video import Frame
from zk0d import dataset_info
from zk0d.errors import DatasetError

_DEFAULTS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
UNKNOWN_TASK = "unknown task"


class Stream:
    """The frames of one camera, over all of its files in order, up to the first file that is damaged."""

    def __init__(self, root: Path, key: str) -> None:
        self.problem = ""
        self.end = 0
        """Frames read so far."""
        self._root = root
        self._frames = self._read(_videos(root, key))

    def _read(self, paths: list[Path]) -> Generator[Frame]:
        for path in paths:
            try:
                with av.open(str(path)) as container:
                    for frame in container.decode(video=0):
                        yield frame.to_ndarray(format="rgb24")
            except (OSError, av.FFmpegError) as error:
                self.problem = f"{path.relative_to(self._root)} cannot be read: {error}"
                return

    def close(self) -> None:
        """Close the file that is being read."""
        self._frames.close()

    def take(self, count: int) -> list[Frame]:
        """The next `count` frames; fewer when there are no more."""
        frames = [f for _, f in zip(range(count), self._frames, strict=False)]
        self.end += len(frames)
        return frames


def _videos(root: Path, key: str) -> list[Path]:
    """The camera's files in order; of v2.1, which has one an episode, up to the first that is missing."""
    each = sorted((root / "videos").glob(f"*/{key}/episode_*.mp4"), key=lambda path: path.name)
    whole = [path for number, path in enumerate(each) if path.stem == f"episode_{number:06d}"]
    return whole or sorted((root / "videos" / key).glob("*/*.mp4"))


def salvage(root: Path, target: Path, say: Callable[..., None]) -> dict[str, Any]:
    """Write what is whole into the new folder `target`, by LeRobot's writer; → `saved`, `lost`.

    Raises DatasetError when nothing can be saved.
    """
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    try:
        info = json.loads((root / "meta/info.json").read_text())
        features = {k: dict(f) for k, f in info["features"].items()}
        fps = int(info["fps"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{root}/meta/info.json is not there or damaged: {error!r}", "without it, nothing is known"
        ) from error
    dataset_info.check(info, root)
    lost: list[str] = []
    episodes = _episodes(root, lost)
    tasks = _tasks(root, lost)
    own = {k: {**{n: v for n, v in f.items() if n in ("dtype", "names")}, "shape": tuple(f["shape"])}
           for k, f in features.items() if k not in _DEFAULTS}  # fmt: skip
    cameras = {k: Stream(root, k) for k, f in own.items() if f["dtype"] == "video"}
    writer = LeRobotDataset.create(
        f"local/{target.name}", fps, own, root=target, robot_type=info.get("robot_type"),
        rgb_encoder=RGBEncoderConfig(vcodec="h264", g=2, crf=18), encoder_threads=1,
    )  # fmt: skip
    try:
        saved = _copy(episodes, cameras, lambda rows, pictures: _write(writer, rows, pictures, own, tasks), lost, say)
    finally:
        for stream in cameras.values():
            stream.close()
    lost += [s.problem for s in cameras.values() if s.problem]
    if not saved:
        raise DatasetError(
            f"nothing of {root} can be saved: {'; '.join(lost) or 'it has no episode'}", "restore a backup"
        )
    writer.finalize()
    counted = int(info.get("total_episodes") or 0)
    if counted > len(saved):
        lost.append(f"meta/info.json counts {counted} episodes; {len(saved)} are saved")
    return {"saved": saved, "lost": lost}


def _copy(
    episodes: list[tuple[int, dict[str, Any]]],
    cameras: dict[str, Stream],
    write: Callable[[dict[str, Any], dict[str, list[Frame]]], None],
    lost: list[str],
    say: Callable[..., None],
) -> list[int]:
    """Write the episodes as far as rows and frames are there; → their numbers. What is not there goes to `lost`."""
    saved, expected = [], 0
    for number, rows in episodes:
        if number != expected and cameras:
            lost.append(f"episodes from {expected} on: the rows of episode {expected} are gone, so that frames of later"
                        " ones cannot be told apart")  # fmt: skip
            break
        expected = number + 1
        pictures = {k: s.take(len(rows["frame_index"])) for k, s in cameras.items()}
        short = [k for k, frames in pictures.items() if len(frames) != len(rows["frame_index"])]
        if short:
            lost.append(f"episode {number}: {', '.join(short)} has too few frames")
            break
        write(rows, pictures)
        saved.append(number)
        say("progress", saved=len(saved))
    return saved


def _episodes(root: Path, lost: list[str]) -> list[tuple[int, dict[str, Any]]]:
    """Rows by episode, in order, of every data file that can be read; an episode not counted 0, 1, 2, … is lost."""
    found: dict[int, dict[str, Any]] = {}
    for path in sorted(root.glob("data/*/*.parquet")):
        try:
            frame = pq.read_table(path).to_pandas()
        except (OSError, pa.ArrowException) as error:
            lost.append(f"{path.relative_to(root)} cannot be read: {error}")
            continue
        for number, rows in frame.groupby("episode_index", sort=True):
            if (np.diff(rows["frame_index"]) != 1).any() or rows["frame_index"].iloc[0] != 0:
                lost.append(f"episode {number}: rows are missing in {path.relative_to(root)}")
                continue
            found[int(number)] = {name: rows[name].tolist() for name in rows.columns}
    return sorted(found.items())


def _tasks(root: Path, lost: list[str]) -> dict[int, str]:
    try:
        if (old := root / "meta/tasks.jsonl").exists():  # v2.1
            told = [json.loads(line) for line in old.read_text().splitlines() if line.strip()]
            return {int(row["task_index"]): str(row["task"]) for row in told}
        table = pd.read_parquet(root / "meta/tasks.parquet")
        return {int(i): str(task) for task, i in table["task_index"].items()}
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        lost.append(f"the table of tasks in meta cannot be read ({error}); the task is called {UNKNOWN_TASK!r}")
        return {}


def _write(
    writer: Any, rows: dict[str, Any], pictures: dict[str, list[Frame]], features: dict[str, Any],
    tasks: dict[int, str],
) -> None:  # fmt: skip
    for at in range(len(rows["frame_index"])):
        frame: dict[str, Any] = {"task": tasks.get(int(rows["task_index"][at]), UNKNOWN_TASK)}
        for key, feature in features.items():
            if key in pictures:
                frame[key] = pictures[key][at]
            else:
                frame[key] = np.asarray(rows[key][at], dtype=feature["dtype"]).reshape(feature["shape"])
        writer.add_frame(frame)
    writer.save_episode(parallel_encoding=False)
