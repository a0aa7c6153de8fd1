"""What the owner of the machine notices of training: time to get out of the way, the first frame, the recording's rhythm.

A hub and a node with a virtual arm and two 640×480 cameras, and a trainer with as many threads as processors. Also
what an idle zk0d costs and how fast `zk0ctl status` is, next to `python3 -c pass`. A figure not measured is null.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as parquet
from _harness import arguments, write

from zk0d.control import call
from zk0d.demo.cast import Hub, Node, environment, free_port
from zk0d.supervise import Worker

ZK0CTL = str(Path(sys.executable).with_name("zk0ctl"))
FEDERATION = """
[model]
policy = "smolvla"
preset = "tiny"
fps = 30
units = "degrees"
[model.cameras]
front = [96, 96]
wrist = [96, 96]
[training]
local_steps = 1000000
batch_size = 16
lr = 1e-4
mu = 0.01
[rounds]
min_nodes = 1
target = 1
quorum = 1
versions = 1
"""
LATE_S = 0.005


@dataclass(frozen=True)
class Sizes:
    status: int
    idle_s: float
    starts: int
    first_frames: int
    takes: int
    take_s: float
    steps: int
    freezes: int
    yields: int


SMALL = Sizes(status=10, idle_s=5.0, starts=5, first_frames=1, takes=1, take_s=4.0, steps=60, freezes=18, yields=1)
FULL = Sizes(status=50, idle_s=60.0, starts=100, first_frames=5, takes=2, take_s=15.0, steps=400, freezes=194, yields=6)


def until(condition: Callable[[], Any], what: str, seconds: float = 180.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)
    return found


def quantile(values: list[float], q: float) -> float:
    return float(np.quantile(values, q))


class Stage:
    """The hub, the node, and its trainer."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.hub, self.node = folder, Hub(folder / "hub"), Node("node", folder / "node")

    def start(self) -> None:
        self.hub.admin("init", "--listen", f"127.0.0.1:{free_port()}")
        self.hub.start(self.hub.answers)
        self.node.configure("virtual:Touch", "expert", {"front": (480, 640), "wrist": (480, 640)})
        with (self.node.folder / "zk0d.toml").open("a") as f:
            f.write(f'[train]\ndevice = "cpu"\nthreads = {os.cpu_count() or 2}\n')
        self.node.start(self.node.answers)
        self.node.ctl("enroll", json.loads(self.hub.admin("invite", "--json"))["token"])

    def train(self) -> None:
        """Join, and wait until the trainer makes steps."""
        config = self.folder / "federation.toml"
        config.write_text(FEDERATION)
        self.hub.admin("federation", "create", "bench", "--config", str(config))
        self.node.ctl("federation", "join", "bench")
        until(self.steps, "the trainer makes steps")

    def steps(self) -> int:
        training = self.status()["training"]
        return int(training["progress"].get("step", 0)) if training["trainer"] == "running" else 0

    def status(self) -> dict[str, Any]:
        return dict(call(self.node.socket, {"op": "status"}))

    def trainer(self) -> psutil.Process:
        children = psutil.Process(self.node.pid).children()
        return next(p for p in children if "zk0d.train.trainer" in p.cmdline())

    def record(self, name: str, seconds: float, on_event: Callable[[dict[str, Any]], None] | None = None) -> Path:
        """One take in real time through the daemon; → the dataset's folder."""
        request = {"op": "record", "dataset": name, "task": "touch", "episodes": 1, "episode_s": seconds,
                   "keep": "all", "train": name == "first", "pace": "real"}  # fmt: skip
        call(self.node.socket, request, on_event, timeout=300)
        return self.node.folder / "datasets" / name

    def close(self) -> None:
        for server in (self.node, self.hub):
            server.stop()


def off_processor(process: psutil.Process) -> bool:
    """Whether no thread of it is running or can run (stopped, or waiting)."""
    try:
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            if (task / "stat").read_text().rpartition(") ")[2][0] not in "Tt":
                return False
    except OSError:
        return True
    return True


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, env=environment())
    return time.perf_counter() - began


