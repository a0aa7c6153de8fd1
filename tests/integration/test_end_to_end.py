"""The main job, whole: enrol, train, exchange over TLS, merge, evaluate, export; and what happens when processes die.

One world (a hub, two nodes) serves the module; each test has its own federation in it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from daemon_process import STOP_S
from world import World

pytestmark = [pytest.mark.may_leak("the world's processes live for the module"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("world")) as made:
        yield made


def children(pid: int, module: str) -> list[psutil.Process]:
    """The running workers of this kind below a process."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if module in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def rolled_out_meanwhile(world: World, node: Any, out: Path) -> None:
    """An earlier version on the virtual arm while the node trains: its trainer makes way and goes on afterwards.

    The terminal is closed in mid-rollout; its video and table are fetched later.
    """
    (trainer,) = children(node.pid, "zk0d.train.trainer")
    command = [sys.executable, "-m", "zk0d.ctl.main", "--socket", str(node.socket), "rollout", "--model", "main/1"]
    terminal = subprocess.Popen([*command, "--episodes", "1", "--max-s", "1", "--out", str(out)])
    try:
        session = world.wait(lambda: node.status()["session"], "the rollout begins", 120)
    finally:
        terminal.kill()
        terminal.wait(60)
    assert session["kind"] == "rollout"
    used: list[float] = []

    def over() -> bool:
        status, now = trainer.status(), sum(trainer.cpu_times()[:2])
        if node.status()["session"] is None:
            return True
        assert status == psutil.STATUS_STOPPED
        used.append(now)
        return False

    world.wait(over, "the rollout ends", 120)
    assert len(used) > 3 and used[0] == used[-1], used  # it did not compute
    before = step(node)
    world.wait(lambda: step(node) > before, "the same trainer goes on", 60)
    assert children(node.pid, "zk0d.train.trainer") == [trainer]
    fetched = node.ctl("rollout", "fetch", "--out", str(out))
    assert f"{out / 'rollout.mp4'}: the rollout of " in fetched.stdout and "0 more to fetch" in fetched.stdout
    assert json.loads((out / "rollout.json").read_text())["episodes"][0]["frames"] > 1
    assert (out / "rollout.mp4").stat().st_size > 1000
    assert node.ctl("rollout", "fetch", "--out", str(out), check=False).returncode == 1


def step(node: Any) -> int:
    return int((node.status().get("training", {}).get("progress") or {}).get("step") or 0)


def test_the_job_runs_to_its_end(world: World) -> None:
    """Two versions are merged from really training, and the held-out loss falls (below: not without training)."""
    world.federation("main", versions=2, steps=30)
    world.join("main")
    lines = world.until_version("main", 2)
    losses = [line["heldout_loss"] for line in lines]
    assert [line["version"] for line in lines] == [0, 1, 2]
    assert [line["updates"] for line in lines] == [0, 2, 2]
    # Thirty steps on random batches: the second version may be a little worse than the first, not than none.
    assert losses[2] < losses[0] and min(losses[1:]) < 0.95 * losses[0], losses
    for node in world.nodes:
        world.wait(lambda node=node: node.status()["receipts"] >= 2, "both receipts")


