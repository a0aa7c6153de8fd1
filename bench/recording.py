"""What recording costs: CPU per recorded minute at 30 Hz, the wait between takes, and saving into a large dataset.

Synthetic frames with sensor noise in place of cameras; everything behind them is the recorder's own. The reference is
LeRobot's default encoder (SVT-AV1) on the same frames.
"""

from __future__ import annotations

import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from _harness import arguments, write

from robot.dataset import RecordedDataset
from robot.episodes import RecordingSpec
from robot.video import CameraEncoder

FPS = 30
JOINTS = tuple(f"joint{n}.pos" for n in range(6))


def pictures(height: int, width: int, count: int = 90) -> list[np.ndarray]:
    """A textured table, a moving block and noise of three levels."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    table = np.stack([128 + 80 * np.sin(x / (9 + 4 * c)) * np.cos(y / (13 + 3 * c)) for c in range(3)], -1)
    made = []
    for k in range(count):
        picture = table.copy()
        picture[height // 3 : height // 2, (at := int(width * 0.7 * k / count)) : at + width // 6] = (220, 40, 40)
        made.append(np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8))
    return made


def encoders(height: int, width: int, folder: Path) -> dict[str, float]:
    """CPU ms and KiB per frame, ours and the reference."""
    frames = pictures(height, width)
    began = time.process_time()
    ours = CameraEncoder(folder / "ours.mp4", height, width, FPS)
    for frame in frames:
        ours.put(frame)
    ours.close()
    ours_ms = (time.process_time() - began) / len(frames) * 1e3
    options = {"preset": "12", "crf": "30", "g": "2", "svtav1-params": "fast-decode=0:lp=1"}
    began = time.process_time()
    with av.open(str(folder / "reference.mp4"), "w") as container:
        stream = container.add_stream("libsvtav1", FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    reference_ms = (time.process_time() - began) / len(frames) * 1e3
    size = {n: (folder / f"{n}.mp4").stat().st_size / len(frames) / 1024 for n in ("ours", "reference")}
    return {
        "ours_cpu_ms": round(ours_ms, 2),
        "reference_cpu_ms": round(reference_ms, 2),
        "ours_kib": round(size["ours"], 2),
        "reference_kib": round(size["reference"], 2),
    }


def recording(height: int, width: int, cameras: int, seconds: float, folder: Path) -> dict[str, Any]:
    """One take in real time, then how long until the next may begin and until the episode is durable."""
    spec = RecordingSpec(FPS, JOINTS, {f"camera{n}": (height, width) for n in range(cameras)}, "so_follower", "degrees")
    frames = pictures(height, width)
    with RecordedDataset(folder, spec) as dataset:
        take = dataset.new_take()
        cpu = time.process_time()
        began = time.perf_counter()
        for k in range(round(seconds * FPS)):
            joints = np.full(6, k, np.float32)
            take.add(time.perf_counter(), joints, joints, {n: frames[(k + i) % 90] for i, n in enumerate(spec.cameras)})
            time.sleep(max(0.0, began + (k + 1) / FPS - time.perf_counter()))
        loop_cpu = time.process_time() - cpu
        ended = time.perf_counter()
        following = dataset.new_take()
        next_take = time.perf_counter() - ended
        following.discard()
        cpu, ended = time.process_time(), time.perf_counter()
        record = dataset.save(take, "bench", {})
        saved, save_cpu = time.perf_counter() - ended, time.process_time() - cpu
    return {
        "frames": record.length,
        "cpu_s_per_recorded_minute": round((loop_cpu + save_cpu) * 60 / seconds, 2),
        "of_which_saving": round(save_cpu * 60 / seconds, 2),
        "next_take_after_ms": round(next_take * 1e3, 2),
        "durable_after_s": round(saved, 3),
        "jitter_ms": record.quality["jitter_ms"],
        "late": record.quality["late"],
        "encoder_wait_ms": max(record.quality["encoder_wait_ms"].values(), default=0.0),
    }


def large(episodes: int, folder: Path) -> dict[str, float]:
    """Saving the last of many short episodes: what the metadata of a large dataset costs."""
    spec = RecordingSpec(FPS, JOINTS, {}, "so_follower", "degrees")
    with RecordedDataset(folder, spec) as dataset:
        for _ in range(episodes):
            take = dataset.new_take()
            for k in range(3):
                take.add(k / FPS, np.zeros(6, np.float32), np.zeros(6, np.float32), {})
            began = time.perf_counter()
            dataset.save(take, "bench", {})
            last = time.perf_counter() - began
    began = time.perf_counter()
    RecordedDataset(folder, spec).__exit__(None, None, None)
    return {
        "episodes": episodes,
        "save_ms": round(last * 1e3, 1),
        "open_ms": round((time.perf_counter() - began) * 1e3, 1),
    }


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    seconds, episodes = (3.0, 50) if options.small else (20.0, 500)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured = {
            "encode_96x96": encoders(96, 96, folder),
            "encode_480x640": encoders(480, 640, folder),
            "record_2x96x96": recording(96, 96, 2, seconds, folder / "small"),
            "record_2x480x640": recording(480, 640, 2, seconds, folder / "vga"),
            "large": large(episodes, folder / "large"),
        }
    figures = {f"{what}.{key}": value for what, found in measured.items() for key, value in found.items()}
    write(
        "recording", options.small, {"seconds": seconds, "episodes": episodes, "fps": FPS}, figures, ("av", "pyarrow")
    )


if __name__ == "__main__":
    main()
