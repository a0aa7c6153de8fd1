"""A small world for end-to-end tests: a real hub, real nodes, real TLS, drawn datasets, tiny models.

Built from the demo's cast (zk0d/demo/cast.py): what is tested is what people run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drawn_dataset import make_dataset
from hub_cast import free_port

from zk0d.demo.cast import Hub, Node

CAMERAS = {"front": (32, 32)}


class World:
    """Context manager. `federation` makes one, `join` lets nodes take part, `wait` waits on a condition with a deadline."""

    def __init__(self, folder: Path, nodes: int = 2) -> None:
        self.folder = folder
        self.hub = Hub(folder / "hub")
        self.nodes = [Node(f"n{i}", folder / f"n{i}") for i in range(nodes)]
        self.heldout = folder / "heldout"

    def __enter__(self) -> World:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for server in (*self.nodes, self.hub):
            server.kill()

    def _build(self) -> None:
        make_dataset(self.heldout, episodes=2, frames=24, cameras=("front",), height=32, width=32, seed=99)
        self.hub.admin("init", "--listen", f"127.0.0.1:{free_port()}")
        self.hub.start(self.hub.answers)
        for index, node in enumerate(self.nodes):
            root = self.folder / "data" / f"d{index}"
            make_dataset(root, episodes=3, frames=24, cameras=("front",), height=32, width=32, seed=index)
            node.configure("virtual:Touch", "expert", CAMERAS)
            node.start(node.answers)
            node.ctl("enroll", self.invite())
            node.ctl("dataset", "add", f"local:{root}")

    def invite(self) -> str:
        return str(json.loads(self.hub.admin("invite", "--json"))["token"])

    def federation(self, name: str, *, versions: int = 1, steps: int = 10, lr: float = 1e-3, **rounds: float) -> None:
        settings = {"min_nodes": len(self.nodes), "target": len(self.nodes), "quorum": 1, "deadline_s": 600.0} | rounds
        text = f"""[model]
policy = "smolvla"
preset = "tiny"
[model.cameras]
front = [32, 32]
[training]
local_steps = {steps}
batch_size = 4
lr = {lr}
[rounds]
versions = {versions}
{chr(10).join(f"{k} = {v}" for k, v in settings.items())}
[evaluation]
datasets = ["local:{self.heldout}"]
max_samples = 32
"""
        config = self.folder / f"{name}.toml"
        config.write_text(text)
        self.hub.admin("federation", "create", name, "--config", str(config))

    def join(self, name: str) -> None:
        for node in self.nodes:
            node.ctl("federation", "join", name)

    def until_version(self, name: str, number: int, timeout_s: float = 240) -> list[dict[str, Any]]:
        """Until version `number` is evaluated; the federation's metrics lines."""
        self.wait(lambda: any(v["version"] == number for v in self.hub.versions(name)), f"version {number}", timeout_s)
        return self.hub.versions(name)

    def wait(self, true: Callable[[], Any], what: str, timeout_s: float = 120) -> Any:
        """Until `true()` is; fails with `what` and the ends of the logs after `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        while not (found := true()):
            if time.monotonic() > deadline:
                ends = "\n".join(f"== {s.log}\n{s.log.read_text()[-1500:]}" for s in (self.hub, *self.nodes))
                raise AssertionError(f"not within {timeout_s} s: {what}\n{ends}")
            time.sleep(0.1)
        return found
