"""What bench/interleave.py plays on: a hub, a node with a virtual arm and two 640×480 cameras, and its trainer."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from zk0d.control import call
from zk0d.demo.cast import Hub, Node, free_port

FEDERATION = """
[model]
policy = "{policy}"
preset = "tiny"
fps = 30
dtype = "float32"
units = "degrees"
[model.cameras]
front = [96, 96]
wrist = [96, 96]
[training]
local_steps = {steps}
batch_size = {batch}
lr = 1e-4
mu = 0.01
[rounds]
min_nodes = 1
target = 1
quorum = 1
versions = 3
"""


def until(condition: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)
    return found


class Stage:
    """The hub, the node, and its trainer. `begun` holds for every recording when its first frame was taken."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.hub, self.node = folder, Hub(folder / "hub"), Node("node", folder / "node")
        self._takes = 0

    def start(self) -> None:
        self.hub.admin("init", "--listen", f"127.0.0.1:{free_port()}")
        self.hub.start(self.hub.answers)
        train = ['device = "cpu"', f"threads = {os.cpu_count() or 2}"]
        self.node.configure("virtual:Touch", "expert", {"front": (480, 640), "wrist": (480, 640)}, train)
        with (self.node.folder / "zk0d.toml").open("a") as f:
            f.write('[link]\nmax_upload = "16 kB/s"\n')  # an update is under way for as long as we need one
        self.node.start(self.node.answers)
        self.node.ctl("enroll", json.loads(self.hub.admin("invite", "--json"))["token"])

    def join(self, name: str, policy: str, steps: int, batch: int) -> None:
        config = self.folder / f"{name}.toml"
        config.write_text(FEDERATION.format(policy=policy, steps=steps, batch=batch))
        self.hub.admin("federation", "create", name, "--config", str(config))
        self.node.ctl("federation", "join", name)

    def upload(self) -> None:
        """Two short trainings: the first update goes to the hub at once, at the cost of the second's, which then waits
        for most of a minute at the slowest rate there is."""
        self.join("upload", "act", 1, 2)
        until(lambda: self.status()["receipts"] and self.status()["updates_waiting"], "an update waits for the hub")

    def train(self) -> None:
        """Join, and train at once, whatever else the machine does."""
        self.join("bench", "smolvla", 1_000_000, 16)
        self.node.ctl("train", "now", "--for", "1d")

    def steps(self) -> int:
        training = self.status()["training"]
        return int(training["progress"].get("step", 0)) if training["trainer"] == "running" else 0

    def status(self) -> dict[str, Any]:
        return dict(call(self.node.socket, {"op": "status"}))

    def trainer(self) -> psutil.Process | None:
        for child in psutil.Process(self.node.pid).children():
            with contextlib.suppress(psutil.Error):  # it has just ended
                if "zk0d.train.trainer" in child.cmdline():
                    return child
        return None

    def record(self, seconds: float, *, train: bool = False) -> tuple[Path, dict[str, float]]:
        """One take in real time through the daemon → the dataset's folder, and seconds from the request to "ready"
        (devices and dataset open) and to "take" (the first frame is taken then)."""
        self._takes += 1
        name, began, at = f"take{self._takes}", time.perf_counter(), dict[str, float]()
        request = {"op": "record", "dataset": name, "task": "touch", "episodes": 1, "episode_s": seconds,
                   "keep": "all", "train": train, "pace": "real"}  # fmt: skip

        def on_event(event: dict[str, Any]) -> None:
            at.setdefault(str(event.get("event")), time.perf_counter() - began)

        call(self.node.socket, request, on_event, timeout=300)
        return self.node.folder / "datasets" / name, at

    def close(self) -> None:
        for server in (self.node, self.hub):
            server.kill()
