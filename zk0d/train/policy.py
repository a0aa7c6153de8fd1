"""A LeRobot policy and its processors from a model spec, through LeRobot's own classes and factory.

Not for weights (weights.py) nor published folders (load.py). What is in the spec's exchange set trains, nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from zk0d.errors import ConfigError, PayloadError, WorkerError
from zk0d.model.spec import Feature, ModelSpec
from zk0d.train import tiny_vlm
from zk0d.train.presets import ACTION, IMAGES, STATE

LOCAL_FIELDS = {
    "device", "push_to_hub", "repo_id", "private", "tags", "license", "pretrained_path", "pretrained_revision",
    "input_features", "output_features", "use_peft", "use_amp", "compile_model",
}  # fmt: skip
"""Fields of LeRobot's configuration that are a machine's own, or are in the spec in another form."""
BACKBONE_FIELD = "vlm_model_name"
MIN_STD = 0.5
"""Least standard deviation to divide by, in joint units: what nodes tell of theirs is rounded to this (design §6)."""

# LeRobot is not typed for our purposes; these say what is meant.
Config = Any
Policy = Any
Processor = Any


def pick_device(wanted: str) -> str:
    """ "auto" → "cuda" where there is one, else "cpu"; anything else is taken as it is, if this machine has it."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise WorkerError(f"device {wanted!r} is not there", 'set device = "auto" or "cpu"')
    return wanted


def config_class(policy_type: str) -> type[Any]:
    """LeRobot's configuration class of a policy type. Raises ConfigError if this LeRobot has none of that name."""
    import lerobot.policies  # noqa: F401  registers the types
    from lerobot.configs.policies import PreTrainedConfig

    if policy_type not in PreTrainedConfig.get_known_choices():
        raise ConfigError(f"policy type {policy_type!r} is not known to this LeRobot", "update the managed environment")
    cls: type[Any] = PreTrainedConfig.get_choice_class(policy_type)
    return cls


def portable_config(config: Config) -> dict[str, Any]:
    """LeRobot's configuration as JSON for a spec: without what is a machine's own or is in the spec elsewhere."""
    import draccus
    from lerobot.configs.policies import PreTrainedConfig

    value = dict(draccus.encode(config, PreTrainedConfig))
    value.pop("type")
    for name in LOCAL_FIELDS:
        value.pop(name, None)
    if BACKBONE_FIELD in value:
        value[BACKBONE_FIELD] = ""
    return value


def make_config(
    policy_type: str, fields: dict[str, Any], features: dict[str, Feature], backbone: str, cache: Path, device: str
) -> Config:
    """LeRobot's configuration with canonical features. Raises ConfigError for a field it does not have.

    `features` are the spec's; `backbone` as in the spec; `cache` is where the tiny backbone may be written.
    """
    import draccus
    from lerobot.configs import FeatureType, PolicyFeature

    cls = config_class(policy_type)
    try:
        config = draccus.decode(cls, {**fields, "device": device, "push_to_hub": False})
    except Exception as error:  # draccus and the classes' own checks raise many kinds
        raise ConfigError(
            f"LeRobot's {policy_type} configuration does not accept this: {error}",
            "the federation may be made for another LeRobot version",
        ) from error
    config.input_features, config.output_features = {}, {}
    for name, feature in features.items():
        if feature.dtype == "image":
            height, width, channels = feature.shape
            config.input_features[name] = PolicyFeature(FeatureType.VISUAL, (channels, height, width))
        elif name == ACTION:
            config.output_features[name] = PolicyFeature(FeatureType.ACTION, feature.shape)
        else:
            kind = FeatureType.STATE if name == STATE else FeatureType.ENV
            config.input_features[name] = PolicyFeature(kind, feature.shape)
    if hasattr(config, BACKBONE_FIELD):
        setattr(config, BACKBONE_FIELD, backbone_path(backbone, cache))
    return config


def spec_config(spec: ModelSpec, cache: Path, device: str) -> Config:
    """LeRobot's configuration for a spec on this machine."""
    return make_config(spec.policy_type, spec.policy_config, spec.features, spec.backbone, cache, device)


def make_policy(config: Config) -> Policy:
    """A policy with weights from torch's random state, on the configuration's device."""
    from lerobot.policies.factory import get_policy_class

    return get_policy_class(config.type)(config).to(config.device)


def build(spec: ModelSpec, cache: Path, device: str) -> Policy:
    """The spec's policy on `device`, exchange set trainable and the rest frozen; weights are still to be loaded.

    Raises PayloadError if the spec's exchange set is not part of the policy that this machine's LeRobot builds.
    """
    policy = make_policy(spec_config(spec, cache, device))
    parameters = dict(policy.named_parameters())
    for tensor in spec.exchange:
        parameter = parameters.get(tensor.name)
        if parameter is None or tuple(parameter.shape) != tensor.shape:
            have = "none of that name" if parameter is None else f"shape {list(parameter.shape)}"
            raise PayloadError(
                f"spec tensor {tensor.name!r} {list(tensor.shape)}: the policy has {have}",
                "this machine's LeRobot differs from the one the federation was made with: update it",
            )
    exchange = {t.name for t in spec.exchange}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in exchange)
    return policy


def processors(spec: ModelSpec, config: Config) -> tuple[Processor, Processor]:
    """LeRobot's pre- and postprocessor with the spec's statistics. Raises PayloadError while it has none."""
    from lerobot.policies.factory import make_pre_post_processors

    if spec.stats is None:
        raise PayloadError("the model spec has no statistics yet", "the federation is still gathering its nodes")
    pre, post = make_pre_post_processors(config, dataset_stats=_statistics(spec))
    return pre, post


def _statistics(spec: ModelSpec) -> dict[str, dict[str, torch.Tensor]]:
    result: dict[str, dict[str, torch.Tensor]] = {}
    for name, feature in spec.features.items():
        if name.startswith(IMAGES):
            # Pictures of homes are never described: every node normalises by ImageNet's constants, as LeRobot does.
            from lerobot.datasets.factory import IMAGENET_STATS

            result[name] = {k: torch.tensor(v) for k, v in IMAGENET_STATS.items()}
            continue
        values = (spec.stats or {}).get(name)
        if values is None or any(len(values.get(k, ())) != feature.shape[0] for k in ("mean", "std", "min", "max")):
            raise PayloadError(f"the model spec's statistics lack {name}, or have another number of joints")
        result[name] = {k: torch.tensor(values[k], dtype=torch.float32) for k in ("mean", "std", "min", "max")}
        result[name]["std"].clamp_(min=MIN_STD)
    return result


def backbone_path(backbone: str, cache: Path) -> str:
    """Where the frozen backbone's configuration, tokenizer and processor are on this machine ("" for none).

    Raises WorkerError naming what is missing and how to get it; never asks a model hub.
    """
    if backbone == "":
        return ""
    if backbone == "tiny":
        return str(tiny_vlm.directory(cache))
    return str(local_model(backbone, ("config.json", "tokenizer_config.json", "preprocessor_config.json")))


def local_model(name: str, files: tuple[str, ...]) -> Path:
    """The folder of a local path or of a repository in the Hugging Face cache, with `files` all there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    hint = (
        f"fetch it once with `hf download {name}` (as the user that runs the workers), "
        'or use preset = "tiny", which needs no download'
    )
    folder = Path(name)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(name, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError) as error:
            raise WorkerError(f"the model {name} is not on this machine", hint) from error
    missing = [f for f in files if not (folder / f).is_file()]
    if missing:
        raise WorkerError(f"the model {name} in {folder} lacks {', '.join(missing)}", hint)
    return folder
