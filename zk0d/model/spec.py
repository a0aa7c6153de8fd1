"""The model spec: what a federation's model is, fixed for every node by one digest.

Not for training settings (they travel in the task) and not for weights (payload.py). No torch here.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from zk0d.durable import canonical_json
from zk0d.errors import PayloadError
from zk0d.model.leaves import name_of

SCHEMA = 2
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
MAX_SPEC_BYTES = 4 << 20

Dtype = Literal["float32", "bfloat16"]
Stats = dict[str, dict[str, list[float]]]
"""Per feature: `mean`, `std`, `min`, `max` (one number per dimension) and `count` (one number)."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the exchange set: its name in the policy's state dict and its shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Feature:
    """One canonical feature: `dtype` is "float32" (vector, with joint `names`) or "image" (shape height, width, 3)."""

    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelSpec:
    """A federation's model. Equal specs have equal digests; nodes refuse a task whose spec digest they do not hold.

    `policy_type` and `policy_config` are LeRobot's; `backbone` names frozen weights a node builds or loads by itself
    ("tiny" is built from code, anything else is a Hugging Face repository or "" for none). `units` is LeRobot's motor
    normalisation: "degrees" or "range" (−100…100). `stats` is merged by the hub across nodes; None while the federation
    still gathers them. `exchange` is what travels, sorted by name; `dtype` is how it travels.
    """

    policy_type: str
    policy_config: dict[str, Any]
    backbone: str
    features: dict[str, Feature]
    fps: int
    units: Literal["degrees", "range"]
    exchange: tuple[TensorSpec, ...]
    dtype: Dtype
    base_digest: str
    """Blob name of the full float32 state dict that the frozen tensors come from."""
    stats: Stats | None = None
    schema: int = field(default=SCHEMA)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def to_bytes(self) -> bytes:
        """Canonical bytes; `digest` is taken over these."""
        return canonical_json(self.to_json())

    @property
    def digest(self) -> str:
        return name_of(self.to_bytes())

    def with_stats(self, stats: Stats) -> ModelSpec:
        return replace(self, stats=stats)

    @property
    def payload_bytes(self) -> int:
        """Size of the tensors of one payload, header apart, in bytes."""
        return sum(t.elements for t in self.exchange) * DTYPE_BYTES[self.dtype]

    @property
    def cameras(self) -> dict[str, tuple[int, int]]:
        """Camera name → (height, width) in pixels, names without the `observation.images.` prefix."""
        prefix = "observation.images."
        return {
            k.removeprefix(prefix): (f.shape[0], f.shape[1]) for k, f in self.features.items() if k.startswith(prefix)
        }

    @classmethod
    def from_json(cls, value: Any, where: str = "spec") -> ModelSpec:
        """Build from parsed JSON. Raises PayloadError naming the key that is wrong."""
        try:
            if value["schema"] != SCHEMA:
                raise PayloadError(
                    f"{where}: spec schema {value['schema']!r} is not {SCHEMA}", "update this machine's zk0d"
                )
            spec = cls(
                policy_type=_text(value, "policy_type"),
                policy_config=dict(value["policy_config"]),
                backbone=_text(value, "backbone"),
                features={
                    str(k): Feature(str(f["dtype"]), tuple(map(int, f["shape"])), tuple(map(str, f["names"])))
                    for k, f in value["features"].items()
                },
                fps=int(value["fps"]),
                units=value["units"],
                exchange=tuple(TensorSpec(str(t["name"]), tuple(map(int, t["shape"]))) for t in value["exchange"]),
                dtype=value["dtype"],
                base_digest=_text(value, "base_digest"),
                stats=value["stats"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PayloadError(f"{where}: not a model spec: {type(error).__name__}: {error}") from error
        if spec.units not in ("degrees", "range") or spec.dtype not in DTYPE_BYTES:
            raise PayloadError(f"{where}: units {spec.units!r} or dtype {spec.dtype!r} is not known")
        names = [t.name for t in spec.exchange]
        if names != sorted(set(names)) or any(d <= 0 for t in spec.exchange for d in t.shape):
            raise PayloadError(f"{where}: the exchange set is not sorted, has doubles or empty tensors")
        return spec

    @classmethod
    def from_bytes(cls, data: bytes, where: str = "spec") -> ModelSpec:
        if len(data) > MAX_SPEC_BYTES:
            raise PayloadError(f"{where}: {len(data)} bytes is too large for a spec")
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise PayloadError(f"{where}: not JSON: {error}") from error
        return cls.from_json(value, where)

    @classmethod
    def load(cls, path: Path) -> ModelSpec:
        return cls.from_bytes(path.read_bytes(), str(path))


def _text(value: Any, key: str) -> str:
    if not isinstance(value[key], str):
        raise TypeError(f"{key} is not text")
    return str(value[key])