def test_the_exported_policy_loads_with_lerobot(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    node = world.nodes[0]
    world.wait(
        lambda: any(
            m["federation"] == "main" and m["version"] == 2 and m["fetched"]
            for m in json.loads(node.ctl("model", "list", "--json").stdout)
        ),
        "version 2 on the node",
    )
    node.ctl("model", "export", "main/2", str(folder))
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    policy = SmolVLAPolicy.from_pretrained(str(folder))
    assert sum(p.numel() for p in policy.parameters()) > 1000
    for name in ("README.md", "metrics.json", "config.json", "model.safetensors", "policy_preprocessor.json"):
        assert (folder / name).is_file(), name
    hub = world.hub.folder / "federations" / "main" / "versions" / "0002" / "model.safetensors"
    assert hub.read_bytes() == (folder / "model.safetensors").read_bytes()  # the node's is the hub's, to the byte


def test_any_version_moves_the_arm(world: World, tmp_path: Path) -> None:
    """A rollout by the daemon: an earlier version on the virtual arm, with limits, a video and a table."""
    node, out = world.nodes[0], tmp_path / "rollout"
    node.ctl("rollout", "--model", "main/1", "--episodes", "1", "--max-s", "1", "--out", str(out))
    report = json.loads((out / "rollout.json").read_text())
    assert json.loads((Path(report["policy"]) / "metrics.json").read_text())["version"] == 1
    assert report["max_relative_target"] == 20.0 and report["joint_margin"] == 2.0  # by default
    assert len(report["episodes"]) == 1 and report["episodes"][0]["frames"] > 1
    assert (out / "rollout.mp4").stat().st_size > 1000


def test_without_a_learning_rate_nothing_is_learned(world: World) -> None:
    """The fall of the loss above comes from training: with learning rate 0 it does not move at all."""
    world.federation("still", versions=1, steps=4, lr=0.0)
    world.join("still")
    lines = world.until_version("still", 1)
    assert lines[1]["updates"] == 2
    assert lines[1]["heldout_loss"] == lines[0]["heldout_loss"]
    assert lines[1]["digest"] == lines[0]["digest"]


def test_any_process_may_be_killed(world: World, tmp_path: Path) -> None:
    """SIGKILL of trainer, daemon, hub and evaluator while they work, after a rollout in the midst of training;
    restarted, the job ends as it would have."""
    world.federation("killed", versions=2, steps=60)
    world.join("killed")
    first, second = world.nodes

    world.wait(lambda: step(first) >= 5, "the first node trains")
    rolled_out_meanwhile(world, first, tmp_path / "rollout")
    for trainer in children(first.pid, "zk0d.train.trainer"):
        trainer.send_signal(signal.SIGKILL)
    world.wait(lambda: children(first.pid, "zk0d.train.trainer"), "the trainer is started again")

    second.kill()
    second.start(second.answers)

    world.hub.kill()
    world.hub.start(world.hub.answers)

    world.wait(lambda: children(world.hub.pid, "zk0d.train.evaluator"), "an evaluator works", 240)
    for evaluator in children(world.hub.pid, "zk0d.train.evaluator"):
        evaluator.send_signal(signal.SIGKILL)

    first.kill()
    first.start(first.answers)
    lines = world.until_version("killed", 2, 300)
    assert [line["version"] for line in lines] == [0, 1, 2]
    assert [line["updates"] for line in lines] == [0, 2, 2]  # each update counted once
    assert all(line["heldout_loss"] is not None for line in lines)
    assert lines[2]["heldout_loss"] < lines[0]["heldout_loss"]


def test_no_process_of_ours_imports_torch_unless_it_trains(world: World) -> None:
    """Looked at in the live processes: no torch library is mapped into the daemon or the hub."""
    for server in (world.hub, *world.nodes):
        maps = Path(f"/proc/{server.pid}/maps").read_text()
        assert "libtorch" not in maps and "lerobot" not in maps


def test_status_is_useful_when_the_hub_is_away_and_when_the_daemon_is_down(world: World) -> None:
    node = world.nodes[0]
    world.hub.stop()
    try:
        # While the hub closes, its port may take one more connection and drop it: that is another sentence.
        world.wait(lambda: "cannot be reached" in node.status()["link"]["reason"], "the node finds nobody there")
        away = node.ctl("status", check=False)
        assert away.returncode in (0, 2)
        assert "cannot be reached" in away.stdout and "next attempt" in away.stdout
        took = node.stop()
        assert took < STOP_S
        down = node.ctl("--state", str(node.folder), "status", check=False)
        assert down.returncode == 3
        assert "not running" in down.stdout and "main" in down.stdout
    finally:
        node.stop()  # it still runs when an assertion failed before
        node.start(node.answers)
        world.hub.start(world.hub.answers)
    world.wait(lambda: node.status()["link"]["phase"] == "connected", "the node is back")


def test_sigterm_ends_everything_within_five_seconds(world: World) -> None:
    """Also while a trainer and an evaluator work; and nothing is left running."""
    world.federation("ended", versions=1, steps=400)
    world.join("ended")
    node = world.nodes[0]
    world.wait(lambda: step(node) >= 1, "the node trains")
    pids = [c.pid for s in (node, world.hub) for c in psutil.Process(s.pid).children(recursive=True)]
    assert pids
    assert node.stop() < STOP_S
    assert world.hub.stop() < STOP_S
    assert not [pid for pid in pids if _alive(pid)]
    node.start(node.answers)
    world.hub.start(world.hub.answers)
    world.wait(lambda: step(node) >= 1, "it goes on after the restart")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
