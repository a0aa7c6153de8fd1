"""The rollout worker: a published policy moves the arm, within limits, and the result is a video and a table.

`python -m robot.rollout JOB.json`; job, events and commands are in docs/architecture.md, "Workers".
Not for loading policies (zk0d.train.load) nor for recording what the arm does (recorder.py).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robot.config import RobotTable
from zk0d import durable
from zk0d.errors import ConfigError, DatasetError
from zk0d.worker import Message, WorkerChannel, run_worker

if TYPE_CHECKING:
    from robot.bench import Bench
    from robot.film import Film

PROGRESS_EVERY_S = 0.5
LINGER_S = 0.4
REST_S = 2.0

Policy = Callable[[NDArray[np.float32], Mapping[str, NDArray[np.uint8]]], NDArray[np.float32]]


@dataclass(frozen=True)
class RolloutJob:
    """The job file. `rename` maps the arm's camera features to the policy's, as the trainer's datasets do."""

    policy: Path
    out: Path
    robot: RobotTable
    task: str = ""
    episodes: int = 1
    max_s: float = 15.0
    fps: int = 30
    seed: int = 0
    device: str = "auto"
    rename: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def parse(job: Mapping[str, Any]) -> RolloutJob:
        """Raises ConfigError naming the key, the value and what is accepted."""

        def refuse(key: str, accepted: str) -> ConfigError:
            return ConfigError(f"rollout job: {key} = {job.get(key)!r} cannot be used", f"use {accepted}")

        for key in ("policy", "out"):
            if not isinstance(job.get(key), str) or not Path(job[key]).is_absolute():
                raise refuse(key, "the absolute path of a folder")
        if not (Path(job["policy"]) / "config.json").is_file():
            raise DatasetError(f"{job['policy']} holds no published policy", "zk0ctl model list shows what there is")
        for key, (low, high) in {"episodes": (1, 10_000), "fps": (5, 120), "seed": (0, 2**31)}.items():
            value = job.get(key, low)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise refuse(key, f"a whole number from {low} to {high}")
        seconds = job.get("max_s", 15.0)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0.2 <= seconds <= 3600:
            raise refuse("max_s", "seconds, from 0.2 to 3600")
        values = {k: v for k, v in job.items() if k in RolloutJob.__dataclass_fields__ and v is not None}
        values |= {"policy": Path(job["policy"]), "out": Path(job["out"])}
        values["robot"] = RobotTable.parse(job.get("robot", {}))
        return RolloutJob(**values)


class Rollout:
    """One job on an opened bench."""

    def __init__(
        self, job: RolloutJob, channel: WorkerChannel, bench: Bench, act: Policy, reset: Callable[[], None], film: Film
    ) -> None:
        self.job = job
        self._channel = channel
        self._bench = bench
        self._act = act
        self._reset_policy = reset
        self._film = film
        self._stop = False

    def run(self) -> list[dict[str, Any]]:
        """Run the episodes; gives a row for each. Real arms go back to where they stood, whatever ended it."""
        home, _ = self._bench.observe()
        rows: list[dict[str, Any]] = []
        try:
            for episode in range(self.job.episodes):
                if self._stop:
                    break
                rows.append(self._episode(episode))
                self._channel.emit("episode", **{k: rows[-1][k] for k in ("episode", "success", "seconds")})
        finally:
            if not self._bench.virtual:
                self._bench.move_to(home, REST_S)
        return rows

    def _episode(self, episode: int) -> dict[str, Any]:
        job, bench, period = self.job, self._bench, 1.0 / self.job.fps
        seed = job.seed * 100_003 + 50_000 + episode  # not a scene that a recorder of the same seed has shown
        bench.begin_take(seed)
        self._reset_policy()
        thinking: list[float] = []
        success: bool | None = None
        frames = lingering = 0
        limit, linger = round(job.max_s * job.fps), round(LINGER_S * job.fps)
        begin = anchor = time.perf_counter()
        shown, since = begin, 0
        while frames < limit and lingering < linger and not self._stop:
            state, images = bench.observe()
            thought = time.perf_counter()
            action = self._act(state, images)
            thinking.append(time.perf_counter() - thought)
            bench.command(action)
            frames, since = frames + 1, since + 1
            success = bench.success()
            lingering += bool(success)
            self._film.add(images, self._caption(episode, frames, success), good=bool(success))
            now = time.perf_counter()
            if now - shown >= PROGRESS_EVERY_S:
                shown = now
                self._channel.emit("progress", episode=episode, seconds=round(frames * period, 2))
            wait = 0.0 if bench.stepped else anchor + since * period - now
            if wait < -period:
                anchor, since, wait = now, 0, 0.0
            if self._commands(wait):
                break
        reached = frames - lingering if success else frames
        return {
            "episode": episode,
            "success": success,
            "seconds": round((reached if bench.stepped else frames) * period, 2),
            "wall_s": round(time.perf_counter() - begin, 2),
            "frames": frames,
            "seed": seed,
            "inference_ms": {
                "p50": round(float(np.quantile(thinking, 0.5)) * 1e3, 2),
                "max": round(max(thinking) * 1e3, 2),
            },
        }

    def _caption(self, episode: int, frames: int, success: bool | None) -> str:
        verdict = "success" if success else ""
        task = self.job.task if len(self.job.task) <= 40 else self.job.task[:39] + "…"
        return "  ".join(
            filter(None, [f"{episode + 1}/{self.job.episodes}", f"{frames / self.job.fps:4.1f} s", task, verdict])
        )

    def _commands(self, wait_s: float) -> bool:
        """Sleep until the next period; true when a command ends the episode."""
        deadline = time.perf_counter() + wait_s
        ended = False
        while (message := self._channel.poll(max(0.0, deadline - time.perf_counter()))) is not None:
            match message.get("cmd"):
                case "next" | "discard":
                    ended = True
                case "stop" | "finish" | "orphaned":
                    self._stop = ended = True
            if ended:
                return True
        return ended


