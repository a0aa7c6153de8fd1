"""A policy on the arm: one rollout session, by a worker process, at its spec's rate and units.

Not for making the policy's folder (models.py).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from zk0d.daemon import datasets
from zk0d.daemon.arm import Arm, Emit, Live
from zk0d.daemon.config import Config
from zk0d.daemon.store import Store
from zk0d.model.spec import ModelSpec


async def rollout(
    arm: Arm, store: Store, config: Config, policy: Path, spec: ModelSpec, request: dict[str, Any], out: Path,
    live: Live, emit: Emit,
) -> dict[str, Any]:  # fmt: skip
    """Run a policy folder on the arm, video and table into `out`; result: episodes, successes, video."""
    tasks = [t for d in store.datasets() for t in d.tasks]
    job = {
        "policy": str(policy), "task": str(request.get("task") or (tasks[-1] if tasks else "")),
        "robot": {**arm.robot(request.get("robot") or {}), "units": spec.units}, "episodes": live.goal,
        "max_s": float(request.get("max_s") or 15.0), "out": str(out),
        **({} if request.get("reset_s") is None else {"reset_s": float(request["reset_s"])}),
        "seed": int(request.get("seed") or 0), "device": config["train", "device"], "fps": spec.fps,
        "rename": datasets.renamed_cameras(request.get("rename") or {}),
    }  # fmt: skip
    await arm.beforehand(live, arm.settled())
    live.since = time.time()
    arm.hold(live)
    try:
        result = await arm.run(live, "rollout", job, emit)
    finally:
        arm.release()
    why = f": {result['ended']}" if result.get("ended") else ""
    told = f"{result.get('successes')} of {result.get('episodes')} succeeded"
    store.event("rollout", f"rollout by {live.by}: {told}{why}")
    return result
