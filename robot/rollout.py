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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robot.ear import Channel, Ear, Ended
from robot.ramp import REST_SPEED, put_down, ramp
from robot.rollout_job import RolloutJob
from robot.thinker import Policy, Thinker
from zk0d import durable
from zk0d.errors import ConfigError
from zk0d.worker import Message, run_worker

if TYPE_CHECKING:
    from robot.bench import Bench
    from robot.film import Film

PROGRESS_EVERY_S = 0.5
LINGER_S = 0.4
_LOOK_S = 0.05
"""While the policy thinks with no control loop running: how often care and commands get their turn."""
WARM_UP_S = 120.0


@dataclass
class _Run:
    """What is counted in one episode. `lingering`: frames since the simulator has seen success."""

    began: float
    frames: int = 0
    lingering: int = 0
    held_s: float = 0.0
    success: bool | None = None
    ended: str = ""


class Rollout:
    """One job on an opened bench."""

    def __init__(
        self, job: RolloutJob, channel: Ear, bench: Bench, act: Policy, reset: Callable[[], None], film: Film
    ) -> None:
        self.job = job
        self._channel = channel
        self._bench = bench
        self._thinker = Thinker(act)
        self._reset_policy = reset
        self._film = film
        self._stop = False
        self._finish = False
        """No further episode; the one that runs goes on to its end."""
        self._limp = False
        """Told to let the arm go where it is."""
        self._verdict: bool | None = None
        self._note = ""

    def run(self) -> list[dict[str, Any]]:
        """Run the episodes; gives a row for each. Real arms go back to where they stood, whatever ended it."""
        home, images = self._bench.observe()
        rows: list[dict[str, Any]] = []
        try:
            self._warm_up(home, images)
            for episode in range(self.job.episodes):
                if self._thinker.busy:  # with an answer to the last episode
                    self._thought(self.job.give_up_s)
                if episode and not (self._bench.virtual or self._stop or self._finish):
                    self._reset(home, episode)
                if self._stop or self._finish:
                    break
                rows.append(self._episode(episode))
                told = ("episode", "success", "seconds", "ended_by")
                self._channel.emit("episode", **{k: rows[-1][k] for k in told})
        finally:
            self._thinker.close()
            put_down(self._bench, home, self._channel, limp=self._limp)  # not held while the video is finished
        return rows

    def _reset(self, home: NDArray[np.float32], episode: int) -> None:
        """A hand is about to reach in: the arm goes to rest, and stays there for `reset_s`, or until `next`."""
        word = ramp(self._bench, lambda: home, self._channel, REST_SPEED)
        self._finish, self._limp = word == "finish", word == "release"
        self._stop = word in ("stop", "orphaned", "release", "care")
        period, began, said = 1.0 / self.job.fps, time.perf_counter(), 0.0
        while not (self._stop or self._finish) and (left := began + self.job.reset_s - time.perf_counter()) > 0:
            self._bench.positions()
            self._stop = self._cared()
            if time.perf_counter() - said >= PROGRESS_EVERY_S:
                said = time.perf_counter()
                self._channel.emit("progress", episode=episode, phase="reset", left_s=round(left, 1),
                                   **self._bench.preview())  # fmt: skip
            if self._commands(min(period, left)) == "next":
                return

    def _warm_up(self, state: NDArray[np.float32], images: Mapping[str, NDArray[np.uint8]]) -> None:
        """A policy's first answer takes long (kernels, caches): have it before the arm moves."""
        self._thinker.ask(state, images)
        if not self._thought(WARM_UP_S) and not (self._stop or self._finish):
            raise ConfigError(
                f"the policy gave no first action within {WARM_UP_S:.0f} s", "is its device right? ([train] device)"
            )
        self._thinker.seconds.clear()

    def _thought(self, within_s: float) -> bool:
        """Wait for an answer that nobody acts on; an end, or an arm that is let go, is `_stop` at once."""
        deadline = time.perf_counter() + within_s
        while self._thinker.answer(_LOOK_S) is None:
            self._bench.positions()
            self._stop = self._cared() or self._stop
            self._commands(0.0)
            if self._stop or self._finish or time.perf_counter() > deadline:
                return False
        return True

    def _episode(self, episode: int) -> dict[str, Any]:
        job, bench = self.job, self._bench
        seed = job.seed * 100_003 + 50_000 + episode  # not a scene that a recorder of the same seed has shown
        bench.begin_take(seed)
        self._reset_policy()
        self._thinker.seconds.clear()
        self._verdict, self._note = None, ""
        run = _Run(time.perf_counter())
        run.ended = self._loop(episode, run)
        said = run.success if self._verdict is None else self._verdict
        thinking = self._thinker.seconds or [0.0]
        reached = run.frames - run.lingering if run.success else run.frames
        return {
            "episode": episode,
            "success": said,
            "judged_by": "nobody" if said is None else "simulator" if self._verdict is None else "person",
            "note": self._note,
            "ended_by": run.ended,
            "seconds": round((reached if bench.stepped else run.frames) / job.fps, 2),
            "wall_s": round(time.perf_counter() - run.began, 2),
            "held_s": round(run.held_s, 2),
            "frames": run.frames,
            "seed": seed,
            "inference_ms": {
                "p50": round(float(np.quantile(thinking, 0.5)) * 1e3, 2),
                "max": round(max(thinking) * 1e3, 2),
            },
            **{k: v for k, v in bench.tally().items() if k in ("clipped", "bus_errors", "care")},
        }

    def _loop(self, episode: int, run: _Run) -> str:
        """The control loop of one episode: observe, act in time, care, film. Gives what ended it."""
        job, bench, period = self.job, self._bench, 1.0 / self.job.fps
        limit, linger = round(job.max_s * job.fps), round(LINGER_S * job.fps)
        anchor = acted = shown = run.began
        since = 0
        while run.frames < limit and run.lingering < linger:
            state, images = bench.observe()
            now = time.perf_counter()
            if self._act_in_time(state, images, now, anchor + (since + 1) * period):
                if now - acted > job.hold_s:
                    run.held_s += now - acted
                acted = time.perf_counter()
            elif now - acted > job.give_up_s:
                run.held_s, self._stop = run.held_s + now - acted, True
                self._channel.emit("watchdog", text=f"no action for {now - acted:.1f} s: the arm goes to rest")
                return "watchdog"
            if self._cared():
                self._stop = True
                return "care"
            run.frames, since = run.frames + 1, since + 1
            run.success = bench.success()
            run.lingering += bool(run.success)
            self._film.add(images, self._caption(episode, run.frames, run.success), good=bool(run.success))
            now = time.perf_counter()
            if now - shown >= PROGRESS_EVERY_S:
                shown = now
                self._channel.emit("progress", episode=episode, seconds=round(run.frames * period, 2),
                                   held=now - acted > job.hold_s, **bench.preview())  # fmt: skip
            wait = 0.0 if bench.stepped else anchor + since * period - now
            if wait < -period:
                anchor, since, wait = now, 0, 0.0
            if (end := self._commands(wait)) is not None:
                return end
        return "success" if run.lingering >= linger else "time"

    def _act_in_time(
        self, state: NDArray[np.float32], images: Mapping[str, NDArray[np.uint8]], now: float, due: float
    ) -> bool:
        """Ask, and send the answer when it comes by `due`. A late one is sent in the period it comes in; until then
        nothing is sent, and the servos hold."""
        if not self._thinker.busy:
            self._thinker.ask(state, images)
        answer = self._thinker.answer(self.job.give_up_s if self._bench.stepped else max(0.0, due - now))
        if answer is None or not np.isfinite(answer).all():
            return False
        self._bench.command(answer)
        return True

    def _cared(self) -> bool:
        """True when the arm had to be let go."""
        for found in self._bench.tend():
            self._channel.emit("care", **found)
        return self._bench.released

    def _caption(self, episode: int, frames: int, success: bool | None) -> str:
        verdict = "success" if success else ""
        task = self.job.task if len(self.job.task) <= 40 else self.job.task[:39] + "…"
        return "  ".join(
            filter(None, [f"{episode + 1}/{self.job.episodes}", f"{frames / self.job.fps:4.1f} s", task, verdict])
        )

    def _commands(self, wait_s: float) -> str | None:
        """Sleep until the next period; what ends the episode: a command's name."""
        deadline = time.perf_counter() + wait_s
        while (message := self._channel.poll(max(0.0, deadline - time.perf_counter()))) is not None:
            match message.get("cmd"):
                case "next" | "discard" as end:
                    return str(end)
                case "success" | "failure" as said:
                    self._verdict, self._note = said == "success", str(message.get("note") or "")
                    return str(said)
                case "finish":
                    self._finish = True
                case "stop" | "orphaned" | "release" as end:
                    self._stop, self._limp = True, end == "release"
                    return str(end)
        return None


