"""Load a published version on any machine: policy and both processors, on the device wanted, with no model hub.

Used by robot/rollout.py. Not for training (policy.py builds from a spec). Plain LeRobot loads the folder too; this
also finds the backbone that a tiny SmolVLA carries with it when the folder was moved.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from zk0d.errors import WorkerError
from zk0d.train.policy import BACKBONE_FIELD, Policy, Processor, local_model, pick_device
from zk0d.train.publish import BACKBONE_FOLDER


def load_published(folder: Path | str, device: str = "auto") -> tuple[Policy, Processor, Processor]:
    """A published LeRobot folder → policy in evaluation mode, preprocessor, postprocessor.

    The preprocessor takes one observation (`observation.state` (D,), `observation.images.X` (3, H, W) in [0, 1],
    `task`) or a batch of them; the postprocessor gives actions in the spec's joint units on the CPU. Raises
    WorkerError if the folder is not whole or needs a backbone that this machine lacks.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder = Path(folder).absolute()
    needed = ("config.json", "model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json")
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise WorkerError(
            f"{folder} is no published version: {', '.join(missing)} missing", "`zk0ctl model export` makes one"
        )
    import lerobot.policies  # noqa: F401  registers the policy types
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    where = pick_device(device)
    config = PreTrainedConfig.from_pretrained(folder)
    config.device = where
    overrides: dict[str, dict[str, Any]] = {"device_processor": {"device": where}}
    if hasattr(config, BACKBONE_FIELD):
        carried = folder / BACKBONE_FOLDER
        backbone = str(carried if carried.is_dir() else local_model(getattr(config, BACKBONE_FIELD), ("config.json",)))
        setattr(config, BACKBONE_FIELD, backbone)
        overrides["tokenizer_processor"] = {"tokenizer_name": backbone}
    policy = get_policy_class(config.type).from_pretrained(folder, config=config, strict=True)
    pre, post = make_pre_post_processors(config, pretrained_path=str(folder), preprocessor_overrides=overrides)
    return policy, pre, post
