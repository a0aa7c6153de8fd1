"""Runs of the two recorders that bench/record.py compares, each as it is, in a process that does nothing else.

Ours is robot.recorder's main; the other is lerobot-record's. Only the cameras are made up (_arms.py). Not for figures.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _harness import REPOSITORY

LATE = 1.5
"""A step is on time when it comes within this many periods of the one before, as in an episode's quality report."""

LIMIT_S = 300
"""A run that takes longer has failed: the longest is two takes of 20 s, and what comes after them."""


class Told:
    """A worker's channel without a supervisor: events are kept with their time; no command comes."""

    def __init__(self, out: int | None = None) -> None:
        self.events: list[tuple[float, float, str, dict[str, Any]]] = []
        self._out = out

    def emit(self, event: str, **fields: Any) -> None:
        self.events.append((time.perf_counter(), cpu_s(), event, fields))
        if self._out is not None:
            os.write(self._out, f"{event}\n".encode())

    def poll(self, timeout_s: float = 0.0) -> None:
        if timeout_s > 0:
            time.sleep(timeout_s)


def cpu_s() -> float:
    """User and system seconds of this process and of its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def note_sends() -> list[float]:
    """Notes when each action is sent, by whom it may: the same clock for both recorders."""
    from lerobot.robots.so_follower import SOFollower

    times: list[float] = []
    send = SOFollower.send_action

    def noted(self: Any, action: Any) -> Any:
        times.append(time.perf_counter())
        return send(self, action)

    SOFollower.send_action = noted
    return times


def summary(sends: list[float], begins: list[float], fps: int) -> dict[str, Any]:
    """`on_time` share and rate within takes, and the longest wait between two: last action to first action."""
    takes = [[t for t in sends if a <= t < b] for a, b in zip(begins, [*begins[1:], float("inf")], strict=True)]
    steps = np.concatenate([np.diff(t) for t in takes])
    waits = [after[0] - before[-1] for before, after in itertools.pairwise(takes)]
    return {
        "on_time": float((steps <= LATE / fps).mean()), "hz": float(1 / steps.mean()),
        "ready_s": max(waits, default=None),
    }  # fmt: skip


def cameras(count: int, size: list[int], fps: int) -> dict[str, Any]:
    from _arms import StoredCameraConfig

    return {f"camera{n}": StoredCameraConfig(seed=n, fps=fps, height=size[0], width=size[1]) for n in range(count)}


def ours(
    table: dict[str, Any], root: Path, fps: int, seconds: float, takes: int, count: int, size: list[int],
    out: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """`takes` takes by robot.recorder, as its worker runs it."""
    from robot import arms, recorder

    made = cameras(count, size, fps)
    arms._camera = lambda camera, fps: made[camera.name]  # type: ignore[assignment]
    sends, told = note_sends(), Told(out)
    sizes = {name: {"source": "0", "height": size[0], "width": size[1]} for name in made}
    job = {
        "dataset": str(root), "task": "bench", "episodes": takes, "episode_s": seconds, "fps": fps,
        "robot": {**table, "cameras": sizes},
    }  # fmt: skip
    down, over = recorder.put_down, []

    def noted(*given: Any, **named: Any) -> None:
        over.append(time.perf_counter())
        down(*given, **named)

    recorder.put_down = noted  # the way back to rest is no take
    result = recorder.main(job, told)
    used = cpu_s()
    sends = [at for at in sends if at < over[0]]
    begun = [(at, cpu) for at, cpu, event, _ in told.events if event == "take"]
    used -= begun[0][1]
    quality = [fields["quality"] for _, _, event, fields in told.events if event == "saved"]
    return {
        **summary(sends, [at for at, _ in begun], fps), "cpu_per_minute": used * 60 / (seconds * takes),
        "episodes": result["episodes"], "waited_ms": max(max(q["encoder_wait_ms"].values()) for q in quality),
    }  # fmt: skip


def lerobots(
    table: dict[str, Any], root: Path, fps: int, seconds: float, takes: int, count: int, size: list[int],
    streaming: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """The same by lerobot-record; `streaming` is its faster way, which spares it the PNG files."""
    from lerobot.configs.dataset import DatasetRecordConfig
    from lerobot.motors.feetech import FeetechMotorsBus
    from lerobot.robots.so_follower import SO101FollowerConfig
    from lerobot.scripts import lerobot_record as theirs
    from lerobot.teleoperators.so_leader import SO101LeaderConfig

    from robot.ports import wait_longer

    connect, loop = FeetechMotorsBus.connect, theirs.record_loop
    begins: list[tuple[float, float]] = []

    def patient(self: Any, *given: Any, **named: Any) -> None:
        wait_longer(self.port_handler)  # a pseudo-terminal on a busy machine: no servo is missing
        connect(self, *given, **named)

    def noted(*given: Any, **named: Any) -> None:
        if named.get("dataset") is not None:
            begins.append((time.perf_counter(), cpu_s()))
        loop(*given, **named)

    FeetechMotorsBus.connect = patient  # type: ignore[method-assign]
    theirs.record_loop = noted
    sends, folder = note_sends(), Path(table["calibration_dir"])
    config = theirs.RecordConfig(
        robot=SO101FollowerConfig(
            port=table["follower"], id="follower", calibration_dir=folder, cameras=cameras(count, size, fps)
        ),
        teleop=SO101LeaderConfig(port=table["leader"], id="leader", calibration_dir=folder),
        dataset=DatasetRecordConfig(
            repo_id="local/bench", single_task="bench", root=root, fps=fps, episode_time_s=seconds, reset_time_s=0,
            num_episodes=takes, push_to_hub=False, streaming_encoding=streaming, no_stamp=True,
        ),
        play_sounds=False,
    )  # fmt: skip
    dataset = theirs.record(config)
    used = cpu_s() - begins[0][1]
    return {
        **summary(sends, [at for at, _ in begins], fps), "cpu_per_minute": used * 60 / (seconds * takes),
        "episodes": dataset.num_episodes,
    }  # fmt: skip


def in_process(kind: str, *given: Any) -> dict[str, Any]:
    """Run a function of this file in a fresh interpreter; its last line is the result. `failed` when it raises."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "bench")])
    job = json.dumps([kind, *given], default=str)
    command = [sys.executable, __file__, job]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {LIMIT_S} s"}
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1] if done.stderr else str(done.returncode),
                "log": done.stderr[-3000:]}  # fmt: skip
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


if __name__ == "__main__":
    name, table, root, *rest = json.loads(sys.argv[1])
    print(json.dumps({"ours": ours, "lerobots": lerobots}[name](table, Path(root), *rest)))
