"""The training workers as processes: version 0, local steps, checkpoints and kills, evaluation, on real files."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from daemon_process import STOP_S
from drawn_dataset import make_dataset
from train_jobs import Bench

from zk0d.errors import PayloadError, WorkerError
from zk0d.model.leaves import name_of_file
from zk0d.model.payload import Payload, write_exchange
from zk0d.supervise import Worker
from zk0d.train import weights
from zk0d.train.evaluator import evaluate, spread
from zk0d.train.interrupts import Interrupts
from zk0d.train.policy import build
from zk0d.train.trainer import Settings


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("jobs") / "drawn", episodes=3, frames=30)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("smolvla"), "smolvla")


@pytest.fixture(scope="module")
def undisturbed(bench: Bench, dataset: Path) -> dict[str, Any]:
    """A run that nothing disturbs: what every other run of the same job must equal."""
    events: list[dict[str, Any]] = []
    result = bench.run("trainer", bench.training(dataset, "undisturbed"), lambda _, event: events.append(event))
    return {**result, "events": events, "bytes": Path(result["payload"]).read_bytes()}


def test_version_0_is_what_the_spec_says(bench: Bench) -> None:
    made, spec = bench.made, bench.spec
    assert made["base_digest"] == spec.base_digest == name_of_file(bench.folder / "base.safetensors")
    assert made["exchange_digest"] == name_of_file(bench.version)
    with Payload.open(bench.version) as version, Payload.open(bench.folder / "base.safetensors") as base:
        version.check_against(spec)
        assert made["exchange_parameters"] == sum(e.elements for e in version.entries.values())
        assert made["parameters"] == sum(e.elements for e in base.entries.values())
        frozen = base.entries.keys() - version.entries.keys()
        assert any("vision_model" in n for n in frozen) and not any("lm_expert" in n for n in frozen)
    assert 0.3 < made["exchange_parameters"] / made["parameters"] < 0.5


def test_version_0_is_the_same_again(bench: Bench, tmp_path: Path) -> None:
    assert Bench(tmp_path, "smolvla").made == bench.made


def test_training_lowers_the_loss_and_reports(bench: Bench, undisturbed: dict[str, Any]) -> None:
    assert undisturbed["finished"] and (undisturbed["steps"], undisturbed["samples"]) == (30, 90)
    assert undisturbed["loss_last"] < 0.8 * undisturbed["loss_first"]
    assert undisturbed["digest"] == name_of_file(Path(undisturbed["payload"]))
    with Payload.open(Path(undisturbed["payload"])) as payload:
        payload.check_against(bench.spec)
        payload.check_finite()
        assert payload.norm() > 0
    kinds = [e["event"] for e in undisturbed["events"]]
    assert kinds[0] == "ready" and kinds[-1] == "done" and kinds.count("progress") >= 1
    last = [e for e in undisturbed["events"] if e["event"] == "progress"][-1]
    assert (last["step"], last["steps"]) == (30, 30) and last["samples_per_s"] > 0
    assert kinds.count("progress") <= 2 + 5 * undisturbed["seconds"]


def test_a_killed_run_goes_on_to_the_same_bytes(bench: Bench, dataset: Path, undisturbed: dict[str, Any]) -> None:
    seed = int(os.environ.get("ZK0_TEST_SEED", time.time_ns() % 100_000))
    print(f"ZK0_TEST_SEED={seed}")
    rng = random.Random(seed)
    job = bench.training(dataset, "killed", checkpoint_every_s=0)
    resumed: list[int] = []

    step = rng.randrange(5, 18)  # well before the last one, which a busy machine may tell of late

    def kill(worker: Worker, event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint" and event["step"] >= step:
            time.sleep(rng.random() * 0.02)  # somewhere inside a step or a save
            os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(WorkerError, match="SIGKILL"):
        bench.run("trainer", job, kill)
    result = bench.run("trainer", job, lambda _, e: resumed.append(e["step"]) if e["event"] == "checkpoint" else None)
    assert result["finished"] and resumed[0] > step, "it began anew"
    assert Path(result["payload"]).read_bytes() == undisturbed["bytes"]
    assert (result["loss_first"], result["loss_last"]) == (undisturbed["loss_first"], undisturbed["loss_last"])


def test_asked_to_leave_it_saves_and_goes_on_later(bench: Bench, dataset: Path, undisturbed: dict[str, Any]) -> None:
    job = bench.training(dataset, "left")
    done = 0
    for command in ("yield", "stop", "orphaned"):
        asked: list[float] = []

        def ask(worker: Worker, event: dict[str, Any], command: str = command, asked: list[float] = asked) -> None:
            if event["event"] == "progress" and not asked:
                asked.append(time.monotonic())
                worker.send(command)

        left = bench.run("trainer", job, ask)
        assert time.monotonic() - asked[0] < 30  # four seconds and the process's end, on a machine that does much else
        assert left["finished"] is False and left["reason"] == command and done < left["steps"] < 30
        done = left["steps"]
    assert bench.run("trainer", job)["digest"] == undisturbed["digest"]


class Told:
    """A channel on which a supervisor asks for the end as soon as some steps are done."""

    def __init__(self, at: int) -> None:
        self.at, self.events = at, list[dict[str, Any]]()
        self.interrupts = Interrupts(self)  # type: ignore[arg-type]

    def emit(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, **fields})
        if event == "progress" and fields["step"] >= self.at:
            self.interrupts.wanted = "conclude"


def test_concluded_it_ends_with_the_steps_it_has(bench: Bench, dataset: Path, tmp_path: Path) -> None:
    run, _ = bench.open_run(dataset, Settings(1000, 3, 1e-3, 0.01, 7))
    run.identify("sha256:0", "0")
    told = Told(2)
    assert run.train(told, told.interrupts, tmp_path, 3600.0) == ""  # type: ignore[arg-type]
    assert 2 <= run.step < 1000 and len(run.losses) == run.step
    assert any(values.any() for values in run.delta().values())


def test_stop_while_it_still_loads_ends_it_at_once(bench: Bench, dataset: Path) -> None:
    async def scene() -> dict[str, Any]:
        job = bench.training(dataset, "early")
        work, said = bench.folder / "w", list[dict[str, Any]]()
        worker = await Worker.start(sys.executable, "zk0d.train.trainer", job, work, bench.folder / "l", said.append)
        began = time.monotonic()
        worker.send("stop")
        result = await worker.wait()
        assert [e["event"] for e in said] == ["done"], "it was not ready yet"
        assert time.monotonic() - began < STOP_S
        return result

    assert asyncio.run(scene()) == {"finished": False, "reason": "stop"}


def test_a_learning_rate_of_zero_changes_nothing(bench: Bench, dataset: Path) -> None:
    run, _ = bench.open_run(dataset, Settings(3, 8, 0.0, 0.01, 1))
    run.policy.train()
    for _ in range(3):
        assert run.one_step() > 0
    assert all(not values.any() for values in run.delta().values())
    run, _ = bench.open_run(dataset, Settings(3, 8, 1e-3, 0.01, 1))
    run.policy.train()
    run.one_step()
    assert any(values.any() for values in run.delta().values())


def test_evaluation_is_deterministic_and_sees_what_was_learned(
    bench: Bench, dataset: Path, undisturbed: dict[str, Any]
) -> None:
    with Payload.open(Path(undisturbed["payload"])) as delta, Payload.open(bench.version) as version:
        trained = bench.folder / "trained.safetensors"
        write_exchange(trained, bench.spec, lambda n: np.asarray(version.float32(n) + delta.float32(n), np.float32))
    twice = bench.evaluation(dataset)
    twice["datasets"].append({**twice["datasets"][0], "name": "again"})
    before = bench.run("evaluator", twice)
    after = bench.run("evaluator", bench.evaluation(dataset, trained))
    assert before["datasets"]["again"] == before["datasets"]["held-out"] == {"loss": before["loss"], "samples": 64}
    assert after["loss"] < 0.8 * before["loss"]
    run, samples = bench.open_run(dataset, Settings(1, 1, 0.0, 0.0, 0))
    chosen = spread(len(samples), 64)
    here = [evaluate(run.policy, run.preprocessor, samples, chosen, seed) for seed in (5, 5, 6)]
    assert here[0] == here[1] == before["loss"] and here[2] != here[0] and abs(here[2] / here[0] - 1) < 0.2


def _harm(path: Path, out: Path, change: Any) -> Path:
    data = bytearray(path.read_bytes())
    change(data)
    out.write_bytes(data)
    return out


def test_files_that_do_not_fit_are_refused(bench: Bench, dataset: Path, tmp_path: Path) -> None:
    def nan(data: bytearray) -> None:
        data[-2:] = b"\xc0\x7f"

    def flip(data: bytearray) -> None:
        data[-1] ^= 1

    job = bench.training(dataset, "refused", version=str(_harm(bench.version, tmp_path / "nan", nan)))
    with pytest.raises(WorkerError, match="NaN"):
        bench.run("trainer", job)
    with pytest.raises(WorkerError, match="no statistics"):
        bench.run("trainer", {**job, "spec": str(bench.folder / "spec.json")})
    assert not Path(job["out"]).exists()
    with pytest.raises(PayloadError, match="not in the exchange set"):
        weights.load_exchange(bench.spec, bench.folder / "base.safetensors")
    policy = build(bench.spec, bench.cache, "cpu")
    with pytest.raises(PayloadError, match="digest"):
        weights.load_base(policy, bench.spec, _harm(bench.folder / "base.safetensors", tmp_path / "flip", flip))
    tensors = weights.load_exchange(bench.spec, bench.version)
    next(iter(tensors.values())).view(-1)[0] = float("inf")
    with pytest.raises(PayloadError, match="infinity"):
        weights.save_exchange(bench.spec, tmp_path / "update", tensors)
    assert not (tmp_path / "update").exists()


def test_real_weights_that_are_not_here_are_named(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"SmolVLM2-500M-Video-Instruct|smolvla_base") as caught:
        Bench(tmp_path, "smolvla", preset="base")
    assert "hf download" in caught.value.hint and "tiny" in caught.value.hint
