"""The play of `make demo`: enrol, record, train, merge, evaluate, roll out, and say what came of it.

Run as `python -m zk0d.demo`; see docs/demo.md for what each step shows.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zk0d import durable
from zk0d.demo.cast import Hub, Node, free_port
from zk0d.demo.report import Board, summarise, table
from zk0d.errors import UsageError, Zk0Error

MARKER = ".zk0-demo"
FEDERATION = "demo"
CAMERAS = {"front": (96, 96)}
OPERATORS = {
    "alice": ("Touch", "Touch the cube"),
    "bob": ("PickLift", "Pick up the cube and lift it"),
    "carol": ("PickAndPlace", "Put the cube on the disc"),
}
TRAINING = {
    "smolvla": {"local_steps": 80, "batch_size": 8, "lr": 1e-3, "mu": 0.01},
    "act": {"local_steps": 80, "batch_size": 8, "lr": 1e-4, "mu": 0.01},
}


def main(argv: list[str] | None = None) -> int:
    """Entry point. Exit status: 0 when a merged policy came out, else 1 (64: usage)."""
    options = parse(argv)
    try:
        with Demo(options, Board()) as demo:
            demo.play()
    except Zk0Error as error:
        print(f"\ndemo: {error.message}\n{error.hint}".rstrip(), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ndemo: stopped; everything it started has ended", file=sys.stderr)
        return 130
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.splitlines()[0])
    parser.add_argument("--policy", choices=sorted(TRAINING), default="smolvla")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for everything the demo leaves")
    parser.add_argument("--episodes", type=int, default=5, help="episodes each operator records (default 5)")
    parser.add_argument("--versions", type=int, default=3, help="merges to wait for (default 3)")
    parser.add_argument("--steps", type=int, help="local steps per update")
    parser.add_argument("--lr", type=float, help="learning rate on the nodes")
    parser.add_argument("--nodes", type=int, choices=(1, 2, 3), default=3, help="operators (default 3)")
    return parser.parse_args(argv)


def fresh(out: Path) -> Path:
    """An empty `out`. What an earlier demo left there is removed; anything else is never touched (UsageError)."""
    out = out.resolve()
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise UsageError(
                f"{out} is not empty and was not made by the demo", "choose another: make demo DEMO_OUT=DIR"
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
    return out


class Demo:
    """The stage: starts the cast, plays the steps, and ends every process it started, whatever happens."""

    def __init__(self, options: argparse.Namespace, board: Board) -> None:
        self.options = options
        self.board = board
        self.out = fresh(options.out)
        self.hub = Hub(self.out / "hub")
        self.nodes = {name: Node(name, self.out / "nodes" / name) for name in list(OPERATORS)[: options.nodes]}
        self.bench = Node("maintainer", self.out / "heldout")
        self.seconds: dict[str, float] = {}
        self.dropped: list[str] = []
        self._ended = threading.Event()

    def __enter__(self) -> Demo:
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        for server in (*self.nodes.values(), self.bench, self.hub):
            try:
                server.stop()
            except Zk0Error as error:
                self.board.say("demo", str(error))

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[None]:
        """One timed act of the play."""
        self.board.title(title)
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)

    def play(self) -> None:
        began = time.monotonic()
        with self.step("start", "A hub, and three operators who enrol with it over TLS"):
            self.start()
        with self.step(
            "record", "Each operator records on their own arm; the maintainer records what versions are judged on"
        ):
            self.record()
        with self.step("train", "The nodes train and exchange; the hub merges and evaluates"):
            self.join()
            self.wait_for_versions()
        with self.step("use", "The policy comes out: export, then a rollout on an arm"):
            policy = self.export()
            rollout = self.rollout()
        self.seconds["total"] = round(time.monotonic() - began, 1)
        self.report(policy, rollout)

    # -- acts ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        port = free_port()
        self.hub.admin("init", "--listen", f"127.0.0.1:{port}", "--name", "demo hub")
        self.hub.start(self.hub.answers)
        self.board.say("hub", f"listens on 127.0.0.1:{port}, TLS 1.3 with client certificates")
        for (task, _), node in zip(OPERATORS.values(), self.nodes.values(), strict=False):
            node.configure(f"virtual:{task}", "expert", CAMERAS)
        self.bench.configure("virtual:Touch", "expert", CAMERAS)
        self.in_parallel([functools.partial(n.start, n.answers) for n in (*self.nodes.values(), self.bench)])
        for name, node in self.nodes.items():
            token = json.loads(self.hub.admin("invite", "--label", name, "--json"))["token"]
            node.ctl("enroll", token)
            self.board.say(name, f"enrolled: {node.status()['hub']['node_id']}")

    def record(self) -> None:
        """Operators and maintainer at the same time, as in life."""
        acts: list[Callable[[], None]] = [self.create_federation]
        for index, (name, node) in enumerate(self.nodes.items()):
            acts.append(functools.partial(self.record_on, node, name, OPERATORS[name], 1000 * index))
        self.in_parallel(acts)

    def create_federation(self) -> None:
        """Held-out episodes of every task (other seeds than the operators'), then the federation that uses them."""
        for index, name in enumerate(self.nodes):
            task = OPERATORS[name]
            self.record_on(
                self.bench, f"heldout-{task[0].lower()}", task, 50_000 + 1000 * index, episodes=2, keep="--no-train"
            )
        settings = TRAINING[self.options.policy] | {
            k: v for k, v in (("local_steps", self.options.steps), ("lr", self.options.lr)) if v is not None
        }
        datasets = [f"local:{self.bench.folder}/datasets/heldout-{OPERATORS[n][0].lower()}" for n in self.nodes]
        config = self.out / "federation.toml"
        durable.write_text(config, federation_toml(self.options, settings, datasets))
        self.hub.admin("federation", "create", FEDERATION, "--config", str(config))
        self.board.say(
            "hub", f"federation '{FEDERATION}': {self.options.policy}, {settings['local_steps']} local steps per update"
        )

    def record_on(
        self, node: Node, dataset: str, task: tuple[str, str], seed: int, episodes: int = 0, keep: str = ""
    ) -> None:
        """`zk0ctl record` until the dataset has its episodes; run again if the daemon went away in between."""
        wanted = episodes or self.options.episodes
        arguments = ["record", "--dataset", dataset, "--task", task[1], "--until", str(wanted), "--seed", str(seed)]
        arguments += ["--follower", f"virtual:{task[0]}"] + ([keep] if keep else [])
        for _ in range(5):
            status = node.follow(*arguments, on_line=functools.partial(self._recorded, node))
            if status != 3:
                break
            self._ended.wait(1.0)
        if status:
            raise Zk0Error(f"{node.name}: zk0ctl record ended with status {status}", f"see {node.log}")

    def _recorded(self, node: Node, line: str) -> None:
        self.board.say(node.name, line, faint=True)
        if line.startswith("discarded"):
            self.dropped.append(f"{node.name}: {line}")

    def join(self) -> None:
        for name, node in self.nodes.items():
            node.ctl("federation", "join", FEDERATION)
            self.board.say(name, f"joined '{FEDERATION}'")

    def wait_for_versions(self, timeout_s: float = 900) -> None:
        """Until the last version is evaluated; says each new one and, in between, what everybody does."""
        seen = 0
        deadline = time.monotonic() + timeout_s
        while seen <= self.options.versions:
            for line in self.hub.versions(FEDERATION)[seen:]:
                seen += 1
                loss = "not known" if line["heldout_loss"] is None else f"{line['heldout_loss']:.4f}"
                text = f"version {line['version']}: {line['updates']} updates merged, held-out loss {loss}"
                self.board.say("hub", text, strong=True)
            if seen > self.options.versions:
                break
            if time.monotonic() > deadline:
                raise Zk0Error(f"only {seen - 1} versions after {timeout_s:.0f} s", f"see the logs in {self.out}")
            for name, node in self.nodes.items():
                self.board.change(name, str(node.status().get("state", {}).get("sentence", "does not answer")))
            self._ended.wait(2.0)

    def export(self) -> Path:
        node = next(iter(self.nodes.values()))
        number = self.options.versions
        self.wait_until_held(node, number)
        folder = self.out / "policy"
        node.ctl("model", "export", str(number), str(folder))
        self.board.say(node.name, f"exported version {number} to {folder}")
        return folder

    def wait_until_held(self, node: Node, number: int, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            held = json.loads(node.ctl("model", "list", "--json").stdout)
            if any(m["version"] == number and m["fetched"] for m in held):
                return
            if time.monotonic() > deadline:
                raise Zk0Error(
                    f"{node.name} has not received version {number} after {timeout_s:.0f} s", f"see {node.log}"
                )
            self._ended.wait(0.5)

    def rollout(self) -> Path:
        node = next(iter(self.nodes.values()))
        folder = self.out / "rollout"
        node.follow(
            "rollout", "--model", str(self.options.versions), "--episodes", "1", "--max-s", "6", "--out", str(folder),
            on_line=lambda line: self.board.say(node.name, line, faint=True),
        )  # fmt: skip
        if not (folder / "rollout.mp4").exists():
            raise Zk0Error("the rollout left no video", f"see {node.log}")
        return folder

    # -- the end ---------------------------------------------------------------------------------------------------

    def report(self, policy: Path, rollout: Path) -> None:
        lines = self.hub.versions(FEDERATION)
        chart = self.out / "chart.png"
        source = self.hub.folder / "federations" / FEDERATION / "chart.png"
        if source.exists():
            shutil.copy(source, chart)
        summary = summarise(self.nodes, lines, policy, self.seconds) | {"takes_not_kept": self.dropped}
        durable.write_json(self.out / "summary.json", summary)
        self.board.title("What came of it")
        print(table(lines))
        print(
            f"takes    {summary['episodes']} kept, {len(self.dropped)} not (the simulator did not call them a success)"
        )
        for what, where in (("policy", policy), ("chart", chart), ("video", rollout / "rollout.mp4")):
            print(f"{what:<8} {where}")
        print("seconds  " + ", ".join(f"{k} {v:.0f}" for k, v in self.seconds.items()))
        name, node = next(iter(self.nodes.items()))
        print(f"\n$ zk0ctl status        # {name}")
        print(node.ctl("status", check=False).stdout)

    def in_parallel(self, acts: list[Callable[[], Any]]) -> None:
        """Run all; raise the first error after all have ended."""
        with ThreadPoolExecutor(len(acts)) as pool:
            for future in [pool.submit(act) for act in acts]:
                future.result()


def federation_toml(options: argparse.Namespace, settings: dict[str, float], datasets: list[str]) -> str:
    """The federation's configuration, as a maintainer would write it."""
    cameras = "\n".join(f"{name} = [{h}, {w}]" for name, (h, w) in CAMERAS.items())
    training = "\n".join(f"{k} = {v}" for k, v in settings.items())
    quoted = ", ".join(json.dumps(d) for d in datasets)
    return f"""[model]
policy = "{options.policy}"
preset = "tiny"
fps = 30
units = "degrees"
dtype = "bfloat16"
[model.cameras]
{cameras}
[training]
{training}
[rounds]
min_nodes = {options.nodes}
target = {options.nodes}
quorum = {max(1, options.nodes - 1)}
deadline_s = 300
versions = {options.versions}
[evaluation]
datasets = [{quoted}]
max_samples = 256
"""


if __name__ == "__main__":
    sys.exit(main())
