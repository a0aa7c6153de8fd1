"""The rollout worker: a LeRobot policy folder moves the virtual arm within limits and leaves a video and a table."""

from __future__ import annotations

import json
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
        assert worker.process.wait(20) == 0, worker.tail()
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


def test_a_policy_that_does_not_fit_says_what_to_change(policy: Path, tmp_path: Path) -> None:
    settings = job(policy, tmp_path / "out", robot={"cameras": {"wrist": CAMERAS["wrist"]}})
    with WorkerProcess("robot.rollout", settings, tmp_path / "work") as worker:
        error = worker.until("error", timeout_s=120)
        assert worker.process.wait(20) == 78
    assert "observation.images.front" in error["message"] and "observation.images.wrist" in error["message"]
    assert "rename" in error["hint"]


def test_stop_ends_it_cleanly_with_what_there_is(policy: Path, tmp_path: Path) -> None:
    settings = job(policy, tmp_path / "out", episodes=50, max_s=30, robot={"follower": "virtual:PickLift?clock=wall"})
    with WorkerProcess("robot.rollout", settings, tmp_path / "work") as worker:
        worker.until("progress", timeout_s=120)
        worker.send("stop")
        result = worker.until("done", timeout_s=5)["result"]
        assert worker.process.wait(5) == 0, worker.tail()
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
