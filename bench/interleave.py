"""What the owner of the machine notices of training: time to get out of the way, the first frame, the recording's rhythm.

A hub and a node with a virtual arm and two 640×480 cameras, and a trainer with as many threads as processors. Also
what an idle zk0d costs and how fast `zk0ctl status` is, next to `python3 -c pass`. A figure not measured is null;
`--only PIECE,…` measures some of them and keeps the others of the last run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as parquet
from _harness import RESULTS, arguments, machine, revision, write
from _interleave_preempt import both
from _interleave_stage import Stage, until

from zk0d.demo.cast import environment

ZK0CTL = str(Path(sys.executable).with_name("zk0ctl"))
NOMINAL_S = 1 / 30
LATE_S = 0.005
STOPPING_S = 0.0005
STILL = 4
"""Looks at a processor clock that stands still, after which it is worth asking for the state of each thread."""
FIGURES = ("freeze_p99_ms", "record_start_ratio", "jitter_added_p99_ms", "on_time_share", "preemptions", "steps_lost",
           "bitwise_equal", "daemon_rss_mb", "daemon_cpu_share", "status_ms", "status_vs_python")  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """`takes`: recordings without and as many with training, alternating in nothing but that; `take_s` each."""

    status: int
    idle_s: float
    starts: int
    takes: int
    take_s: float
    steps: int
    freezes: int
    yields: int
    upload: bool
    """Whether an update is under way while it records with a trainer."""


SMALL = Sizes(status=3, idle_s=1.0, starts=2, takes=1, take_s=1.0, steps=30, freezes=9, yields=1, upload=False)
FULL = Sizes(status=50, idle_s=600.0, starts=100, takes=3, take_s=6.0, steps=700, freezes=176, yields=24, upload=True)


def quantile(values: list[float], q: float) -> float:
    return float(np.quantile(values, q))


def processor_s(process: psutil.Process) -> float:
    """Processor time of a process, all its threads together, to the nanosecond (its CPU clock: clock_getcpuclockid(3))."""
    return time.clock_gettime((~process.pid << 3) | 2)


def stands(process: psutil.Process) -> bool:
    """Whether each of its threads is stopped."""
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    return all((task / "stat").read_text().rpartition(") ")[2][0] in "Tt" for task in tasks)


def off_processor(process: psutil.Process, began: float, person: subprocess.Popen[bytes]) -> float:
    """Seconds from `began` (perf_counter) until `process` was off the processors: after it, all of its threads together
    had no more than STOPPING_S, which taking the signal costs. Watched until the last of them stands; not seen before
    the `person` has had an answer, it is all the time until then.

    Whether a thread stands is no measure: one that waits for a processor takes its signal only when it gets one.
    """
    seen = [(time.perf_counter(), processor_s(process))]
    while not (len(seen) > STILL and seen[-STILL][1] == seen[-1][1] and stands(process)):
        if person.poll() is not None:
            return time.perf_counter() - began
        time.sleep(0.0005)
        seen.append((time.perf_counter(), processor_s(process)))
    return next(at for at, used in seen if seen[-1][1] - used <= STOPPING_S) - began


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, env=environment())
    return time.perf_counter() - began


def status(stage: Stage, sizes: Sizes) -> dict[str, Any]:
    """`zk0ctl status` as a process, in turns with Python's own start."""
    command = [ZK0CTL, "--socket", str(stage.node.socket), "status"]
    took = [(seconds(command), seconds([sys.executable, "-c", "pass"])) for _ in range(sizes.status)]
    return {
        "status_ms": 1000 * statistics.median(s for s, _ in took),
        "status_vs_python": statistics.median(s / n for s, n in took),
    }


