"""Video frames of episodes, decoded once from start to end and kept as raw bytes in a memory-mapped cache.

Random access into video costs more than a training step on a CPU; this makes a frame's cost a page fault. Not for
writing videos (robot/). The cache holds pictures of homes: its folder is readable by its owner only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zk0d.errors import DatasetError
from zk0d.train.images import Picture, fit

RESERVE = 1 << 30
"""Bytes of disk that a cache must leave free."""


@dataclass(frozen=True)
class Clip:
    """One episode of one camera: `length` frames at `fps` from `start_s` seconds into the video file `path`."""

    path: Path
    start_s: float
    length: int
    fps: int
    height: int
    width: int

    @property
    def key(self) -> str:
        """Changes when the video file, the place in it or the wanted size does."""
        found = self.path.stat()
        text = f"{self.path}|{found.st_size}|{found.st_mtime_ns}|{self.start_s!r}|{self.length}|{self.fps}"
        return hashlib.sha256(f"{text}|{self.height}x{self.width}".encode()).hexdigest()[:32]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.length, self.height, self.width, 3)

    @property
    def bytes(self) -> int:
        return self.length * self.height * self.width * 3


class FrameCache:
    """The decoded clips of one dataset folder. `open` for each clip, then `prune` what no longer belongs to it."""

    def __init__(self, cache: Path, root: Path) -> None:
        name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
        self.folder = cache / "frames" / name
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._used: set[str] = set()

    def open(self, clip: Clip) -> Picture:
        """(length, height, width, 3) uint8, memory-mapped read-only; decoded now if it is not there yet.

        Raises DatasetError if the video is damaged or too short, or the disk is nearly full.
        """
        path = self.folder / f"{clip.key}.rgb"
        self._used.add(path.name)
        if not path.is_file() or path.stat().st_size != clip.bytes:
            free = shutil.disk_usage(self.folder).free
            if free < clip.bytes + RESERVE:
                raise DatasetError(
                    f"{self.folder}: {free >> 20} MiB free is too little to decode {clip.path.name} "
                    f"({clip.bytes >> 20} MiB, and 1 GiB must stay free)",
                    "make room on the disk, or train on fewer episodes",
                )
            self._decode(clip, path)
        return np.memmap(path, dtype=np.uint8, mode="r", shape=clip.shape)

    def prune(self) -> None:
        """Remove clips of this dataset folder that were not opened: their video was replaced or is not trained on."""
        for path in self.folder.iterdir():
            if path.name not in self._used:
                path.unlink(missing_ok=True)

    def _decode(self, clip: Clip, path: Path) -> None:
        part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            pictures = np.memmap(part, dtype=np.uint8, mode="w+", shape=clip.shape)
            decode(clip, pictures)
            pictures.flush()
            del pictures
            with part.open("rb") as f:
                os.fsync(f.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def decode(clip: Clip, out: Picture) -> None:
    """Decode a clip into `out` (length, height, width, 3). Raises DatasetError if the file is damaged or too short."""
    import av

    seen = np.zeros(clip.length, dtype=bool)
    try:
        with av.open(str(clip.path)) as container:
            stream = container.streams.video[0]
            stream.thread_count = 1  # a node trains beside its owner
            # One frame of margin before the start, as LeRobot's own reader takes: seeking is to key frames.
            container.seek(max(0, round(clip.start_s / stream.time_base) - 1), backward=True, stream=stream)
            for frame in container.decode(stream):
                if frame.pts is None:
                    continue
                position = (float(frame.pts * stream.time_base) - clip.start_s) * clip.fps
                index = round(position)
                if index >= clip.length:
                    break
                if index < 0 or abs(position - index) > 0.25:
                    continue
                out[index] = fit(frame.to_ndarray(format="rgb24"), clip.height, clip.width)
                seen[index] = True
    except (av.FFmpegError, OSError, IndexError, ValueError) as error:
        raise DatasetError(f"{clip.path}: the video cannot be decoded: {error}", REPAIR) from error
    if not seen.all():
        lost = int((~seen).sum())
        raise DatasetError(
            f"{clip.path}: {lost} of {clip.length} frames from {clip.start_s:.2f} s on are missing", REPAIR
        )


REPAIR = (
    "copy the dataset again from where it was whole, or drop the episode with "
    "`lerobot-edit-dataset --operation.type delete_episodes`"
)
