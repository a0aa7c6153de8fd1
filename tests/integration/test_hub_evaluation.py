"""Evaluations as the hub supervises them: tried again, given up, taken up after a kill, never in the rounds' way.

The evaluator itself (torch) has its own tests; here a stand-in interpreter speaks the worker's channel in its place.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_process import STOP_S
from hub_cast import REPOSITORY, TOML, HubProcess, TestNode, make_parts, until

from zk0d.durable import write_text
from zk0d.hub.admin import Admin
from zk0d.hub.service import Hub

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
    channel.emit("ready")
    if "losses" in job:  # only its folder
        Path(job["publish"]).mkdir(parents=True)
        (Path(job["publish"]) / "README.md").write_text(json.dumps({{**job["card"], "losses": job["losses"]}}))
        return {{"loss": None, "datasets": job["losses"], "publish": job["publish"], "seconds": 0.1}}
    with (here / "attempts").open("a") as f:
        f.write(f"{{job['number']}}\\n")
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
    if job["publish"]:
        Path(job["publish"]).mkdir(parents=True)
        (Path(job["publish"]) / "README.md").write_text(json.dumps(job["card"]))
    loss = mode if isinstance(mode, float) else 1.0 / (1 + job["number"])
    held = {{"held": {{"loss": loss, "samples": 9}}}}
    return {{"loss": loss, "datasets": held, "publish": job["publish"], "seconds": 0.1}}

sys.exit(run_worker(main))
"""


def wait_until(condition: Callable[[], bool], hub: HubProcess) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, hub.log()
        time.sleep(0.05)


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

    def end(self) -> None:
        if self.hub.process is not None and self.hub.process.poll() is None:
            self.hub.kill()

    def mode(self, modes: dict[str, str | float]) -> None:
        """Version → what its evaluation does, or the loss it finds."""
        write_text(self.folder / "mode", json.dumps(modes))  # at once: an evaluation may be reading it

    @property
    def attempts(self) -> list[int]:
        path = self.folder / "attempts"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def card(self, number: int) -> dict[str, Any]:
        """What a version's folder was given to say, waited for."""
        path = self.hub.folder / "federations" / "fed" / "versions" / f"{number:04d}" / "README.md"
        wait_until(lambda: path.exists() and path.read_text().endswith("}"), self.hub)
        return dict(json.loads(path.read_text()))

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "zk0d.hub.main", "--dir", str(self.hub.folder), *arguments],
                              capture_output=True, text=True, cwd=REPOSITORY)  # fmt: skip

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
        wait_until(lambda: len(self.lines) >= count, self.hub)
        return self.lines


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "bench")
    try:
        yield made
    finally:
        made.end()


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
    assert lines[1]["train_loss"][next(iter(lines[1]["train_loss"]))]["last"] == 1.25
    picture = bench.hub.folder / "federations" / "fed" / "chart.png"
    wait_until(picture.exists, bench.hub)
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


def test_a_version_that_could_not_be_evaluated_has_its_folder_and_is_evaluated_when_that_is_mended(
    tmp_path: Path,
) -> None:
    settings = '[evaluation]\ndatasets = ["hf:owner/nowhere"]\n[publish]\nrepo = "us/cubes"\npush = "never"\n'
    bench = Bench(tmp_path / "bench", settings)
    try:
        bench.play(0)
        assert bench.wait_for(1)[0]["evaluation"] == "failed"
        assert bench.card(0)["failed"] and bench.card(0)["losses"] == {} and bench.attempts == []
        wait_until(lambda: not bench.hub.ask("status")["evaluating"], bench.hub)
        assert bench.hub.ask("versions", name="fed")[0]["folder"].endswith("versions/0000")
        dry = bench.command("push", "fed", "--version", "0", "--dry-run")
        assert dry.returncode == 0 and "tag v0000: 1 files" in dry.stdout
        status = bench.command("status")
        assert status.returncode == 2
        assert "version 0 could not be evaluated: see `versions`; `zk0-hub evaluate fed` tries again" in status.stdout

        # [evaluation] holds at once, though [training] waits for version 1.
        file = bench.folder / "new.toml"
        toml = TOML.format(nodes=1, versions=0, dtype="bfloat16", deadline_s=600)
        file.write_text(toml.replace("local_steps = 5", "local_steps = 6") + settings.replace('"hf:owner/nowhere"', ""))
        said = bench.command("federation", "set", "fed", "--config", str(file)).stdout
        assert "evaluation.datasets: ['hf:owner/nowhere'] before, [] at once" in said
        assert "training.local_steps: 5 now, 6 from the next version on" in said
        done = bench.command("evaluate", "fed")
        assert done.stdout == "to be evaluated again: 0; `zk0-hub versions fed` says when it is done\n"
        wait_until(lambda: [line["heldout_loss"] for line in bench.lines] == [1.0], bench.hub)
        assert bench.card(0)["training"]["local_steps"] == 5 and "losses" not in bench.card(0)
        assert bench.command("status").returncode == 0
        for arguments, why in (
            (("fed",), "no evaluation of fed was given up"), (("fed", "7"), "has no version 7, or keeps it no more"),
        ):  # fmt: skip
            refused = bench.command("evaluate", *arguments)
            assert refused.returncode == 64 and why in refused.stderr
        assert bench.hub.stop() < STOP_S
    finally:
        bench.end()