def idle(stage: Stage, sizes: Sizes) -> dict[str, Any]:
    """What zk0d costs when nothing happens: linked to its hub, started since it enrolled."""
    stage.node.stop()
    stage.node.start(stage.node.answers)
    daemon, broker = psutil.Process(stage.node.pid), psutil.Process(stage.hub.pid)
    before = daemon.cpu_times()
    time.sleep(min(10.0, sizes.idle_s))
    early = daemon.memory_info().rss / 1e6
    time.sleep(max(0.0, sizes.idle_s - 10.0))
    after = daemon.cpu_times()
    late = daemon.memory_info().rss / 1e6
    return {
        "daemon_rss_mb": max(early, late),
        "daemon_rss_at_the_end_mb": late,
        "daemon_cpu_share": max(0.0, after.user + after.system - before.user - before.system) / sizes.idle_s,
        "idle_s": sizes.idle_s,
        "hub_rss_mb": broker.memory_info().rss / 1e6,
    }


def ready_to_train(stage: Stage) -> None:
    """A dataset, and the trainer at full load."""
    stage.record(1.0, train=True)
    stage.train()


def freeze(stage: Stage, sizes: Sizes) -> dict[str, Any]:
    """Milliseconds from starting `zk0ctl record start` until the trainer is off the processors.

    The dataset's name is one that the daemon then refuses, so that the trainer goes on at once and the next can begin.
    """
    took, command = [], [ZK0CTL, "--socket", str(stage.node.socket), "record", "start", "--dataset", ".x", "--task",
                         "x", "--episodes", "1"]  # fmt: skip
    loaded = [seconds([sys.executable, "-c", "pass"]) for _ in range(9)]
    for _ in range(sizes.starts):
        until(stage.steps, "the trainer runs")
        trainer = stage.trainer()
        assert trainer is not None
        time.sleep(random.uniform(0.05, 0.3))  # not always at the same place between its steps
        began = time.perf_counter()
        person = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
        took.append(1000 * off_processor(trainer, began, person))
        person.wait()
    took.sort()
    print("  freeze, ms:", " ".join(f"{t:.0f}" for t in took))
    return {"freeze_p99_ms": quantile(took, 0.99), "freeze_p50_ms": quantile(took, 0.5), "freeze_max_ms": took[-1],
            "freeze_starts": len(took), "python_beside_trainer_ms": 1000 * statistics.median(loaded)}  # fmt: skip


def periods(root: Path) -> np.ndarray:
    """True periods of the newest episode, seconds."""
    newest = max((root / "meta" / "zk0" / "times").glob("*.parquet"))
    return np.diff(parquet.read_table(newest)["t"].to_numpy())


def recordings(stage: Stage, sizes: Sizes) -> tuple[list[dict[str, float]], np.ndarray, int]:
    """→ when each recording was ready and begun, all periods, and how many saw a stopped trainer and an upload."""
    starts, beside, found = [], 0, list[np.ndarray]()
    for _ in range(sizes.takes):
        if stage.trainer() is not None:
            until(stage.steps, "the trainer runs")
        root, at = stage.record(sizes.take_s)
        beside += bool(stage.trainer() is not None and stage.status()["updates_waiting"])
        starts.append(at)
        found.append(periods(root))
        late = (np.abs(found[-1] - NOMINAL_S) > LATE_S).sum()
        print(f"  ready {at['ready']:.2f} s, first frame {at['take']:.2f} s, {late} of {len(found[-1])} frames late, "
              f"worst {1000 * np.abs(found[-1] - NOMINAL_S).max():.1f} ms", flush=True)  # fmt: skip
    return starts, np.concatenate(found), beside


def record(stage: Stage, sizes: Sizes) -> dict[str, Any]:
    """Recordings without any training first, then with the trainer at full load until each of them begins."""
    stage.record(1.0, train=True)  # what is read from the disk once is read here
    alone, without, _ = recordings(stage, sizes)
    if sizes.upload:
        stage.upload()
    stage.train()
    until(stage.steps, "the trainer makes steps")
    beside, interleaved, seen = recordings(stage, sizes)

    def error(p: np.ndarray) -> float:
        return float(np.quantile(np.abs(p - NOMINAL_S), 0.99)) * 1e3

    def middle(starts: list[dict[str, float]], event: str = "take") -> float:
        return statistics.median(s[event] for s in starts)

    return {
        "record_start_ratio": middle(beside) / middle(alone),
        "record_start_alone_s": middle(alone),
        "record_start_beside_s": middle(beside),
        "record_ready_alone_s": middle(alone, "ready"),
        "record_ready_beside_s": middle(beside, "ready"),
        "jitter_added_p99_ms": error(interleaved) - error(without),
        "jitter_alone_p99_ms": error(without),
        "on_time_share": float((np.abs(interleaved - NOMINAL_S) <= LATE_S).mean()),
        "on_time_share_alone": float((np.abs(without - NOMINAL_S) <= LATE_S).mean()),
        "recordings_beside_trainer_and_upload": seen,
        "frames_each": len(without),
    }


