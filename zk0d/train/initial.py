"""Worker: make version 0 of a federation: its model spec, the frozen base and the first exchange set.

Not for statistics, which the hub gathers from the nodes and puts into the spec later. Job: docs/architecture.md §3.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zk0d.durable import write_bytes
from zk0d.errors import ConfigError, WorkerError
from zk0d.model.spec import ModelSpec, TensorSpec
from zk0d.train import environment, presets
from zk0d.train.interrupts import Interrupts
from zk0d.worker import Message, WorkerChannel, run_worker

if TYPE_CHECKING:
    from zk0d.train.policy import Policy


def main(job: Message, channel: WorkerChannel) -> Message:
    """Write `spec.json`, `base.safetensors` and `exchange.safetensors` into the job's `out` folder."""
    model = presets.parse(job["model"])
    out = Path(job["out"])
    cache = Path(job.get("cache") or out / "cache")
    Interrupts(channel).start()
    environment.prepare(cache, int(job.get("threads", 1)))
    import torch

    from zk0d.train import weights
    from zk0d.train.policy import make_config, make_policy, portable_config

    torch.set_num_threads(int(job.get("threads", 1)))
    channel.emit("ready")
    torch.manual_seed(int(job["seed"]))
    fields = {**_pretrained_fields(model.policy, model.preset.weights), **model.preset.config}
    if model.policy == "act":
        fields["pretrained_backbone_weights"] = None  # nodes take them from the base, not from a download
    config = make_config(model.policy, fields, model.features, model.preset.backbone, cache, "cpu")
    policy = make_policy(config)
    _load_pretrained(policy, model.preset.weights)
    trained = sorted(
        (n, tuple(p.shape))
        for n, p in policy.named_parameters()
        if p.requires_grad and not n.startswith(model.preset.frozen)
    )
    if not trained:
        raise ConfigError("[model] leaves nothing to train", "freeze less in [model.config]")
    base_digest = weights.save_base(policy, out / "base.safetensors")
    spec = ModelSpec(
        policy_type=model.policy,
        policy_config=portable_config(config),
        backbone=model.preset.backbone,
        features=model.features,
        fps=model.fps,
        units=model.units,
        exchange=tuple(TensorSpec(n, s) for n, s in trained),
        dtype=model.dtype,
        base_digest=base_digest,
    )
    parameters = dict(policy.named_parameters())
    exchange_digest = weights.save_exchange(spec, out / "exchange.safetensors", parameters)
    write_bytes(out / "spec.json", spec.to_bytes())
    return {
        "spec_digest": spec.digest,
        "base_digest": base_digest,
        "exchange_digest": exchange_digest,
        "parameters": sum(p.numel() for p in parameters.values()),
        "exchange_parameters": sum(t.elements for t in spec.exchange),
    }


def _pretrained_fields(policy_type: str, source: str) -> dict[str, Any]:
    """Configuration that pretrained weights were made with, as far as this LeRobot knows its fields."""
    if source in ("", "torchvision"):
        return {}
    from dataclasses import fields

    from zk0d.train.policy import BACKBONE_FIELD, LOCAL_FIELDS, config_class, local_model

    folder = local_model(source, ("model.safetensors", "config.json"))
    found = json.loads((folder / "config.json").read_text())
    if found.get("type", policy_type) != policy_type:
        raise ConfigError(f"[model] weights {source!r} are of a {found['type']} policy, not {policy_type}")
    known = {f.name for f in fields(config_class(policy_type))} - LOCAL_FIELDS - {BACKBONE_FIELD, "load_vlm_weights"}
    return {k: v for k, v in found.items() if k in known}


def _load_pretrained(policy: Policy, source: str) -> None:
    """Put pretrained weights into a new policy. Raises WorkerError naming what is missing on this machine."""
    if source == "":
        return
    if source == "torchvision":
        _load_torchvision(policy)
        return
    from safetensors.torch import load_file

    from zk0d.train.policy import local_model

    folder = local_model(source, ("model.safetensors",))
    missing, unexpected = policy.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    tied = {n for n, _ in policy.named_parameters()}
    lacking = sorted(set(missing) & tied)
    # Older checkpoints carry normalisation inside the policy; processors do that now, with the federation's statistics.
    foreign = [n for n in unexpected if not n.startswith(("normalize_", "unnormalize_"))]
    if lacking or foreign:
        wrong = "missing" if lacking else "unknown"
        raise WorkerError(
            f"{source}: weights do not fit the policy: {(lacking or foreign)[0]!r} is {wrong}",
            "take weights made for this LeRobot version",
        )


def _load_torchvision(policy: Policy) -> None:
    """ResNet weights from torch's cache, where they are; else the backbone starts random, which is said."""
    from pathlib import PurePosixPath
    from urllib.parse import urlparse

    import torch
    from torchvision.models import get_model_weights  # type: ignore[import-untyped]

    weights = get_model_weights(policy.config.vision_backbone).DEFAULT
    name = PurePosixPath(urlparse(weights.url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        print(f"note: {path} is not there; the {policy.config.vision_backbone} backbone starts from random weights")
        return
    found = torch.load(path, map_location="cpu", weights_only=True)
    policy.model.backbone.load_state_dict({k: v for k, v in found.items() if not k.startswith("fc.")}, strict=False)


if __name__ == "__main__":
    sys.exit(run_worker(main))
