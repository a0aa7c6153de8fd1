"""Training jobs for tests: real workers through the supervisor's end of the channel. Not a test by itself."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from zk0d.model.spec import ModelSpec
from zk0d.supervise import Worker
from zk0d.train import frames, weights
from zk0d.train.frames import Samples
from zk0d.train.policy import build, processors
from zk0d.train.trainer import Run, Settings

CAMERAS = {"front": [64, 64], "wrist": [64, 64]}
STATISTICS = {
    key: {"mean": [0.0] * 6, "std": [35.0] * 6, "min": [-90.0] * 6, "max": [90.0] * 6, "count": [1000.0]}
    for key in ("observation.state", "action")
}
OnWorker = Callable[[Worker, dict[str, Any]], None]


class Bench:
    """A folder in which version 0 of a federation was made and jobs are run."""

    def __init__(self, folder: Path, policy: str, dtype: str = "bfloat16", **model: Any) -> None:
        self.folder, self.cache = folder, folder / "cache"
        table = {"policy": policy, "preset": "tiny", "dtype": dtype, "cameras": CAMERAS, **model}
        self.made = self.run("initial", {"model": table, "seed": 0, "out": str(folder), "cache": str(self.cache)})
        self.spec = ModelSpec.load(folder / "spec.json").with_stats(STATISTICS)
        (folder / "spec-with-stats.json").write_bytes(self.spec.to_bytes())
        self.version = folder / "exchange.safetensors"

    def common(self, version: Path | None = None) -> dict[str, Any]:
        return {
            "spec": str(self.folder / "spec-with-stats.json"),
            "base": str(self.folder / "base.safetensors"),
            "version": str(version or self.version),
            "device": "cpu",
            "cache": str(self.cache),
        }

    def training(self, dataset: Path, name: str, **changes: Any) -> dict[str, Any]:
        return {
            **self.common(),
            "datasets": [{"root": str(dataset), "episodes": None, "rename": {}}],
            "local_steps": 30,
            "batch_size": 8,
            "lr": 1e-3,
            "mu": 0.01,
            "seed": 1,
            "checkpoint_dir": str(self.folder / name / "checkpoint"),
            "checkpoint_every_s": 60,
            "out": str(self.folder / name / "update.safetensors"),
            **changes,
        }

    def evaluation(self, dataset: Path | None, version: Path | None = None, **changes: Any) -> dict[str, Any]:
        held_out = [{"name": "held-out", "root": str(dataset), "episodes": None}] if dataset else []
        return {
            **self.common(version), "number": 0, "publish": None, "card": {}, "datasets": held_out,
            "max_samples": 64, "seed": 5, **changes,
        }  # fmt: skip

    def open_run(self, dataset: Path, settings: Settings) -> tuple[Run, Samples]:
        """What the trainer works with, in this process."""
        policy = build(self.spec, self.cache, "cpu")
        weights.load_base(policy, self.spec, self.folder / "base.safetensors")
        version = weights.load_exchange(self.spec, self.version)
        weights.apply(policy, version)
        offsets = list(policy.config.action_delta_indices)
        samples = frames.load([frames.Source(dataset)], self.spec, offsets, self.cache)
        pre, _ = processors(self.spec, policy.config)
        torch.manual_seed(settings.seed)
        return Run(settings, policy, pre, samples, version, "cpu"), samples

    def run(self, module: str, job: dict[str, Any], on_event: OnWorker | None = None) -> dict[str, Any]:
        """Run a worker to its end → its result. Raises WorkerError as the supervisor does."""
        return asyncio.run(self._run(module, job, on_event))

    async def _run(self, module: str, job: dict[str, Any], on_event: OnWorker | None) -> dict[str, Any]:
        box: list[Worker] = []

        def take(event: dict[str, Any]) -> None:
            if on_event is not None:
                on_event(box[0], event)

        work = self.folder / "work"
        log = self.folder / "worker.log"
        worker = await Worker.start(sys.executable, f"zk0d.train.{module}", job, work, log, take)
        box.append(worker)
        try:
            return await worker.wait()
        finally:
            if worker.running:
                await worker.kill()
