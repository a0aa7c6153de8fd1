"""Evaluations as the hub supervises them: tried again, given up, taken up after a kill, never in the rounds' way.

The evaluator itself (torch) has its own tests; here a stand-in interpreter speaks the worker's channel in its place.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_process import STOP_S
from hub_cast import REPOSITORY, TOML, HubProcess, TestNode, make_parts

from zk0d.durable import write_text

STAND_IN = f"""#!{sys.executable}
import json, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {str(REPOSITORY)!r})
module, job = sys.argv[-2:]
if module != "zk0d.train.evaluator":
    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
sys.argv = [module, job]
from zk0d.errors import DatasetError
from zk0d.worker import run_worker
here = Path(__file__).parent

def main(job, channel):
    with (here / "attempts").open("a") as f:
        f.write(f"{{job['number']}}\\n")
    channel.emit("ready")
    mode = json.loads((here / "mode").read_text()).get(str(job["number"]), "good")
    if mode == "fails":
        raise DatasetError("the held-out dataset is gone", "put it back")
    if mode == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "sleeps":
        publish = Path(job["publish"])
        publish.with_name(f".{{publish.name}}.tmp").mkdir(parents=True)
        while channel.poll(0.05) is None:
            pass
        return {{"finished": False}}
    if mode == "diverged":
        return {{"loss": float("inf"), "datasets": {{}}, "publish": job["publish"], "seconds": 0.1}}
    Path(job["publish"]).mkdir(parents=True)
    (Path(job["publish"]) / "README.md").write_text(json.dumps(job["card"]))
    loss = mode if isinstance(mode, float) else 1.0 / (1 + job["number"])
    held = {{"held": {{"loss": loss, "samples": 9}}}}
    return {{"loss": loss, "datasets": held, "publish": job["publish"], "seconds": 0.1}}

sys.exit(run_worker(main))
"""


class Bench:
    """A hub with the stand-in, one node, and a federation in which every update makes a version."""

    def __init__(self, folder: Path, settings: str = "") -> None:
        self.folder = folder
        folder.mkdir()
        script = folder / "python"
        script.write_text(STAND_IN)
        script.chmod(0o755)
        self.mode({})
        self.hub = HubProcess(folder / "hub", f"python = {json.dumps(str(script))}\nattempts = 2\nretry_s = 0.1\n")
        self.hub.start()
        self.spec = make_parts(folder / "parts")
        toml = TOML.format(nodes=1, versions=0, dtype="bfloat16", deadline_s=600) + settings
        self.hub.ask("federation_create", name="fed", toml=toml, parts=str(folder / "parts"))

    def mode(self, modes: dict[str, str | float]) -> None:
        """Version → what its evaluation does, or the loss it finds."""
        write_text(self.folder / "mode", json.dumps(modes))  # at once: an evaluation may be reading it

    @property
    def attempts(self) -> list[int]:
        path = self.folder / "attempts"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def play(self, versions: int) -> None:
        async def run() -> None:
            node = TestNode(self.folder, "node0")
            await node.enrol(self.hub)
            await node.connect()
            try:
                await node.join("fed")
                for version in range(versions):
                    task = await node.task("fed", version)
                    offer = node.prepare(self.spec, task, node.delta(self.spec, task))
                    await node.give(offer, lambda r, v=version: r["new_version"] == v + 1)  # type: ignore[misc]
            finally:
                await node.close()

        asyncio.run(run())

    @property
    def lines(self) -> list[dict[str, Any]]:
        path = self.hub.folder / "federations" / "fed" / "metrics.jsonl"
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""  # the last line may be half there
        return [json.loads(line) for line in whole.splitlines()]

    def wait_for(self, count: int) -> list[dict[str, Any]]:
        deadline = time.monotonic() + 120
        while len(self.lines) < count:
            assert time.monotonic() < deadline, self.hub.log()
            time.sleep(0.05)
        return self.lines


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "bench")
    try:
        yield made
    finally:
        if made.hub.process is not None and made.hub.process.poll() is None:
            made.hub.kill()


def test_failures_are_bounded_and_the_rounds_go_on(bench: Bench) -> None:
    bench.mode({"0": "fails", "1": "dies", "2": "diverged"})
    bench.play(3)
    lines = bench.wait_for(4)
    assert bench.attempts == [0, 0, 1, 1, 2, 2, 3]
    assert [line["heldout_loss"] for line in lines] == [None, None, None, 0.25]
    assert [line["evaluation"] for line in lines] == ["failed", "failed", "failed", "done"]
    assert "the held-out dataset is gone" in lines[0]["problem"] and "SIGKILL" in lines[1]["problem"]
    assert "held-out loss of version 2 is inf" in lines[2]["problem"]
    shown = bench.hub.ask("versions", name="fed")
    card = json.loads((Path(shown[3]["folder"]) / "README.md").read_text())
    assert card["federation"] == "fed" and card["training"]["local_steps"] == 5 and len(card["history"]) == 3
    assert shown[0]["folder"] == "" and lines[1]["train_loss"][next(iter(lines[1]["train_loss"]))]["last"] == 1.25
    picture = bench.hub.folder / "federations" / "fed" / "chart.png"
    deadline = time.monotonic() + 120
    while not picture.exists():
        assert time.monotonic() < deadline, bench.hub.log()
        time.sleep(0.05)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert bench.hub.stop() < STOP_S


def test_evaluation_cut_off_by_a_kill_or_a_stop_is_run_again(bench: Bench) -> None:
    bench.mode({"1": "sleeps"})
    bench.play(1)
    seen = 0
    for end in (bench.hub.kill, bench.hub.stop):
        deadline = time.monotonic() + 60
        while bench.attempts.count(1) <= seen:
            assert time.monotonic() < deadline, bench.hub.log()
            time.sleep(0.05)
        seen = bench.attempts.count(1)
        took = end()
        assert took is None or took < STOP_S
        assert len(bench.lines) == 1
        bench.hub.start()
    bench.mode({})
    bench.hub.stop()
    bench.hub.start()
    assert [line["heldout_loss"] for line in bench.wait_for(2)] == [1.0, 0.5]
    versions = bench.hub.folder / "federations" / "fed" / "versions"
    assert sorted(p.name for p in versions.iterdir()) == ["0000", "0001"]
    assert bench.hub.stop() < STOP_S


def test_best_version_early_stop_and_retention(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "bench", "[evaluation]\npatience = 2\n[publish]\nkeep_last = 1\n")
    try:
        bench.mode({"0": 2.0, "1": 1.0, "2": "fails", "3": 1.5, "4": 1.25})
        bench.play(4)
        bench.wait_for(5)
        deadline = time.monotonic() + 60
        while (shown := bench.hub.ask("federation_show", name="fed"))["phase"] != "finished":
            assert time.monotonic() < deadline, shown
            time.sleep(0.05)
        assert shown["best_version"] == 1  # two evaluated versions after it were no better; a failed one says nothing
        folders = bench.hub.folder / "federations" / "fed" / "versions"
        assert sorted(p.name for p in folders.iterdir()) == ["0001", "0004"]
        acts = [(a["actor"], a["action"]) for a in bench.hub.ask("audit", all=True)]
        assert ("hub", "federation.finish") in acts
        assert bench.hub.stop() < STOP_S
    finally:
        if bench.hub.process is not None and bench.hub.process.poll() is None:
            bench.hub.kill()