@dataclass(frozen=True)
class Loaded:
    """A published policy in memory: LeRobot's, with its two processors, and the torch device they compute on."""

    policy: Any
    preprocessor: Any
    postprocessor: Any
    device: Any


def load(job: RolloutJob) -> Loaded:
    """Load the policy. Raises ConfigError when it works at another rate or in other units."""
    import torch

    from zk0d.train.load import load_published

    name = job.device if job.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    _check_published(job)
    return Loaded(*load_published(job.policy, name), torch.device(name))


def policy_function(job: RolloutJob, bench: Bench, loaded: Loaded) -> tuple[Policy, Callable[[], None]]:
    """Fit the policy to the arm. Raises ConfigError when its cameras or joints are not the arm's."""
    import torch
    from lerobot.policies.utils import prepare_observation_for_inference

    from zk0d.train.images import fit

    policy, preprocessor, postprocessor = loaded.policy, loaded.preprocessor, loaded.postprocessor
    device = loaded.device
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


def main(job: Message, channel: Channel) -> Message:
    """Open everything, roll out, close everything. Raises RobotError, DatasetError or ConfigError."""
    wanted, ear = RolloutJob.parse(job), Ear(channel)
    wanted.out.mkdir(parents=True, exist_ok=True)
    try:
        rows, reason = _roll_out(wanted, ear)
    except Ended:
        rows, reason = [], ""
    successes = sum(bool(row["success"]) for row in rows)
    report = {
        "schema": 1,
        "policy": str(wanted.policy),
        "task": wanted.task,
        "fps": wanted.fps,
        "max_relative_target": wanted.robot.max_relative_target,
        "joint_margin": wanted.robot.joint_margin,
        "successes": successes,
        "episodes": rows,
    }
    durable.write_json(wanted.out / "rollout.json", report)
    ended = {"watchdog": "the policy gave no action", "care": f"the arm was let go: {reason}"}
    why = ended.get(rows[-1]["ended_by"], "") if rows else ""
    video = str(_video(wanted)) if rows else ""
    return {"episodes": len(rows), "successes": successes, "video": video, "ended": why}


def _video(job: RolloutJob) -> Path:
    return job.out / "rollout.mp4"


def _roll_out(wanted: RolloutJob, ear: Ear) -> tuple[list[dict[str, Any]], str]:
    """The rows of the episodes, and the worst about the arm at the end. Raises Ended before the first one."""
    # Read when LeRobot is first imported, which opening the arm does: nothing here asks a model hub.
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    from robot.arms import open_bench
    from robot.film import Film

    loaded = load(wanted)  # seconds, minutes: before the arm is under torque
    ear.check()
    limit = wanted.robot.max_relative_target
    with open_bench(
        wanted.robot, fps=wanted.fps, seed=wanted.seed, leader=False, limit=limit, guarded=True, ear=ear
    ) as bench:
        act, reset = policy_function(wanted, bench, loaded)
        ear.emit("ready", ports=bench.ports, cameras=list(bench.cameras))
        with Film(_video(wanted), wanted.fps) as film:
            rows = Rollout(wanted, ear, bench, act, reset, film).run()
        return rows, str(bench.health()["reason"])


if __name__ == "__main__":
    sys.exit(run_worker(main))
