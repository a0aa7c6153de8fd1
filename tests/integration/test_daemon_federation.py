"""One node and a real hub, both processes: approval, a misfit put right, training interrupted in every way, a receipt.

The whole life of one update, in the order an operator would meet it; the demo tests many nodes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from daemon_process import STOP_S, Daemon, loads, over, wait_until
from hub_cast import HubProcess
from status_schema import check

from zk0d.control import call

CANARY = "canary-of-this-home"
FEDERATION = """
[model]
policy = "act"
preset = "tiny"
dtype = "float32"
[model.cameras]
front = [64, 64]
[training]
local_steps = 60
batch_size = 4
[rounds]
min_nodes = 1
target = 1
quorum = 1
deadline_s = 600
versions = 1
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    running = HubProcess(tmp_path / "hub", runtime="")
    running.start()
    yield running
    running.stop()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path / "node") as running:
        yield running


def enrol_by_approval(hub: HubProcess, node: Daemon) -> None:
    port = hub.ask("status")["port"]
    ca = hub.ask("status")["ca_fingerprint"]
    asking = node.begin("enroll", f"127.0.0.1:{port}", "--ca-fingerprint", ca)
    waiting = wait_until(lambda: [n for n in hub.ask("nodes") if n["state"] == "pending"], "the node asks")
    hub.ask("approve", node=waiting[0]["node"])
    out = asking.communicate(timeout=120)[0]
    assert asking.returncode == 0 and waiting[0]["phrase"] in out and waiting[0]["node"] in out, out
    assert node.ctl("status", "--wait", "connected").code == 0


def draw(root: Path, task: str) -> None:
    """A small dataset whose camera is called mycam; by another process, because LeRobot's writer leaves threads."""
    code = (
        "import sys, pathlib, drawn_dataset as d\n"
        "d.make_dataset(pathlib.Path(sys.argv[1]), episodes=2, frames=20, cameras=('mycam',), task=sys.argv[2])"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(root), task], check=True, cwd=Path(__file__).parent.parent, capture_output=True
    )


def trainer(node: Daemon) -> psutil.Process | None:
    return node.worker("zk0d.train.trainer")


def held(node: Daemon) -> list[str]:
    """Why transfers were held, oldest first; what that does is in test_link_held.py."""
    whole = (node.state / "log" / "zk0d.log").read_text().rpartition("\n")[0]
    log = [json.loads(line) for line in whole.splitlines()]
    return [entry["why"] for entry in log if entry["event"] == "transfers are held"]


def stepping(node: Daemon) -> psutil.Process | None:
    """The trainer, once it has taken steps."""
    progress = node.status()["training"]["progress"]
    return trainer(node) if progress.get("step", 0) > 0 and "loss" in progress else None


@pytest.mark.slow
@pytest.mark.timeout(900)  # torch is started again and again
@pytest.mark.needs("torch", "lerobot")
def test_life_of_an_update(hub: HubProcess, node: Daemon, tmp_path: Path) -> None:
    call(hub.folder / "admin.sock", {"op": "federation_create", "name": "pick", "toml": FEDERATION}, timeout=180)
    enrol_by_approval(hub, node)
    assert "pick  gathering" in node.ctl("federation", "list").out
    assert node.ctl("federation", "join", "pick").out == "pick: joining (waits for a dataset to train on)\n"

    # A dataset whose camera has another name: nothing is trained, and what to do is said.
    root = tmp_path / CANARY
    draw(root, f"task {CANARY}")
    add = ("dataset", "add", str(root), "--name", CANARY, "--units", "degrees", "--task", f"task {CANARY}")
    assert node.ctl(*add).code == 0
    wait_until(lambda: node.status()["state"]["rule"] == "blocked", "no training on what does not fit")
    wait_until(lambda: "--rename mycam=front" in node.ctl("status").out, "the misfit is explained")
    assert node.ctl("status").code == 2 and node.ctl("dataset", "show", CANARY).code == 2
    assert node.ctl(*add, "--rename", "mycam=front").code == 0
    assert node.ctl("dataset", "show", CANARY).code == 0

    # The trainer dies: it is started again, and that is visible.
    worker = wait_until(lambda: stepping(node), "it trains", 120)
    check(node.status())
    worker.kill()
    wait_until(lambda: node.status()["training"]["task"]["deaths"] == 1, "the death is counted")
    assert "the trainer died 1 time" in node.ctl("status").out

    # A person records: the trainer is stopped in place at once, and goes on afterwards.
    worker = wait_until(lambda: stepping(node), "it trains again", 120)
    session = node.begin("record", "--task", CANARY, "--dataset", "rec", "--episodes", "5", "--no-train")
    wait_until(lambda: node.status()["session"], "the session begins")
    assert node.status()["training"]["trainer"] in ("frozen", "none")
    wait_until(lambda: worker.status() == psutil.STATUS_STOPPED, "it stands still")  # which SIGSTOP only asks for
    wait_until(lambda: held(node)[-1:] and held(node)[-1].startswith("recording by "), "transfers are held")
    assert node.ctl("record", "stop").code == 0
    session.communicate(timeout=120)
    wait_until(lambda: worker.status() != psutil.STATUS_STOPPED, "it goes on")

    # The daemon dies, then is told to end: the task goes on from the checkpoint.
    node.kill()
    wait_until(lambda: over(worker), "its trainer leaves")
    node.start()
    wait_until(lambda: trainer(node), "training goes on")

    # The hub is away when the training ends, and the node dies before it comes back.
    hub.kill()
    wait_until(lambda: node.status()["updates_waiting"], "an update waits", 180)
    assert "waits for the hub's receipt" in node.ctl("status").out
    node.kill()
    assert loads(node.ctl("status", "--json"))["updates_waiting"]
    hub.start()
    node.start()
    wait_until(
        lambda: node.status()["receipts"] == 1 and node.status()["last_receipt"]["new_version"] == 1, "the receipt"
    )
    done = node.ctl("status", "--wait", "version=1")
    assert done.code == 0 and "merged into version 1" in done.out, done
    check(node.status())
    assert [u["updates"] for u in hub.ask("versions", name="pick") if u["version"] == 1] == [1]

    # The version comes out as a folder; nothing of this home is on the hub.
    assert node.ctl("model", "export", "latest", str(tmp_path / "out"), timeout=180).code == 0
    assert {"config.json", "model.safetensors", "README.md"} <= {p.name for p in (tmp_path / "out").iterdir()}
    for path in hub.folder.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path
    assert node.terminate() < STOP_S


def test_refused_by_the_wrong_hub(hub: HubProcess, node: Daemon) -> None:
    port = hub.ask("status")["port"]
    ran = node.ctl("enroll", f"127.0.0.1:{port}", "--ca-fingerprint", "sha256:" + "0" * 64)
    assert ran.code == 1 and "fingerprint" in ran.err
    assert node.status()["hub"] is None
