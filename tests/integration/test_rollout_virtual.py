"""The rollout worker: a LeRobot policy folder moves the virtual arm within limits and leaves a video and a table."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worker_process import WorkerProcess

pytest.importorskip("lerobot")
pytest.importorskip("so101_nexus")
CAMERAS = {"front": {"height": 64, "width": 64}, "wrist": {"height": 64, "width": 96}}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained ACT that sees one camera, saved by LeRobot itself."""
    import torch
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors

    torch.manual_seed(0)
    config = ACTConfig(
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (6,)),
            "observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
        chunk_size=8, n_action_steps=8, dim_model=32, n_heads=2, dim_feedforward=32, n_encoder_layers=1,
        n_vae_encoder_layers=1, pretrained_backbone_weights=None, device="cpu",
    )  # fmt: skip
    wide = {"mean": torch.zeros(6), "std": torch.full((6,), 60.0)}
    stats = {"observation.state": wide, "action": wide}
    stats["observation.images.front"] = {"mean": torch.zeros(3, 1, 1), "std": torch.ones(3, 1, 1)}
    folder = tmp_path_factory.mktemp("policy")
    ACTPolicy(config).save_pretrained(folder)
    for processor in make_pre_post_processors(config, dataset_stats=stats):
        processor.save_pretrained(folder)
    return folder


def job(policy: Path, out: Path, **changes: Any) -> dict[str, Any]:
    robot = {"follower": "virtual:Touch", "cameras": CAMERAS, **changes.pop("robot", {})}
    base = {
        "policy": str(policy),
        "task": "touch the cube",
        "robot": robot,
        "episodes": 2,
        "max_s": 0.8,
        "out": str(out),
    }
    return {**base, "seed": 1, "device": "cpu", **changes}


def test_video_and_table(policy: Path, tmp_path: Path) -> None:
    import av

    with WorkerProcess("robot.rollout", job(policy, tmp_path / "out"), tmp_path / "work") as worker:
        result = worker.until("done", timeout_s=120)["result"]
        assert worker.process.wait(60) == 0, worker.tail()
    report = json.loads((tmp_path / "out/rollout.json").read_text())
    assert [e["episode"] for e in worker.of("episode")] == [0, 1]
    assert result["episodes"] == len(report["episodes"]) == 2
    assert result["successes"] == sum(e["success"] for e in report["episodes"])
    assert all(e["seconds"] <= 0.8 and e["inference_ms"]["p50"] > 0 for e in report["episodes"])
    with av.open(result["video"]) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        frames = [f.to_ndarray(format="rgb24") for f in video.decode(stream)]
    assert len(frames) == sum(e["frames"] for e in report["episodes"])
    assert frames[0].std() > 5 and np.abs(frames[0].astype(int) - frames[-1]).mean() > 0.5
    head = Path(result["video"]).read_bytes()[:4096]
    assert head.index(b"moov") < head.index(b"mdat") if b"mdat" in head else b"moov" in head  # plays while it loads
    assert not list((tmp_path / "out").glob(".*"))


def test_a_policy_that_does_not_fit_says_what_to_change(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robot import rollout
    from zk0d.errors import ConfigError

    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "1")  # main sets them; put back afterwards
    with pytest.raises(ConfigError) as error:
        rollout.main(job(policy, tmp_path / "out", robot={"cameras": {"wrist": CAMERAS["wrist"]}}), Line())
    assert "observation.images.front" in error.value.message and "observation.images.wrist" in error.value.message
    assert "rename" in error.value.hint


def test_stop_ends_it_cleanly_with_what_there_is(policy: Path, tmp_path: Path) -> None:
    settings = job(policy, tmp_path / "out", episodes=50, max_s=30, robot={"follower": "virtual:PickLift?clock=wall"})
    with WorkerProcess("robot.rollout", settings, tmp_path / "work") as worker:
        worker.until("progress", timeout_s=120)
        worker.send("stop")
        result = worker.until("done", timeout_s=60)["result"]
        assert worker.process.wait(60) == 0, worker.tail()
    assert result["episodes"] == 1 and Path(result["video"]).stat().st_size > 1000


