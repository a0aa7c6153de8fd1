"""The `[model]` table: what is accepted, and that a mistake is named."""

from __future__ import annotations

import pytest

from zk0d.errors import ConfigError
from zk0d.train import presets

CAMERAS = {"cameras": {"front": [96, 128], "wrist": [64, 64]}}


def test_the_features_are_canonical() -> None:
    model = presets.parse({"policy": "act", "units": "range", **CAMERAS})
    assert list(model.features) == [
        "action",
        "observation.images.front",
        "observation.images.wrist",
        "observation.state",
    ]
    assert model.features["observation.images.front"].shape == (96, 128, 3)
    assert model.features["action"].names[0] == "shoulder_pan.pos" and model.features["action"].shape == (6,)
    assert (model.fps, model.units, model.dtype) == (30, "range", "bfloat16")


def test_the_config_table_overrides_the_preset() -> None:
    assert presets.parse({**CAMERAS, "config": {"chunk_size": 24}}).preset.config["chunk_size"] == 24
    assert presets.PRESETS["smolvla", "tiny"].config["chunk_size"] == 16


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"policy": "pi0"}, "'pi0'"),
        ({"preset": "huge"}, "'huge'"),
        ({"units": "radians"}, "'radians'"),
        ({"dtype": "int8"}, "'int8'"),
        ({"fps": 0}, "fps = 0"),
        ({"fps": 29.97}, "29.97"),
        ({"cameras": {}}, "cameras"),
        ({"cameras": {"front": [96]}}, "front"),
        ({"cameras": {"front": [96, 5000]}}, "5000"),
        ({"cameras": {"../x": [96, 96]}}, "'../x'"),
        ({"camera": {}}, "'camera'"),
        ({"config": 3}, "config"),
    ],
)
def test_a_mistake_is_named(table: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        presets.parse({**CAMERAS, **table})
    assert named in caught.value.message and caught.value.hint