def idle(stage: Stage, sizes: Sizes) -> dict[str, float]:
    status = [ZK0CTL, "--socket", str(stage.node.socket), "status"]
    took = [(seconds(status), seconds([sys.executable, "-c", "pass"])) for _ in range(sizes.status)]
    daemon, broker = psutil.Process(stage.node.pid), psutil.Process(stage.hub.pid)
    before = daemon.cpu_times()
    time.sleep(sizes.idle_s)
    after = daemon.cpu_times()
    return {
        "daemon_rss_mb": daemon.memory_info().rss / 1e6,
        "daemon_cpu_share": max(0.0, after.user + after.system - before.user - before.system) / sizes.idle_s,
        "status_ms": 1000 * statistics.median(s for s, _ in took),
        "status_vs_python": statistics.median(s / n for s, n in took),
        "hub_rss_mb": broker.memory_info().rss / 1e6,
    }


def freezes(stage: Stage, count: int) -> dict[str, float]:
    """Milliseconds from starting `zk0ctl record start` to every thread of the trainer standing still."""
    took = []
    command = [ZK0CTL, "--socket", str(stage.node.socket), "record", "start", "--dataset", "freeze", "--task", "x",
               "--episodes", "1"]  # fmt: skip
    for _ in range(count):
        until(stage.steps, "the trainer runs")
        trainer = stage.trainer()
        began = time.perf_counter()
        person = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
        while not off_processor(trainer):
            time.sleep(0.0005)
        took.append(1000 * (time.perf_counter() - began))
        until(lambda: stage.status()["session"], "the session begins")
        stage.node.ctl("record", "stop", check=False)
        person.wait()
        stage.node.ctl("train", "now", check=False)
    return {"freeze_p50_ms": quantile(took, 0.5), "freeze_p99_ms": quantile(took, 0.99)}


def first_frame(stage: Stage, name: str) -> float:
    """Seconds from the request to the recorder's word that the take has begun: its first frame is taken then."""
    began, first = time.perf_counter(), []

    def on_event(event: dict[str, Any]) -> None:
        if event.get("event") == "take" and not first:
            first.append(time.perf_counter() - began)

    stage.record(name, 0.5, on_event)
    return first[0]


def periods(root: Path) -> np.ndarray:
    """True periods of the newest episode, seconds."""
    newest = max((root / "meta" / "zk0" / "times").glob("*.parquet"))
    return np.diff(parquet.read_table(newest)["t"].to_numpy())


def rhythm(stage: Stage, name: str, sizes: Sizes) -> np.ndarray:
    return np.concatenate([periods(stage.record(f"{name}{k}", sizes.take_s)) for k in range(sizes.takes)])


def recording(stage: Stage, sizes: Sizes) -> dict[str, float]:
    """Everything about recordings: without any training first, then with the trainer at full load."""
    stage.record("first", 4.0)
    stage.node.ctl("train", "pause", "--for", "1d")
    alone = [first_frame(stage, f"alone{k}") for k in range(sizes.first_frames)]
    without = rhythm(stage, "without", sizes)
    stage.node.ctl("train", "resume")
    stage.train()
    stage.node.ctl("train", "now", "--for", "1d")
    beside = []
    for k in range(sizes.first_frames):
        until(stage.steps, "the trainer runs")
        beside.append(first_frame(stage, f"beside{k}"))
    until(stage.steps, "the trainer runs")
    interleaved = rhythm(stage, "interleaved", sizes)
    nominal = 1 / 30
    error = lambda p: float(np.quantile(np.abs(p - nominal), 0.99)) * 1e3  # noqa: E731
    return {
        "record_start_ratio": statistics.median(beside) / statistics.median(alone),
        "record_start_alone_s": statistics.median(alone),
        "jitter_added_p99_ms": error(interleaved) - error(without),
        "jitter_alone_p99_ms": error(without),
        "on_time_share": 100 * float((np.abs(interleaved - nominal) <= LATE_S).mean()),
        "on_time_share_alone": 100 * float((np.abs(without - nominal) <= LATE_S).mean()),
        **freezes(stage, sizes.starts),
    }


