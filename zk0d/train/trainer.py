"""Worker: local steps from one version on this node's own datasets; what comes out is the delta, as a payload.

Not for choosing what to train (the daemon) nor for merging (the hub). Job and events: docs/architecture.md §3.
"""

from __future__ import annotations

import math
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zk0d.durable import sha256_file
from zk0d.errors import PayloadError, WorkerError
from zk0d.model.spec import ModelSpec
from zk0d.train import environment
from zk0d.train.interrupts import Interrupts
from zk0d.worker import Message, WorkerChannel, run_worker

if TYPE_CHECKING:
    import torch

    from zk0d.train.frames import Samples
    from zk0d.train.policy import Policy, Processor
    from zk0d.train.weights import Tensors

PROGRESS_S = 0.2
"""Least seconds between progress events."""
EDGE = 10
"""Steps that `loss_first` and `loss_last` are the mean of."""


@dataclass(frozen=True)
class Settings:
    """What the task asks for. Settings and data fix the result; where and how often to save does not."""

    local_steps: int
    batch_size: int
    lr: float
    mu: float
    seed: int

    @classmethod
    def from_job(cls, job: Message) -> Settings:
        """Raises WorkerError naming a value that cannot be trained with."""
        try:
            found = cls(
                int(job["local_steps"]), int(job["batch_size"]), float(job["lr"]), float(job["mu"]), int(job["seed"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise WorkerError(f"training job: {type(error).__name__}: {error}") from error
        if found.local_steps < 1 or found.batch_size < 1 or not (0 <= found.lr < 1e3) or not (0 <= found.mu < 1e6):
            raise WorkerError(f"training job: {found} is out of range")
        return found


def order(samples: int, seed: int, step: int, batch_size: int) -> NDArray[np.int64]:
    """Indices of the batch of `step`: the stream of per-epoch permutations, cut into batches across their borders.

    It depends on nothing but its arguments, so a resumed run needs no sampler state.
    """
    wanted = np.arange(step * batch_size, (step + 1) * batch_size)
    result = np.empty(batch_size, dtype=np.int64)
    for epoch in range(int(wanted[0]) // samples, int(wanted[-1]) // samples + 1):
        permutation = np.random.Generator(np.random.PCG64([seed & 0xFFFFFFFF, epoch])).permutation(samples)
        here = wanted // samples == epoch
        result[here] = permutation[wanted[here] % samples]
    return result


def main(job: Message, channel: WorkerChannel) -> Message:
    """Train, or go on training, and write the payload. `finished: false` in the result if it was asked to leave."""
    interrupts = Interrupts(channel).start()
    settings, cache = Settings.from_job(job), Path(job["cache"])
    threads = int(job.get("threads", 1))
    spec = ModelSpec.load(Path(job["spec"]))
    if spec.stats is None:
        raise PayloadError("the model spec has no statistics yet", "the federation is still gathering its nodes")
    environment.prepare(cache, threads)
    import torch

    from zk0d.train import frames, weights
    from zk0d.train.policy import build, pick_device, processors

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    device = pick_device(str(job.get("device", "auto")))
    policy = build(spec, cache, device)
    weights.load_base(policy, spec, Path(job["base"]))
    version = weights.load_exchange(spec, Path(job["version"]))
    weights.apply(policy, version)
    sources = [frames.Source.from_job(d) for d in job["datasets"]]
    samples = frames.load(sources, spec, list(policy.config.action_delta_indices), cache)
    preprocessor, _ = processors(spec, policy.config)
    run = Run(settings, policy, preprocessor, samples, version, device)
    run.identify(spec.digest, sha256_file(Path(job["version"])))
    channel.emit("ready", samples=len(samples), device=device)
    reason = run.train(channel, interrupts, Path(job["checkpoint_dir"]), float(job.get("checkpoint_every_s", 60)))
    if reason:
        return {"finished": False, "reason": reason, "steps": run.step}
    digest = weights.save_exchange(spec, Path(job["out"]), run.delta())
    losses = run.losses
    return {
        "finished": True,
        "payload": str(job["out"]),
        "digest": digest,
        "steps": run.step,
        "samples": min(len(samples), run.step * settings.batch_size),
        "loss_first": float(np.mean(losses[:EDGE])),
        "loss_last": float(np.mean(losses[-EDGE:])),
        "seconds": round(run.seconds, 3),
    }


class Run:
    """One run of local steps: policy, optimiser and how far they are."""

    def __init__(
        self,
        settings: Settings,
        policy: Policy,
        preprocessor: Processor,
        samples: Samples,
        version: Tensors,
        device: str,
    ) -> None:
        self.settings = settings
        self.policy = policy
        self.preprocessor = preprocessor
        self.samples = samples
        self.version = version
        self.step = 0
        self.losses: list[float] = []
        self.seconds = 0.0
        self.identity = ""
        parameters = dict(policy.named_parameters())
        self.parameters: list[torch.nn.Parameter] = [parameters[name] for name in version]
        self.base: list[torch.Tensor] = [version[name].to(device) for name in version]
        self.optimizer, self.clip_norm = make_optimizer(policy, settings.lr)

    def identify(self, spec_digest: str, version_digest: str) -> None:
        """Fix what this run is, so that only its own checkpoint is taken up."""
        from zk0d.train import checkpoint

        s = self.settings
        self.identity = checkpoint.identity(
            spec=spec_digest, version=version_digest, data=self.samples.fingerprint,
            batch_size=s.batch_size, lr=s.lr, mu=s.mu, seed=s.seed,
        )  # fmt: skip

    def train(self, channel: WorkerChannel, interrupts: Interrupts, folder: Path, every_s: float) -> str:
        """Do the steps that are left → "" when all are done, or the command that ended the run early, saved.

        `conclude` ends it early too, but with what it has as its result.
        """
        self._resume(folder)
        interrupts.guard()
        self.policy.train()
        began, saved, told = time.monotonic(), time.monotonic(), 0.0
        started_at, spent = self.step, self.seconds
        while self.step < self.settings.local_steps:
            if interrupts.wanted == "conclude" and self.step:
                break
            if interrupts.wanted:
                interrupts.handled()
                self._save(folder, channel)
                return interrupts.wanted
            self.one_step()
            now = time.monotonic()
            self.seconds = spent + now - began
            if now - told >= PROGRESS_S or self.step == self.settings.local_steps:
                told = now
                rate = (self.step - started_at) * self.settings.batch_size / max(now - began, 1e-9)
                channel.emit(
                    "progress", step=self.step, steps=self.settings.local_steps,
                    loss=round(self.losses[-1], 6), samples_per_s=round(rate, 1),
                )  # fmt: skip
            if now - saved >= every_s and self.step < self.settings.local_steps:
                self._save(folder, channel)
                saved = time.monotonic()
        interrupts.handled()
        return ""

    def one_step(self) -> float:
        """One optimiser step → its loss. Raises WorkerError if the loss is not finite."""
        import torch

        from zk0d.train.fedprox import add_proximal

        s = self.settings
        batch = self.samples.batch(order(len(self.samples), s.seed, self.step, s.batch_size))
        loss, _ = self.policy.forward(self.preprocessor(batch))
        value = float(loss.item())
        if not math.isfinite(value):
            raise WorkerError(f"training diverged: the loss at step {self.step + 1} is {value}", "use a lower lr")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        add_proximal(self.parameters, self.base, s.mu)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        self.step += 1
        self.losses.append(value)
        return value

    def delta(self) -> Tensors:
        """local − version by name, float32 on the CPU."""
        return {
            name: p.detach().to("cpu") - self.version[name]
            for name, p in zip(self.version, self.parameters, strict=True)
        }

    def _save(self, folder: Path, channel: WorkerChannel) -> None:
        from zk0d.train import checkpoint

        began = time.monotonic()
        state = {n: p.detach().cpu() for n, p in zip(self.version, self.parameters, strict=True)}
        checkpoint.save(
            folder,
            self.identity,
            checkpoint.Checkpoint(self.step, state, self.optimizer.state_dict(), self.losses, self.seconds),
        )
        channel.emit("checkpoint", step=self.step, seconds=round(time.monotonic() - began, 3))

    def _resume(self, folder: Path) -> None:
        import torch

        from zk0d.train import checkpoint, weights

        torch.manual_seed(self.settings.seed)
        np.random.seed(self.settings.seed & 0xFFFFFFFF)
        random.seed(self.settings.seed)
        found = checkpoint.load(folder, self.identity)
        if found is None or found.step > self.settings.local_steps:
            return
        weights.apply(self.policy, found.weights)
        self.optimizer.load_state_dict(found.optimizer)
        self.step, self.losses, self.seconds = found.step, found.losses, found.seconds


def make_optimizer(policy: Policy, lr: float) -> tuple[Any, float]:
    """LeRobot's optimiser preset at the task's learning rate, over what trains → optimiser, gradient norm limit.

    Parameter groups keep their ratio to the main rate (ACT's backbone has its own in LeRobot's preset).
    """
    preset = policy.config.get_optimizer_preset()
    groups = []
    asked = policy.get_optim_params()
    asked = list(asked) if not isinstance(asked, list) else asked
    for group in asked if asked and isinstance(asked[0], dict) else [{"params": asked}]:
        parameters = [p for p in group["params"] if p.requires_grad]
        if parameters:
            ratio = float(group.get("lr", preset.lr)) / preset.lr
            groups.append({**group, "params": parameters, "lr": lr * ratio})
    preset.lr = lr
    return preset.build(groups), float(preset.grad_clip_norm)


if __name__ == "__main__":
    sys.exit(run_worker(main))
