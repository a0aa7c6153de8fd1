"""One version as the folder that LeRobot loads: config, weights, processors, model card and metrics.

Not for sending it anywhere. The folder appears whole or not at all. Loading it: load.py, or as its README.md says.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zk0d import __version__
from zk0d.durable import publish as make_durable
from zk0d.errors import from_os
from zk0d.model.spec import ModelSpec
from zk0d.train.policy import BACKBONE_FIELD, Policy, Processor

BACKBONE_FOLDER = "vlm"
"""Where a published SmolVLA of the tiny preset carries its backbone's configuration, tokenizer and processor."""

_NO_DATASET = "no held-out dataset was given"


@dataclass(frozen=True)
class Version:
    """What is said of a version. `card` is the hub's: `federation`, `updates`, `nodes`, `samples` (of the last merge),
    `training` (local_steps, batch_size, lr, mu), `history` ([{version, updates, heldout_loss}]), `licence`, `failed`
    (its evaluation was given up). Each may be absent.
    """

    number: int
    loss: float | None
    datasets: dict[str, dict[str, Any]]
    card: dict[str, Any]


def write(
    folder: Path, spec: ModelSpec, policy: Policy, pre: Processor, post: Processor, version: Version,
    placed: Path | None = None,
) -> None:  # fmt: skip
    """Write the LeRobot folder, replacing what is at `folder`. The policy's configuration is left as it was.

    `placed`: where somebody will move it, for what in it says where it is.
    """
    folder = folder.absolute()
    place = (placed or folder).absolute()
    part = folder.with_name(f".{folder.name}.tmp")  # hidden: a name no person gives to a folder of theirs
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
    except OSError as error:
        raise from_os(error, f"{folder} cannot be made") from error
    try:
        _fill(part, place, spec, policy, pre, post, version)
    except BaseException:  # a full disk, most of all: a model that is half there would keep it full
        shutil.rmtree(part, ignore_errors=True)
        raise
    if folder.exists():
        old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        folder.replace(old)
        make_durable(part, folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        make_durable(part, folder)


def _fill(
    part: Path, place: Path, spec: ModelSpec, policy: Policy, pre: Processor, post: Processor, version: Version
) -> None:
    _write_lerobot(part, place, spec, policy, pre, post)
    metrics: dict[str, Any] = {
        "federation": version.card.get("federation"),
        "version": version.number,
        "policy": policy.name,
        "units": spec.units,
        "fps": spec.fps,
        "heldout_loss": version.loss,
        "datasets": version.datasets,
        "spec_digest": spec.digest,
        "base_digest": spec.base_digest,
        **{k: version.card[k] for k in ("updates", "nodes", "samples", "training", "history") if k in version.card},
    }
    (part / "metrics.json").write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
    (part / "README.md").write_text(card(place, spec, policy, version))


def _write_lerobot(part: Path, folder: Path, spec: ModelSpec, policy: Policy, pre: Processor, post: Processor) -> None:
    """LeRobot's own files. Everything in them is for "cpu", which each machine has; loading says otherwise."""
    config = policy.config
    kept = {name: getattr(config, name) for name in ("device", BACKBONE_FIELD) if hasattr(config, name)}
    steps = {getattr(type(s), "_registry_name", ""): s for s in pre.steps}
    tokenizer, mover = steps.get("tokenizer_processor"), steps.get("device_processor")
    kept_name, kept_device = getattr(tokenizer, "tokenizer_name", None), getattr(mover, "device", None)
    try:
        config.device = "cpu"
        if mover is not None:
            mover.device = "cpu"
        backbone = spec.backbone
        if backbone == "tiny":
            shutil.copytree(kept[BACKBONE_FIELD], part / BACKBONE_FOLDER)
            backbone = str(folder / BACKBONE_FOLDER)
        if backbone:
            setattr(config, BACKBONE_FIELD, backbone)
            if tokenizer is not None:
                tokenizer.tokenizer_name = backbone
        policy.save_pretrained(part)
        pre.save_pretrained(part)
        post.save_pretrained(part)
    finally:
        for name, value in kept.items():
            setattr(config, name, value)
        if tokenizer is not None:
            tokenizer.tokenizer_name = kept_name
        if mover is not None:
            mover.device = kept_device


def card(folder: Path, spec: ModelSpec, policy: Policy, version: Version) -> str:
    """The model card, Markdown with Hugging Face's front matter."""
    import lerobot

    told, cls = version.card, type(policy)
    federation = str(told.get("federation") or "not named")
    licence = str(told.get("licence") or "")
    units = "degrees" if spec.units == "degrees" else "the range −100…100 (gripper 0…100)"
    front = ["---", "library_name: lerobot", "pipeline_tag: robotics", f"tags: [lerobot, robotics, {policy.name}, zk0]"]
    front += [f"license: {json.dumps(licence)}"] if licence else []
    lines = [
        *front, "---", "",
        f"# {federation}, version {version.number}",
        "",
        f"A {policy.name} policy for the SO-100 and SO-101 arms, trained by federated learning with zk0d: every node "
        "trained on its own recordings, and only model parameters left it.",
        "",
        "## How it was trained",
        "",
        *_table(_facts(spec, policy, version, federation)),
        "",
        "## Held-out loss",
        "",
        *(_losses(version) or [f"Not evaluated: {'that failed' if told.get('failed') else _NO_DATASET}."]),
        *_history(told.get("history")),
        "",
        "## What it takes and gives",
        "",
        *_table([("Feature", "Shape"), *((f"`{n}`", " × ".join(map(str, f.shape))) for n, f in spec.features.items())]),
        "",
        f"Joints are in {units}, at {spec.fps} steps a second. "
        "Pictures are fitted into the size given, with their proportions kept.",
        "",
        "## How to load it",
        "",
        *_loading(folder, policy, spec.backbone == "tiny"),
        "",
        "## Licence",
        "",
        licence or "The federation has not stated a licence for this model; ask its maintainers before passing it on. "
        "Pretrained parts keep the licence of their source.",
        "",
        f"Written by zk0d {__version__} with LeRobot {lerobot.__version__}, as `{cls.__module__}.{cls.__name__}`.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _facts(spec: ModelSpec, policy: Policy, version: Version, federation: str) -> list[tuple[str, str]]:
    told = version.card
    training = dict(told.get("training") or {})
    parameters = sum(p.numel() for p in policy.parameters())
    trained = sum(t.elements for t in spec.exchange)
    facts = [("", ""), ("Federation", federation), ("Version", str(version.number))]
    for key, name in (("updates", "Updates merged"), ("nodes", "Nodes"), ("samples", "Samples")):
        if told.get(key) is not None:
            facts.append((name, str(told[key])))
    facts += [(name.replace("_", " ").capitalize(), str(value)) for name, value in training.items()]
    facts.append(("Parameters", f"{parameters:,}, of which {trained:,} were trained"))
    facts.append(("Model spec", f"`{spec.digest}`"))
    return facts


def _losses(version: Version) -> list[str]:
    if version.loss is None:
        return []
    rows = [("Dataset", "Samples", "Loss")]
    rows += [(n, str(v["samples"]), f"{v['loss']:.4f}") for n, v in version.datasets.items()]
    if len(version.datasets) > 1:
        rows.append(("all", str(sum(v["samples"] for v in version.datasets.values())), f"{version.loss:.4f}"))
    return _table(rows)


def _history(history: Any) -> list[str]:
    if not history:
        return []
    rows = [("Version", "Updates", "Held-out loss")]
    for entry in history:
        loss = entry.get("heldout_loss")
        told = "" if loss is None else f"{loss:.4f}"
        rows.append((str(entry.get("version", "")), str(entry.get("updates", "")), told))
    return ["", *_table(rows)]


def _loading(folder: Path, policy: Policy, carries_backbone: bool) -> list[str]:
    cls = type(policy)
    lines = [
        "With zk0d: `from zk0d.train.load import load_published; policy, pre, post = load_published(DIR)`.",
        "",
        "With LeRobot alone:",
        "",
        "```python",
        f"from {cls.__module__} import {cls.__name__}",
        "from lerobot.policies.factory import make_pre_post_processors",
        "",
        'DIR = "…"  # this folder, as an absolute path',
    ]
    if carries_backbone:
        lines += [
            f'VLM = f"{{DIR}}/{BACKBONE_FOLDER}"',
            f'policy = {cls.__name__}.from_pretrained(DIR, cli_overrides=[f"--{BACKBONE_FIELD}={{VLM}}"])',
            'overrides = {"tokenizer_processor": {"tokenizer_name": VLM}}',
            "pre, post = make_pre_post_processors(policy.config, DIR, preprocessor_overrides=overrides)",
        ]
    else:
        lines += [
            f"policy = {cls.__name__}.from_pretrained(DIR)",
            "pre, post = make_pre_post_processors(policy.config, DIR)",
        ]
    lines.append("```")
    if carries_backbone:
        lines += [
            "",
            f"A plain `from_pretrained(DIR)` works while the folder is where it was written (`{folder}`): LeRobot "
            "keeps the backbone's place as an absolute path.",
        ]
    return lines


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Markdown table; the first row is the head."""
    head, *rest = rows
    out = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rest:
        out.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |")
    return out