def preempted(folder: Path, stage: Stage, sizes: Sizes) -> dict[str, Any]:
    """The trainer's job again, undisturbed and then frozen and yielded all the time: the same steps, to the bit."""
    job = json.loads(next((stage.node.folder / "work" / "trainer").rglob("job.json")).read_text())
    job |= {"local_steps": sizes.steps, "checkpoint_every_s": 3600}

    def prepared(name: str) -> dict[str, Any]:
        return job | {
            "checkpoint_dir": str(folder / name / "checkpoint"),
            "out": str(folder / name / "out.safetensors"),
        }

    async def run(name: str, disturb: bool) -> tuple[dict[str, Any], int, int]:
        done, lost, freezes_left, yields_left = 0, 0, sizes.freezes if disturb else 0, sizes.yields if disturb else 0
        each = sizes.steps // (sizes.yields + 1)
        while True:
            at = {"step": -1, "resumed": -1, "saved": 0}

            def on_event(event: dict[str, Any], at: dict[str, int] = at) -> None:
                if event["event"] == "progress":
                    at["resumed"] = event["step"] if at["resumed"] < 0 else at["resumed"]
                    at["step"] = event["step"]
                elif event["event"] == "checkpoint":
                    at["saved"] = event["step"]

            worker = await Worker.start(sys.executable, "zk0d.train.trainer", prepared(name), folder / name,
                                        folder / f"{name}.log", on_event)  # fmt: skip
            began = done
            ended = asyncio.ensure_future(worker.wait())
            while not ended.done():
                await asyncio.sleep(0.01)
                if at["step"] < 0:
                    continue
                if yields_left and at["step"] >= began + each:
                    worker.send("yield")
                    break
                if freezes_left and random.random() < 0.8:
                    freezes_left -= 1
                    worker.freeze()
                    await asyncio.sleep(0.01)
                    worker.thaw()
            result = await ended
            if result["finished"]:
                return result, sizes.freezes - freezes_left + sizes.yields - yields_left, lost
            yields_left -= 1
            lost += max(0, int(at["step"]) - int(result["steps"]))
            done = int(result["steps"])

    undisturbed, _, _ = asyncio.run(run("undisturbed", False))
    disturbed, preemptions, lost = asyncio.run(run("disturbed", True))
    same = (undisturbed["digest"], undisturbed["loss_last"]) == (disturbed["digest"], disturbed["loss_last"])
    return {"preemptions": preemptions, "steps_lost": lost, "bitwise_equal": same}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, help="how often the trainer is interrupted by `zk0ctl record start`")
    options = parser.parse_args()
    sizes = SMALL if options.small else FULL
    if options.starts:
        sizes = Sizes(**{**vars(sizes), "starts": options.starts})
    random.seed(0)
    name = tempfile.mkdtemp(prefix="zk0-bench-")
    stage = Stage(Path(name))
    try:
        stage.start()
        figures: dict[str, Any] = {**idle(stage, sizes), **recording(stage, sizes)}
        stage.node.ctl("train", "pause", "--for", "1d", check=False)
        figures |= preempted(Path(name) / "again", stage, sizes)
    finally:
        stage.node.kill()
        stage.hub.kill()
        shutil.rmtree(name, ignore_errors=True)
    first = ("freeze_p99_ms", "record_start_ratio", "jitter_added_p99_ms", "on_time_share", "preemptions", "steps_lost",
             "bitwise_equal", "daemon_rss_mb", "daemon_cpu_share", "status_ms", "status_vs_python")  # fmt: skip
    ordered = {k: figures.pop(k) for k in first} | figures
    write("interleave", options.small, vars(sizes), ordered, ("torch", "lerobot", "pyzmq", "structlog"))


if __name__ == "__main__":
    main()