def test_what_a_policy_asks_is_limited() -> None:
    from robot.arms import open_bench
    from robot.config import RobotTable

    table = RobotTable.parse({"follower": "virtual:Touch"})
    with open_bench(table, fps=30, leader=False, limit=5.0) as bench:
        before, _ = bench.observe()
        sent = bench.command((before + np.float32(90)).astype(np.float32))
        assert np.abs(sent - before).max() == pytest.approx(5.0, abs=0.3)
        after, _ = bench.observe()
        assert np.abs(after - before).max() < 6


class Line:
    """A worker's channel whose commands the test gives."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.commands: list[dict[str, Any]] = []

    def emit(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, **fields})

    def poll(self, timeout_s: float = 0.0) -> dict[str, Any] | None:
        if self.commands and len(self.of("progress")) >= self.commands[0].get("after", 0):
            return self.commands.pop(0)
        time.sleep(timeout_s)
        return None

    def of(self, name: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] == name]


@pytest.fixture
def by_port(tmp_path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """An arm behind a port, as a real one is: the worker cannot know that it is virtual."""
    from robot.virtual.spec import StationSpec
    from robot.virtual.station import VirtualStation

    with VirtualStation(StationSpec("Touch", leader="rest", clock="wall")) as station:
        station.write_calibration(tmp_path / "calibration", "follower", "leader")
        yield station, {"follower": station.follower_port, "calibration_dir": str(tmp_path / "calibration")}


def roll_out(policy: Path, out: Path, robot: dict[str, Any], act: Any, line: Line, **changes: Any) -> Any:
    """One rollout of `act` in this process; gives its rows and how far the arm is from where it stood."""
    from robot.arms import open_bench
    from robot.ear import Ear
    from robot.film import Film
    from robot.rollout import Rollout
    from robot.rollout_job import RolloutJob

    wanted = RolloutJob.parse({"policy": str(policy), "out": str(out), "robot": robot, "episodes": 1, **changes})
    out.mkdir()
    limit = wanted.robot.max_relative_target
    with open_bench(wanted.robot, fps=30, leader=False, limit=limit, guarded=True, ear=Ear(line)) as bench:
        home, _ = bench.observe()
        with Film(out / "rollout.mp4", 30) as film:
            rows = Rollout(wanted, Ear(line), bench, lambda s, i: act(home, s), lambda: None, film).run()
        now, _ = bench.observe()
    return rows, float(np.abs(now - home).max())


def test_a_policy_that_hangs_is_held_then_given_up_and_the_arm_goes_to_rest(
    by_port: tuple[Any, dict[str, Any]], policy: Path, tmp_path: Path
) -> None:
    line, asked, over = Line(), [0], threading.Event()

    def act(home: Any, state: Any) -> Any:
        asked[0] += 1
        if asked[0] > 40:
            over.wait(30)
        return home + np.float32([0, 0, 0, 0, 25, 0])

    try:
        rows, away = roll_out(policy, tmp_path / "out", by_port[1], act, line, max_s=20, give_up_s=2.0, hold_s=0.3)
    finally:
        over.set()
    (row,) = rows
    assert row["ended_by"] == "watchdog" and row["held_s"] >= 2.0 and row["success"] is None
    assert re.search(r"no action for \d+\.\d s", line.of("watchdog")[0]["text"])
    assert any(e["held"] for e in line.of("progress"))
    assert away < 4  # it was 25 degrees away
    assert not any(s.table[40] for s in by_port[0]._follower.servos)
    assert [e["on"] for e in line.of("torque")] == [True, False] and not line.of("torque")[-1]["text"]


def test_a_persons_verdict_ends_the_episode_and_slow_answers_are_taken_late(
    by_port: tuple[Any, dict[str, Any]], policy: Path, tmp_path: Path
) -> None:
    line, answers = Line(), list[int]()
    line.commands = [{"cmd": "success", "note": "by a hair", "after": 4}, {"cmd": "release", "after": 6}]

    def act(home: Any, state: Any) -> Any:
        answers.append(len(line.of("episode")))
        time.sleep(0.08)  # more than two periods
        return np.float32([500, 0, 0, 0, 0, 0]) + home

    rows, away = roll_out(policy, tmp_path / "out", by_port[1], act, line, max_s=20, episodes=3, reset_s=0, hold_s=3)
    row, let_go = rows
    assert (row["success"], row["judged_by"], row["note"], row["ended_by"]) == (True, "person", "by a hair", "success")
    assert row["clipped"] > 3 and row["held_s"] == 0 and row["frames"] > 1.2 * answers.count(0)  # no answer, no delay
    assert let_go["ended_by"] == "release" and away > 10  # not back to rest, and no third episode
    assert not any(s.table[40] for s in by_port[0]._follower.servos)
    assert "told to release it" in line.of("torque")[-1]["text"]


def test_finish_lets_the_episode_end_and_a_stop_between_two_is_heard(
    by_port: tuple[Any, dict[str, Any]], policy: Path, tmp_path: Path
) -> None:
    line = Line()
    line.commands = [{"cmd": "finish", "after": 1}]
    rows, _ = roll_out(policy, tmp_path / "a", by_port[1], lambda home, state: home, line, max_s=2, episodes=3)
    assert [(row["ended_by"], row["frames"]) for row in rows] == [("time", 60)]

    thinking, turn = threading.Event(), threading.Lock()

    class Meanwhile(Line):
        """Its commands come while the policy thinks: an answer is still to come when the first episode has ended."""

        def poll(self, timeout_s: float = 0.0) -> dict[str, Any] | None:
            with turn:
                if thinking.is_set() and (said := super().poll()) is not None:
                    return said
            time.sleep(timeout_s)
            return None

    line = Meanwhile()
    line.commands = [{"cmd": "next", "after": 1}, {"cmd": "stop", "by": "person", "after": 1}]

    def act(home: Any, state: Any) -> Any:
        thinking.set()
        time.sleep(0.5)
        for _ in range(1000):
            with turn:
                if len(line.commands) != 1:  # not between the two
                    thinking.clear()
                    break
            time.sleep(0.01)
        return home

    rows, _ = roll_out(policy, tmp_path / "b", by_port[1], act, line, max_s=5, episodes=3, give_up_s=9)
    assert [row["ended_by"] for row in rows] == ["next"]


def test_between_episodes_a_real_arm_is_at_rest_until_next(
    by_port: tuple[Any, dict[str, Any]], policy: Path, tmp_path: Path
) -> None:
    seen: list[tuple[str, float]] = []

    class Sees(Line):
        def emit(self, event: str, **fields: Any) -> None:
            super().emit(event, **fields)
            if event == "progress":
                seen.append((fields.get("phase", "episode"), fields["joints"]["wrist_roll.pos"]))

    line = Sees()
    line.commands = [{"cmd": "success", "after": 2}, {"cmd": "next", "after": 4}, {"cmd": "finish", "after": 5}]

    def act(home: Any, state: Any) -> Any:
        return home + np.float32([0, 0, 0, 0, 25, 0])

    rows, away = roll_out(policy, tmp_path / "out", by_port[1], act, line, max_s=3, episodes=3, reset_s=60)
    assert [row["ended_by"] for row in rows] == ["success", "time"] and away < 4
    resting = [at for phase, at in seen if phase == "reset"]
    moved = [at for phase, at in seen if phase == "episode"]
    assert len(resting) >= 2 and np.ptp(resting) < 3 and max(moved) - min(resting) > 15


def test_an_arm_too_hot_ends_a_rollout(by_port: tuple[Any, dict[str, Any]], policy: Path, tmp_path: Path) -> None:
    station, robot = by_port
    line = Line()
    station.faults.follower.temperature("gripper", 75)
    rows, _ = roll_out(policy, tmp_path / "out", robot, lambda home, state: state, line, max_s=20)
    assert rows[0]["ended_by"] == "care" and line.of("care")[-1]["level"] == "release"
    assert not any(s.table[40] for s in station._follower.servos)
