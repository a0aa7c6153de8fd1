"""Worker: lines of metrics.jsonl to Weights & Biases, one run per federation; hub side only.

A process of its own, so that the hub needs no wandb. Job {"project", "entity", "name", "run", "mode", "dir",
"metrics", "after"}: versions above `after` are logged. In mode "offline" everything stays in `dir` (`wandb sync`).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from zk0d.errors import WorkerError
from zk0d.hub import outputs
from zk0d.worker import Message, WorkerChannel, run_worker


def values(line: dict[str, Any]) -> dict[str, float]:
    """What is logged of one version: numbers only, nodes by their random ids."""
    told: dict[str, Any] = {
        "version": line["version"], "heldout/loss": line["heldout_loss"], "updates": len(line.get("weights", {})),
        "samples": line.get("samples"), "bytes/up": line["bytes_up"], "bytes/down": line["bytes_down"],
    }  # fmt: skip
    told.update({f"heldout/{name}": found.get("loss") for name, found in (line.get("datasets") or {}).items()})
    told.update({f"nodes/{node}/loss": found["last"] for node, found in line.get("train_loss", {}).items()})
    told.update({f"nodes/{node}/norm": norm for node, norm in line.get("norms", {}).items()})
    told.update({f"nodes/{node}/staleness": value for node, value in line.get("staleness", {}).items()})
    told.update({f"seconds/{what}": value for what, value in line.get("seconds", {}).items()})
    return {k: v for k, v in told.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def main(job: Message, channel: WorkerChannel) -> Message:
    """Log what is new. Raises WorkerError when wandb is missing or does not take it."""
    try:
        import wandb
    except ImportError as error:
        raise WorkerError("wandb is not installed", "install zk0d's `ml` packages") from error
    lines = outputs.metrics_lines(Path(job["metrics"]))
    new = [line for line in lines if line["version"] > job["after"]]
    # Nothing of this machine but the numbers: no host, no code, no console.
    settings = wandb.Settings(
        console="off", disable_code=True, disable_git=True, x_disable_stats=True, x_disable_meta=True,
        x_save_requirements=False, host="zk0-hub", username="zk0-hub",
    )  # fmt: skip
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        run = wandb.init(
            project=job["project"], entity=job["entity"] or None, name=job["name"], id=job["run"], resume="allow",
            mode=job["mode"], dir=job["dir"], settings=settings,
        )  # fmt: skip
        channel.emit("ready")
        for line in new:
            run.log(values(line), step=line["version"])
        run.finish()
    except Exception as error:  # wandb raises many kinds; every one means the same here
        raise WorkerError(f"wandb does not take the metrics: {str(error)[:300]}") from error
    return {"logged": len(new), "last": max((line["version"] for line in lines), default=-1)}


if __name__ == "__main__":
    sys.exit(run_worker(main))