def preempt(stage: Stage, sizes: Sizes) -> dict[str, Any]:
    """The trainer's own job again, preempted all the time, against undisturbed."""
    path = until(lambda: next((stage.node.folder / "work" / "trainer").rglob("job.json"), None), "a trainer's job")
    short = {"local_steps": sizes.steps, "batch_size": 4, "checkpoint_every_s": 3600, "threads": 1}
    job = json.loads(path.read_text()) | short
    stage.node.ctl("train", "pause", "--for", "1d", check=False)
    until(lambda: stage.trainer() is None, "the trainer leaves")
    calm, run = asyncio.run(both(stage.folder / "again", job, sizes.freezes, sizes.yields))
    same = (calm.result["digest"], calm.result["loss_last"]) == (run.result["digest"], run.result["loss_last"])
    return {
        "preemptions": run.freezes + run.yields,
        "preemptions_stopped_in_place": run.freezes,
        "preemptions_left_and_started_again": run.yields,
        "preempted_steps": sizes.steps,
        "steps_lost": run.lost,
        "bitwise_equal": same and run.same_curve(calm),
    }


PIECES = ("status", "idle", "record", "freeze", "preempt")


def measure(stage: Stage, sizes: Sizes, pieces: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each piece's figures as soon as they are had."""
    if "status" in pieces:
        yield "status", status(stage, sizes)
    if "idle" in pieces:
        yield "idle", idle(stage, sizes)
    if "record" in pieces:
        yield "record", record(stage, sizes)
    elif {"freeze", "preempt"} & set(pieces):
        ready_to_train(stage)
    if "freeze" in pieces:
        until(stage.steps, "the trainer makes steps")
        yield "freeze", freeze(stage, sizes)
    if "preempt" in pieces:
        yield "preempt", preempt(stage, sizes)


def keep(options: argparse.Namespace, sizes: Sizes, piece: str, figures: dict[str, Any], told: dict[str, Any]) -> None:
    """Add one piece to the results' file, which keeps the others of the last run."""
    path = RESULTS / "interleave.json"
    last = json.loads(path.read_text()) if path.exists() else {}
    kept = last.get("figures", {}) | figures
    ordered = {k: kept.pop(k, None) for k in FIGURES} | kept
    pieces = last.get("pieces", {}) | {piece: told}
    write("interleave", options.small, vars(sizes), ordered, ("torch", "lerobot", "pyzmq", "structlog"), pieces=pieces)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PIECES), help="pieces to measure: " + ", ".join(PIECES))
    parser.add_argument("--starts", type=int, help="how often the trainer is interrupted by `zk0ctl record start`")
    options = parser.parse_args()
    pieces = options.only.split(",")
    if wrong := set(pieces) - set(PIECES):
        parser.error(f"--only {','.join(wrong)}: there are {', '.join(PIECES)}")
    sizes = SMALL if options.small else FULL
    if options.starts:
        sizes = replace(sizes, starts=options.starts)
    random.seed(0)
    load, began = machine()["load_before"], time.monotonic()
    if len(pieces) == len(PIECES):
        (RESULTS / "interleave.json").unlink(missing_ok=True)
    name = tempfile.mkdtemp(prefix="zk0-bench-")
    stage = Stage(Path(name))
    try:
        stage.start()
        for piece, figures in measure(stage, sizes, pieces):
            told = {"revision": revision(), "load_before": load, "small": options.small,
                    "done_at_s": round(time.monotonic() - began, 1)}  # fmt: skip
            keep(options, sizes, piece, figures, told)
    finally:
        stage.close()
        shutil.rmtree(name, ignore_errors=True)
    print(f"  {time.monotonic() - began:.1f} s in all")


if __name__ == "__main__":
    main()
