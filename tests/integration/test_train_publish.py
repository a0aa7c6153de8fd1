"""A published version loads with LeRobot alone, where it was written and elsewhere, and does what was evaluated."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn_dataset import TASK, make_dataset
from train_jobs import Bench

from zk0d.train import frames, publish, weights
from zk0d.train.load import load_published
from zk0d.train.policy import build, processors
from zk0d.train.trainer import Settings

CARD = {
    "federation": "kitchen | arms",
    "updates": 3,
    "nodes": 3,
    "samples": 1200,
    "training": {"local_steps": 30, "batch_size": 8, "lr": 1e-3, "mu": 0.01},
    "history": [{"version": 0, "updates": 0, "heldout_loss": 2.5}, {"version": 1, "updates": 3, "heldout_loss": None}],
    "licence": "apache-2.0",
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("publish") / "drawn", episodes=2, frames=24)


@pytest.fixture(scope="module", params=["smolvla", "act"])
def published(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, dataset: Path
) -> dict[str, Any]:
    """Version 0 trained a few steps, evaluated and published."""
    bench = Bench(tmp_path_factory.mktemp(request.param), request.param, dtype="float32")
    run, _ = bench.open_run(dataset, Settings(4, 8, 1e-3, 0.01, 1))
    run.policy.train()
    for _ in range(4):
        run.one_step()
    version = bench.folder / "version-1.safetensors"
    tensors = {name: run.version[name] + change for name, change in run.delta().items()}
    weights.save_exchange(bench.spec, version, tensors)
    folder = bench.folder / "versions" / "0001"
    job = bench.evaluation(dataset, version, number=1, publish=str(folder), card=CARD, max_samples=20)
    result = bench.run("evaluator", job)
    return {"bench": bench, "folder": folder, "result": result, "version": version, "policy": request.param, "job": job}


def test_a_folder_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, published: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full stays so otherwise, by half a model that nothing knows of."""
    spec = published["bench"].spec
    policy = build(spec, published["bench"].folder / "cache", "cpu")
    pre, post = processors(spec, policy.config)

    def full(path: Path) -> None:
        (path / "step.safetensors").write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(post, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        publish.write(tmp_path / "v" / "0001", spec, policy, pre, post, publish.Version(1, None, {}, CARD))
    assert list((tmp_path / "v").iterdir()) == []


def test_the_folder_is_whole(published: dict[str, Any]) -> None:
    folder, bench = published["folder"], published["bench"]
    names = {p.name for p in folder.iterdir()}
    wanted = {"config.json", "model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json"}
    assert names >= wanted | {"README.md", "metrics.json"}
    assert [p.name for p in folder.parent.iterdir()] == ["0001"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["heldout_loss"] == published["result"]["loss"] and metrics["version"] == 1
    assert (metrics["units"], metrics["fps"], metrics["spec_digest"]) == ("degrees", 30, bench.spec.digest)
    readme = (folder / "README.md").read_text()
    for text in (
        "library_name: lerobot",
        "apache-2.0",
        "Updates merged | 3",
        "0.001",
        "2.5000",
        "from_pretrained",
        "kitchen",
    ):
        assert text in readme, text
    assert f"{published['result']['loss']:.4f}" in readme


def test_a_folder_that_is_made_again_is_the_same_without_evaluating(published: dict[str, Any]) -> None:
    again = published["folder"].with_name("again")
    job = {**published["job"], "publish": str(again), "datasets": [], "losses": published["result"]["datasets"]}
    placed = {"placed": str(published["folder"])}  # LeRobot keeps the backbone's place
    assert published["bench"].run("evaluator", {**job, **placed})["loss"] == published["result"]["loss"]
    for file in ("metrics.json", "README.md", "model.safetensors"):
        assert (again / file).read_bytes() == (published["folder"] / file).read_bytes(), file
    shutil.rmtree(again)
    if published["policy"] == "act":  # the same of any
        published["bench"].run("evaluator", {**job, "losses": {}, "card": {**CARD, "failed": True}})
        assert "Not evaluated: that failed." in (again / "README.md").read_text()
        shutil.rmtree(again)


def test_lerobot_loads_it_with_from_pretrained(published: dict[str, Any]) -> None:
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    cls = {"act": ACTPolicy, "smolvla": SmolVLAPolicy}[published["policy"]]
    policy = cls.from_pretrained(str(published["folder"]), strict=True)
    pre, post = make_pre_post_processors(policy.config, str(published["folder"]))
    _acts(policy, pre, post)


def _acts(policy: Any, pre: Any, post: Any) -> torch.Tensor:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    observation = {
        "observation.state": torch.randn(6, generator=generator) * 30,
        "observation.images.front": torch.rand(3, 64, 64, generator=generator),
        "observation.images.wrist": torch.rand(3, 64, 64, generator=generator),
        "task": TASK,
    }
    policy.reset()
    with torch.inference_mode():
        action = post(policy.select_action(pre(observation)))
    assert action.shape == (1, 6) and bool(torch.isfinite(action).all())
    return action


def test_it_loads_after_the_folder_was_moved(published: dict[str, Any], tmp_path: Path) -> None:
    here = _acts(*load_published(published["folder"], "cpu"))
    moved = Path(shutil.copytree(published["folder"], tmp_path / "elsewhere"))
    hidden = published["folder"].with_name("hidden")
    published["folder"].rename(hidden)
    try:
        assert torch.equal(_acts(*load_published(moved, "cpu")), here)
        _acts(*_by_readme(moved))
    finally:
        hidden.rename(published["folder"])


def _by_readme(folder: Path) -> tuple[Any, Any, Any]:
    """Run the model card's own lines."""
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    lines = code.splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("DIR = "))
    lines[place] = f"DIR = {str(folder)!r}"
    exec("\n".join(lines), names)  # the card's text is what is tested
    return names["policy"], names["pre"], names["post"]


def test_it_is_the_version_that_was_evaluated(published: dict[str, Any], dataset: Path) -> None:
    bench = published["bench"]
    policy = build(bench.spec, bench.cache, "cpu")
    weights.load_base(policy, bench.spec, bench.folder / "base.safetensors")
    weights.apply(policy, weights.load_exchange(bench.spec, published["version"]))
    policy.eval()
    pre, post = processors(bench.spec, policy.config)
    theirs = load_published(published["folder"], "cpu")
    assert torch.equal(_acts(policy, pre, post), _acts(*theirs))
    samples = frames.load([frames.Source(dataset)], bench.spec, list(policy.config.action_delta_indices), bench.cache)
    ours, other = pre(samples.batch(np.arange(4))), theirs[1](samples.batch(np.arange(4)))
    assert torch.equal(ours["observation.state"], other["observation.state"]) and torch.equal(
        ours["action"], other["action"]
    )


def test_nothing_that_training_changes_stays_behind(published: dict[str, Any], dataset: Path) -> None:
    """Every tensor of the policy but the exchange set is, after training, bit for bit what the base holds."""
    run, _ = published["bench"].open_run(dataset, Settings(3, 4, 1e-2, 0.1, 0))
    policy, version = run.policy, run.version
    before = {n: t.clone() for n, t in policy.state_dict().items()}
    policy.train()
    for _ in range(3):
        run.one_step()
    changed = {n for n, t in policy.state_dict().items() if not torch.equal(t, before[n])}
    assert changed <= set(version) and len(changed) > 0.8 * len(version)


def test_publishing_again_replaces_the_folder(published: dict[str, Any], dataset: Path, tmp_path: Path) -> None:
    bench = published["bench"]
    run, _ = bench.open_run(dataset, Settings(1, 1, 0.0, 0.0, 0))
    folder = Path(shutil.copytree(published["folder"], tmp_path / "versions" / "0001"))
    (folder / "stray").write_text("left by someone")
    pre, post = processors(bench.spec, run.policy.config)
    publish.write(folder, bench.spec, run.policy, pre, post, publish.Version(0, None, {}, {}))
    assert not (folder / "stray").exists() and [p.name for p in folder.parent.iterdir()] == ["0001"]
    assert "Not evaluated" in (folder / "README.md").read_text()
    _acts(*load_published(folder, "cpu"))


def test_weights_of_a_published_version_start_another_federation(published: dict[str, Any], tmp_path: Path) -> None:
    folder = published["folder"]
    backbone = {"backbone": str(folder / "vlm")} if published["policy"] == "smolvla" else {}
    again = Bench(tmp_path, published["policy"], dtype="float32", weights=str(folder), **backbone)
    assert again.version.read_bytes() == published["version"].read_bytes()
    assert again.made["base_digest"] != published["bench"].made["base_digest"]
