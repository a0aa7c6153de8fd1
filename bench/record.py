"""The recorder against lerobot-record, on the same virtual bench with the real drivers, in the same run.

Kills at random points, the wait between takes, the 60 Hz loop, overloaded encoders, a bus with damaged packets, CPU.
`--only` measures some of that and keeps the other figures of bench/results/record.json.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _arms import Station, station
from _harness import REPOSITORY, RESULTS, arguments, write
from _recorders import LATE, in_process

PARTS = ("loop", "default", "overload", "bus", "kills")


def loop(bench: Station, folder: Path, small: bool) -> dict[str, Any]:
    """The control loop at 60 Hz with two cameras: both recorders, one after the other."""
    seconds, takes = (1.2, 2) if small else (20.0, 2)
    sizes = (60, seconds, takes, 2, [480, 640])
    mine = in_process("ours", bench.table, folder / "ours", *sizes)
    theirs = in_process("lerobots", bench.table, folder / "lerobot", *sizes)
    return {
        "ready_s": mine.get("ready_s"),
        "on_time_share_60hz": mine.get("on_time"),
        "lerobot_on_time_share_60hz": theirs.get("on_time"),
        "cpu_vs_lerobot": mine["cpu_per_minute"] / theirs["cpu_per_minute"] if "cpu_per_minute" in theirs else None,
        "lerobot_ready_s": theirs.get("ready_s"),
        "hz": mine.get("hz"),
        "lerobot_hz": theirs.get("hz"),
        "cpu_s_per_minute_60hz": mine.get("cpu_per_minute"),
        "lerobot_cpu_s_per_minute_60hz": theirs.get("cpu_per_minute"),
    }


def default(bench: Station, folder: Path, small: bool) -> dict[str, Any]:
    """lerobot-record as it is without any option: PNG files first, then the video."""
    if small:
        return {}
    plain = in_process("lerobots", bench.table, folder / "plain", 60, 20.0, 2, 2, [480, 640], False)
    return {
        "lerobot_default_ready_s": plain.get("ready_s"),
        "lerobot_default_on_time_share_60hz": plain.get("on_time"),
        "lerobot_default_cpu_s_per_minute_60hz": plain.get("cpu_per_minute"),
    }


def overload(bench: Station, folder: Path, small: bool) -> dict[str, Any]:
    """More pixels than the cores can encode: what is accepted has as many frames as rows, for each camera.

    `overload_wait_ms` says how long the control loop waited for full queues; at 0 there was no overload.
    """
    cameras = min(12, (2 if small else 3) * len(os.sched_getaffinity(0)))
    sizes = (60, 2.5 if small else 3.0, 1, cameras, [720, 1280])
    mine = in_process("ours", bench.table, folder / "ours-overload", *sizes)
    figures = {
        **mismatches(folder / "ours-overload", mine),
        "overload_wait_ms": mine.get("waited_ms"),
        "overload_hz": mine.get("hz"),
        "overload_cameras": cameras,
    }
    if not mine.get("waited_ms"):
        print("overload: the encoders kept up, so that nothing is said of frames and rows", flush=True)
        figures["frame_row_mismatches"] = None
    if not small:
        theirs = in_process("lerobots", bench.table, folder / "lerobot-overload", *sizes)
        found = mismatches(folder / "lerobot-overload", theirs) | {"overload_hz": theirs.get("hz")}
        figures |= {f"lerobot_{key}": value for key, value in found.items()}
    return figures


def mismatches(root: Path, run: dict[str, Any]) -> dict[str, Any]:
    """Videos (by camera) with another number of frames than their episodes have rows, by decoding them all; and rows
    that have no frame. None where the run failed, which is printed."""
    import av
    import pyarrow.parquet as pq

    names = ("frame_row_mismatches", "overload_rows_without_frame", "overload_rows")
    if "failed" in run:
        print(f"{root.name}: {run['failed']}", flush=True)
        return dict.fromkeys(names)
    info = json.loads((root / "meta/info.json").read_text())
    wanted: dict[Path, int] = {}
    for table in sorted((root / "meta/episodes").glob("*/*.parquet")):
        for episode in pq.read_table(table).to_pylist():
            for key in (k for k, feature in info["features"].items() if feature["dtype"] == "video"):
                place = {n: episode[f"videos/{key}/{n}"] for n in ("chunk_index", "file_index")}
                path = root / info["video_path"].format(video_key=key, **place)
                wanted[path] = wanted.get(path, 0) + int(episode["length"])
    wrong = missing = 0
    for path, rows in wanted.items():
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            frames = sum(1 for _ in container.decode(video=0))
        wrong += frames != rows
        missing += max(0, rows - frames)
    return dict(zip(names, (wrong, missing, sum(wanted.values())), strict=True))


def bus(bench: Station, folder: Path, small: bool) -> dict[str, Any]:
    """One packet in a hundred damaged on both arms: no take is aborted."""
    seconds, takes = (2.0, 1) if small else (20.0, 3)
    bench.bad_line(corrupt=0.01)
    mine = in_process("ours", bench.table, folder / "bad", 30, seconds, takes, 1, [96, 128])
    bench.bad_line()
    return {"aborted_takes": takes - mine.get("episodes", 0), "bad_bus_takes": takes}


def kills(bench: Station, folder: Path, count: int, seed: int, limit_s: float) -> dict[str, Any]:
    """`kill -9` at random points, and what LeRobot's loader finds after each (_record_kills.py)."""
    print(f"seed of the kills: {seed}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "bench")])
    job = json.dumps([bench.table, str(folder / "killed"), count, seed, limit_s])
    script = str(REPOSITORY / "bench/_record_kills.py")
    done = subprocess.run([sys.executable, script, job], stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        return {"kills": 0, "episodes_lost": None}
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {"kills": found.pop("kills"), "episodes_lost": found.pop("episodes_lost"),
            **{f"kills_{k}": v for k, v in found.items()}}  # fmt: skip


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31), help="of the kills")
    parser.add_argument("--kills", type=int, default=0, help="how many (default: 1 small, 100)")
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin no further kill after that")
    parser.add_argument("--more", action="store_true", help="count these kills beside those of the results file")
    options = parser.parse_args()
    names = ("kills", "episodes_lost", "ready_s", "on_time_share_60hz", "lerobot_on_time_share_60hz",
             "frame_row_mismatches", "aborted_takes", "cpu_vs_lerobot")  # fmt: skip
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, station(Path(name) / "calibration") as bench:
        folder, count = Path(name), options.kills or (1 if options.small else 100)
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            "loop": lambda: loop(bench, folder, options.small),
            "default": lambda: default(bench, folder, options.small),
            "overload": lambda: overload(bench, folder, options.small),
            "bus": lambda: bus(bench, folder, options.small),
            "kills": lambda: kills(bench, folder, count, options.seed, options.seconds),
        }
        for part in options.only:
            began = time.monotonic()
            found |= measures[part]()
            print(f"{part}: measured in {time.monotonic() - began:.0f} s", flush=True)
    figures: dict[str, Any] = dict.fromkeys(names)
    path = RESULTS / "record.json"
    if len(options.only) < len(PARTS) and path.exists():
        earlier = json.loads(path.read_text())
        figures |= earlier["figures"] if earlier["small"] == options.small else {}
    if options.more:
        found |= {k: v + figures[k] for k, v in found.items() if "kill" in k or k == "episodes_lost"}
    figures |= found
    rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in figures.items()}
    sizes = {"cameras": "2x480x640", "late_beyond_periods": LATE, "seed": options.seed, "last": options.only}
    write("record", options.small, sizes, rounded, ("lerobot", "av", "pyarrow"))


if __name__ == "__main__":
    main()