def test_metrics_say_what_is_so_when_an_old_version_is_evaluated_again(bench: Bench) -> None:
    """The line of a version that waits again goes, with those after it, and all come back; also over a kill. One that
    failed is no trouble any more once a later one is evaluated."""
    bench.mode({"1": "fails"})
    bench.play(2)
    assert [line["evaluation"] for line in bench.wait_for(3)] == ["done", "failed", "done"]
    wait_until(lambda: bench.hub.ask("status")["health"] == [], bench.hub)
    bench.mode({"1": "sleeps"})
    assert bench.hub.ask("evaluate", name="fed")["versions"] == [1]
    assert [line["version"] for line in bench.lines] == [0]
    again = bench.command("evaluate", "fed", "1")
    assert again.returncode == 64 and "version 1 of fed waits for its evaluation already" in again.stderr
    bench.hub.kill()
    bench.mode({"1": 0.25})
    bench.hub.start()
    assert [line["heldout_loss"] for line in bench.wait_for(3)] == [1.0, 0.25, 1 / 3]
    # One that had a loss keeps it until there is another.
    bench.mode({"0": "fails"})
    bench.hub.ask("evaluate", name="fed", version=0)
    assert bench.hub.ask("federation_show", name="fed")["best_version"] == 1
    wait_until(lambda: len(bench.lines) == 3, bench.hub)
    assert [line["heldout_loss"] for line in bench.lines] == [None, 0.25, 1 / 3]
    assert bench.hub.stop() < STOP_S


def test_a_restored_hub_makes_its_folders_again(bench: Bench) -> None:
    bench.mode({"1": "fails"})
    bench.play(2)
    before = bench.wait_for(3)
    bench.card(1)
    backup = bench.folder / "backup"
    assert bench.command("backup", str(backup)).returncode == 0
    assert bench.hub.stop() < STOP_S
    attempts = bench.attempts
    shutil.rmtree(bench.hub.folder)
    assert bench.command("restore", str(backup)).returncode == 0
    bench.hub.start()
    cards = [bench.card(n) for n in range(3)]
    assert [card["losses"] for card in cards] == [line["datasets"] for line in before]
    assert [card["failed"] for card in cards] == [False, True, False]
    assert bench.lines == before and bench.attempts == attempts, "nothing is evaluated again"
    assert bench.hub.stop() < STOP_S


def test_a_folder_that_cannot_be_made_is_tried_a_few_times_and_said(bench: Bench) -> None:
    bench.play(0)
    bench.wait_for(1)
    assert bench.hub.stop() < STOP_S
    folder = bench.hub.folder / "federations" / "fed" / "versions"
    shutil.rmtree(folder)
    folder.write_text("in the way")
    bench.hub.start()
    wait_until(lambda: len(bench.hub.events("a version's folder cannot be made")) == 2, bench.hub)
    (told,) = bench.hub.ask("status")["health"]
    assert told.startswith("federation fed: version 0 has no folder: ") and "`zk0-hub evaluate fed` tries" in told
    folder.unlink()
    said = bench.command("evaluate", "fed")
    assert said.stdout.startswith("the folders that could not be made are tried again")
    assert bench.card(0)["losses"]
    wait_until(lambda: bench.hub.ask("status")["health"] == [], bench.hub)
    assert len(bench.hub.events("a version's folder cannot be made")) == 2
    assert bench.hub.stop() < STOP_S


def test_a_disk_without_room_for_a_folder_puts_it_off(bench: Bench) -> None:
    """It counts as no attempt, and is told; a version is evaluated meanwhile. What an interruption left is deleted."""
    bench.play(1)
    bench.wait_for(2)
    assert bench.hub.stop() < STOP_S
    federations = bench.hub.folder / "federations"
    versions = federations / "fed" / "versions"
    shutil.rmtree(versions / "0000")
    left = [versions / ".0007.tmp", versions / ".0001.99.old", federations / ".gone.0badcafe.removed"]
    for folder in left:
        folder.mkdir()

    async def run() -> None:
        hub = Hub(bench.hub.folder)
        hub.blobs._reserve = 1 << 60
        admin = Admin(hub)
        await hub.start()
        try:
            await until(lambda: bool(hub.evaluations.folders.problem("fed")), "the folder is put off", 60)
            (told,) = (await admin.status({}, None))["health"]  # type: ignore[arg-type]
            assert "version 0 has no folder: " in told and "free some space: it is then made by itself" in told
            assert not any(folder.exists() for folder in left)
            shutil.rmtree(versions / "0001")
            await hub.evaluations.again("fed", 1, "admin:me")
            await until(lambda: hub.ledger.version("fed", 1)["evaluation"] == "done", "it is evaluated", 60)  # type: ignore[index]
            await until(lambda: "version 1 has" in hub.evaluations.folders.problem("fed"), "and has no folder", 60)
            assert bench.attempts == [0, 1, 1] and list(versions.iterdir()) == []
            hub.blobs._reserve = 0
            await until(lambda: sorted(p.name for p in versions.iterdir()) == ["0000", "0001"], "both are made", 60)
            await until(lambda: not hub.evaluations.folders.problem("fed"), "it is told no more", 60)
            assert hub.evaluations.folders._tried == {}
        finally:
            await hub.close()

    asyncio.run(run())


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
        bench.end()
