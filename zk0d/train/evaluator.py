"""Worker: the policy loss of one version on held-out datasets, and that version as a LeRobot folder.

Not for success on an arm (robot/rollout.py). Job and result: docs/architecture.md §3.

The loss is deterministic for a version, dataset and seed, whatever the batch size:

* SmolVLA: its flow-matching loss, with noise drawn from the seed per sample and time spread evenly over the
  distribution it is trained with, so that versions differ by what they learned and not by what was drawn.
* ACT: the L1 error of the actions it would take (latent at zero, as in use), without the training's VAE term.
* Any other policy: its own forward pass in evaluation mode under a fixed seed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zk0d.model.spec import ModelSpec
from zk0d.train import environment
from zk0d.train.interrupts import Interrupts
from zk0d.worker import Message, WorkerChannel, run_worker

if TYPE_CHECKING:
    from zk0d.train.frames import Samples
    from zk0d.train.policy import Policy, Processor

BATCH = 16
PROGRESS_S = 0.2
GOLDEN = 0.6180339887498949


def main(job: Message, channel: WorkerChannel) -> Message:
    """Evaluate on the job's datasets (none: the loss is null), unless its `losses` are known; then publish where a
    folder is named."""
    Interrupts(channel).start()
    began = time.monotonic()
    cache, threads = Path(job["cache"]), int(job.get("threads", 1))
    spec = ModelSpec.load(Path(job["spec"]))
    environment.prepare(cache, threads)
    import torch

    from zk0d.train import publish, weights
    from zk0d.train.policy import build, pick_device, processors

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    policy = build(spec, cache, pick_device(str(job.get("device", "auto"))))
    weights.load_base(policy, spec, Path(job["base"]))
    weights.apply(policy, weights.load_exchange(spec, Path(job["version"])))
    pre, post = processors(spec, policy.config)
    channel.emit("ready")
    losses = job.get("losses") or _evaluate_all(job, spec, policy, pre, channel, cache)
    total = sum(found["samples"] for found in losses.values())
    loss = sum(found["loss"] * found["samples"] for found in losses.values()) / total if total else None
    folder = job.get("publish")
    if folder:
        version = publish.Version(int(job["number"]), loss, losses, dict(job.get("card") or {}))
        placed = Path(job.get("placed") or folder)
        publish.write(Path(folder), spec, policy, pre, post, version, placed)
    return {
        "loss": loss,
        "datasets": losses,
        "publish": folder,
        "seconds": round(time.monotonic() - began, 3),
    }


def _evaluate_all(
    job: Message, spec: ModelSpec, policy: Policy, pre: Processor, channel: WorkerChannel, cache: Path
) -> dict[str, dict[str, Any]]:
    from zk0d.train import frames

    result: dict[str, dict[str, Any]] = {}
    for dataset in job["datasets"]:
        source = frames.Source.from_job(dataset)
        samples = frames.load([source], spec, list(policy.config.action_delta_indices), cache)
        chosen = spread(len(samples), int(job.get("max_samples", 512)))
        name = str(dataset.get("name") or source.root.name)
        loss = evaluate(policy, pre, samples, chosen, int(job["seed"]), channel, name)
        result[name] = {"loss": loss, "samples": len(chosen)}
    return result


def spread(samples: int, limit: int) -> NDArray[np.int64]:
    """Up to `limit` of `samples` indices, evenly from first to last."""
    count = max(1, min(samples, limit))
    return np.unique(np.linspace(0, samples - 1, count).round().astype(np.int64))


def evaluate(
    policy: Policy,
    pre: Processor,
    samples: Samples,
    chosen: NDArray[np.int64],
    seed: int,
    channel: WorkerChannel | None = None,
    name: str = "",
) -> float:
    """Mean loss over the valid action entries of samples `chosen`. The policy is left in evaluation mode."""
    import torch

    policy.eval()
    total, weight, told = 0.0, 0, 0.0
    with torch.no_grad():
        for start in range(0, len(chosen), BATCH):
            part = chosen[start : start + BATCH]
            batch = pre(samples.batch(part))
            valid = int((~batch["action_is_pad"]).sum())
            total += _loss(policy, batch, start, seed) * valid
            weight += valid
            now = time.monotonic()
            if channel is not None and now - told >= PROGRESS_S:
                told = now
                channel.emit("progress", dataset=name, samples=start + len(part), of=len(chosen))
    return total / max(weight, 1)


def _loss(policy: Policy, batch: dict[str, Any], first: int, seed: int) -> float:
    """Loss of one batch whose first sample is number `first` of the evaluation."""
    import torch

    torch.manual_seed(seed + first)
    if policy.name != "smolvla":
        loss, _ = policy.forward(batch)
        return float(loss)
    count, steps = batch["action"].shape[:2]
    numbers = np.arange(first, first + count)
    # x ↦ x^(1/1.5) turns even numbers into LeRobot's Beta(1.5, 1) times; multiples of the golden ratio stay even.
    even = np.mod((numbers + 0.5) * GOLDEN, 1.0)
    times = torch.from_numpy(0.999 * even ** (1 / 1.5) + 0.001).to(batch["action"].device, torch.float32)
    shape = (steps, policy.config.max_action_dim)
    noise = np.stack([np.random.Generator(np.random.PCG64([seed, int(n)])).standard_normal(shape) for n in numbers])
    drawn = torch.from_numpy(noise).to(batch["action"].device, torch.float32)
    loss, _ = policy.forward(batch, noise=drawn, time=times)
    return float(loss)


if __name__ == "__main__":
    sys.exit(run_worker(main))
