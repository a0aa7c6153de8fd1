"""What a federation TOML's `[model]` table means: LeRobot configuration fields and canonical features.

Not for building policies (policy.py). Everything here is plain data, so that a mistake in the table is told at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from zk0d.errors import ConfigError
from zk0d.model.spec import DTYPE_BYTES, Dtype, Feature
from zk0d.train import tiny_vlm

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
"""The SO-100's and SO-101's joints in LeRobot's order."""
STATE, ACTION, IMAGES = "observation.state", "action", "observation.images."
KEYS = {"policy", "preset", "fps", "units", "dtype", "cameras", "joints", "weights", "backbone", "config"}


@dataclass(frozen=True)
class Preset:
    """One policy in one size. `config` overrides fields of LeRobot's configuration class; `frozen` names prefixes of
    parameters that neither train nor travel; `weights` is where version 0 comes from ("" is random from the seed)."""

    config: dict[str, Any]
    backbone: str = ""
    weights: str = ""
    frozen: tuple[str, ...] = ()


PRESETS: dict[tuple[str, str], Preset] = {
    # Learns visibly within a hundred steps on one CPU core; about 0.2 million of 0.5 million parameters train.
    ("smolvla", "tiny"): Preset(
        config={
            "chunk_size": 16,
            "n_action_steps": 8,
            "num_steps": 5,
            "num_vlm_layers": tiny_vlm.LAYERS,
            "resize_imgs_with_padding": [tiny_vlm.IMAGE_SIZE, tiny_vlm.IMAGE_SIZE],
            "max_state_dim": 8,
            "max_action_dim": 8,
        },
        backbone="tiny",
    ),
    ("smolvla", "base"): Preset(
        config={}, backbone="HuggingFaceTB/SmolVLM2-500M-Video-Instruct", weights="lerobot/smolvla_base"
    ),
    # The convolutional backbone stays as it was drawn: it is 97% of the parameters and would not learn in so few steps.
    ("act", "tiny"): Preset(
        config={
            "chunk_size": 16,
            "n_action_steps": 8,
            "pretrained_backbone_weights": None,
            "dim_model": 64,
            "n_heads": 4,
            "dim_feedforward": 128,
            "n_encoder_layers": 2,
            "n_vae_encoder_layers": 1,
            "latent_dim": 8,
            "dropout": 0.0,
        },
        frozen=("model.backbone.",),
    ),
    ("act", "base"): Preset(config={}, weights="torchvision"),
}


@dataclass(frozen=True)
class Model:
    """A checked `[model]` table."""

    policy: str
    preset: Preset
    fps: int
    units: Literal["degrees", "range"]
    dtype: Dtype
    features: dict[str, Feature]


def parse(table: dict[str, Any]) -> Model:
    """Check a `[model]` table. Raises ConfigError naming the key, the value and what would be accepted.

    Beyond the keys of docs/architecture.md §7: `joints` (names), `config` (fields of LeRobot's configuration class),
    `weights` and `backbone` (a local folder or Hugging Face repository in place of the preset's).
    """
    unknown = sorted(table.keys() - KEYS)
    if unknown:
        raise ConfigError(f"[model] has an unknown key {unknown[0]!r}", f"known are {', '.join(sorted(KEYS))}")
    name = (str(table.get("policy", "smolvla")), str(table.get("preset", "tiny")))
    if name not in PRESETS:
        known = ", ".join(f"{p}/{s}" for p, s in PRESETS)
        raise ConfigError(f"[model] policy {name[0]!r} with preset {name[1]!r} is not known", f"known are {known}")
    preset = PRESETS[name]
    units, dtype, fps = table.get("units", "degrees"), table.get("dtype", "bfloat16"), table.get("fps", 30)
    if units not in ("degrees", "range"):
        raise ConfigError(f"[model] units = {units!r}", 'accepted are "degrees" and "range"')
    if dtype not in DTYPE_BYTES:
        raise ConfigError(f"[model] dtype = {dtype!r}", f"accepted are {', '.join(DTYPE_BYTES)}")
    if not isinstance(fps, int) or not 1 <= fps <= 240:
        raise ConfigError(f"[model] fps = {fps!r}", "a whole number from 1 to 240")
    overrides = table.get("config", {})
    if not isinstance(overrides, dict):
        raise ConfigError("[model.config] is not a table", "give fields of LeRobot's configuration class")
    return Model(
        policy=name[0],
        preset=Preset(
            config={**preset.config, **overrides},
            backbone=str(table.get("backbone", preset.backbone)),
            weights=str(table.get("weights", preset.weights)),
            frozen=preset.frozen,
        ),
        fps=fps,
        units=units,
        dtype=dtype,
        features=_features(table),
    )


def _features(table: dict[str, Any]) -> dict[str, Feature]:
    joints = tuple(f"{str(j).removesuffix('.pos')}.pos" for j in table.get("joints", JOINTS))
    cameras = table.get("cameras", {})
    if not isinstance(cameras, dict) or not cameras:
        raise ConfigError("[model.cameras] is empty", "name at least one camera, as in front = [96, 96]")
    features = {STATE: Feature("float32", (len(joints),), joints), ACTION: Feature("float32", (len(joints),), joints)}
    for camera, size in cameras.items():
        fits = isinstance(size, list | tuple) and len(size) == 2
        if not fits or not all(isinstance(n, int) and 8 <= n <= 4096 for n in size):
            raise ConfigError(f"[model.cameras] {camera} = {size!r}", "give [height, width] in pixels, 8 to 4096 each")
        if not camera.isidentifier():
            raise ConfigError(f"[model.cameras] {camera!r} is not a name", "letters, digits and underscores")
        features[IMAGES + camera] = Feature("image", (size[0], size[1], 3))
    return dict(sorted(features.items()))