def policy_function(job: RolloutJob, bench: Bench) -> tuple[Policy, Callable[[], None]]:
    """Load the policy and fit it to the arm. Raises ConfigError when its cameras or joints are not the arm's."""
    import torch
    from lerobot.policies.utils import prepare_observation_for_inference

    from zk0d.train.images import fit
    from zk0d.train.load import load_published

    name = job.device if job.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    _check_published(job)
    policy, preprocessor, postprocessor = load_published(job.policy, name)
    ours = {f"observation.images.{n}": n for n in bench.cameras}
    given = {job.rename.get(key, key): camera for key, camera in ours.items()}
    wanted = list(policy.config.image_features)
    missing = [key for key in wanted if key not in given]
    if missing:
        raise ConfigError(
            f"the policy wants {', '.join(missing)}; the arm has {', '.join(given) or 'no camera'}",
            "name the cameras in [robot.cameras] as the policy does, or map them with rename",
        )
    sizes = {key: tuple(feature.shape)[-2:] for key, feature in policy.config.image_features.items()}
    actions = int(policy.config.output_features["action"].shape[0])
    if actions != len(bench.joints):
        raise ConfigError(
            f"the policy moves {actions} joints and the arm has {len(bench.joints)}", "use another policy"
        )

    def act(state: NDArray[np.float32], images: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.float32]:
        seen: dict[str, Any] = {"observation.state": state.copy()}
        seen |= {key: fit(images[given[key]], *sizes[key]) for key in wanted}
        with torch.inference_mode():
            batch = preprocessor(prepare_observation_for_inference(seen, device, job.task, bench.robot_type))
            action = postprocessor(policy.select_action(batch))
        return np.asarray(action.squeeze(0).to("cpu", torch.float32).numpy(), dtype=np.float32)

    def reset() -> None:
        for part in (policy, preprocessor, postprocessor):
            part.reset()

    return act, reset


def _check_published(job: RolloutJob) -> None:
    """Units and rate that metrics.json of a federation's version states; other LeRobot folders state none."""
    path = job.policy / "metrics.json"
    metrics = json.loads(path.read_text()) if path.exists() else {}
    for key, ours in (("units", job.robot.units), ("fps", job.fps)):
        if metrics.get(key, ours) != ours:
            raise ConfigError(
                f"the policy works with {key} = {metrics[key]!r}, the arm with {ours!r}", f"set {key} to its value"
            )


def main(job: Message, channel: WorkerChannel) -> Message:
    """Open everything, roll out, close everything. Raises RobotError, DatasetError or ConfigError."""
    wanted = RolloutJob.parse(job)
    # Read when LeRobot is first imported, which opening the arm does: nothing here asks a model hub.
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    from robot.arms import open_bench
    from robot.film import Film

    wanted.out.mkdir(parents=True, exist_ok=True)
    video = wanted.out / "rollout.mp4"
    limit = wanted.robot.max_relative_target
    with open_bench(wanted.robot, fps=wanted.fps, seed=wanted.seed, leader=False, limit=limit) as bench:
        act, reset = policy_function(wanted, bench)
        channel.emit("ready", ports=bench.ports, cameras=list(bench.cameras))
        with Film(video, wanted.fps) as film:
            rows = Rollout(wanted, channel, bench, act, reset, film).run()
    successes = sum(bool(row["success"]) for row in rows)
    report = {
        "schema": 1,
        "policy": str(wanted.policy),
        "task": wanted.task,
        "fps": wanted.fps,
        "max_relative_target": limit,
        "successes": successes,
        "episodes": rows,
    }
    durable.write_json(wanted.out / "rollout.json", report)
    return {"episodes": len(rows), "successes": successes, "video": str(video)}


if __name__ == "__main__":
    sys.exit(run_worker(main))
