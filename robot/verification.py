"""Checks a dataset to the last frame: rows, frames of every camera, hashes where they were noted. Changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zk0d import durable


def frames_of(path: Path) -> int:
    """Frames of a video that decode. Raises av.FFmpegError or OSError when it is damaged."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def verify(root: Path, say: Callable[..., None]) -> dict[str, Any]:
    """Check all of it; → episodes, frames, files, and `problems`, one sentence each (none: it is whole)."""
    from robot.curation import load

    dataset = load(root)
    meta, problems = dataset.meta, []
    lengths = [int(n) for n in meta.episodes["length"]]
    problems += _rows(root, meta, lengths)
    files: dict[Path, int] = {}
    for key in meta.video_keys:
        for episode, length in enumerate(lengths):
            path = root / meta.get_video_file_path(episode, key)
            files[path] = files.get(path, 0) + length
    for done, (path, wanted) in enumerate(sorted(files.items())):
        say("progress", done=done, of=len(files), file=str(path.relative_to(root)))
        try:
            there = frames_of(path)
        except (OSError, av.FFmpegError) as error:
            problems.append(f"{path.relative_to(root)} does not decode: {error}")
            continue
        if there != wanted:
            problems.append(f"{path.relative_to(root)} has {there} frames for {wanted} rows")
    hashed, bad = _hashes(root)
    problems += bad
    if sum(lengths) != meta.total_frames:
        problems.append(f"meta/info.json counts {meta.total_frames} frames, the episodes have {sum(lengths)}")
    return {
        "episodes": len(lengths),
        "frames": sum(lengths),
        "videos": len(files),
        "hashed": hashed,
        "problems": problems,
    }


def _rows(root: Path, meta: Any, lengths: list[int]) -> list[str]:
    problems, there = [], np.zeros(len(lengths), dtype=np.int64)
    for path in sorted(root.glob("data/*/*.parquet")):
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            problems.append(f"{path.relative_to(root)} cannot be read: {error}")
            continue
        numbers = table["episode_index"].to_numpy()
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= len(lengths)):
            problems.append(f"{path.relative_to(root)} has rows of an episode that meta/episodes does not know")
            continue
        there += np.bincount(numbers, minlength=len(lengths))
        for name in ("action", "observation.state"):
            if name in table.column_names and not np.isfinite(np.array(table[name].to_pylist(), dtype=float)).all():
                problems.append(f"{path.relative_to(root)} has a {name} that is not a number")
    problems += [f"episode {n} has {have} rows, its record says {length}"
                 for n, (have, length) in enumerate(zip(there, lengths, strict=True)) if have != length]  # fmt: skip
    return problems


def _hashes(root: Path) -> tuple[int, list[str]]:
    count, problems = 0, []
    for record in sorted(root.glob("meta/zk0/episodes/*.json")):
        for facts in json.loads(record.read_text()).get("files", {}).values():
            wanted, path = facts.get("sha256"), root / facts["path"]
            if not path.is_file():
                problems.append(f"{facts['path']} is missing")
            elif path.stat().st_size != facts.get("bytes", path.stat().st_size):
                problems.append(f"{facts['path']} has another size than when it was recorded")
            elif wanted:
                count += 1
                if durable.sha256_file(path) != wanted:
                    problems.append(f"{facts['path']} is not what was recorded (its hash differs)")
    return count, problems
