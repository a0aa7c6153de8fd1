"""What a federation's settings name outside of themselves, looked at before they are taken: datasets, strategies.

What can be told from the settings alone is config.py's.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Collection
from pathlib import Path

from zk0d.errors import ConfigError, WorkerError
from zk0d.hub.config import Config
from zk0d.hub.evaluation import dataset_names
from zk0d.hub.state import HubServices
from zk0d.supervise import Worker


async def check(hub: HubServices, config: Config, federation: str, where: str, known: Collection[str] = ()) -> str:
    """Look at the held-out datasets, besides those `known` already, and at the strategy → what is missing for the first
    merge, or empty. Raises ConfigError for what is not there."""
    _check_datasets([d for d in config["evaluation.datasets"] if d not in known], where)
    return await _check_strategy(hub, config, federation, where)


def _check_datasets(datasets: list[str], where: str) -> None:
    local = [d for d in datasets if d.startswith("local:")]
    for dataset, root in dataset_names(local):
        if not (Path(root) / "meta" / "info.json").is_file():
            raise ConfigError(
                f"{where}: held-out dataset {dataset}: {root} is no LeRobot dataset", "no meta/info.json there"
            )


async def _check_strategy(hub: HubServices, config: Config, federation: str, where: str) -> str:
    # Asked of the Python that would merge, since the hub imports no flwr. Where that has none, one may be installed
    # before the first merge; where it has one that cannot run this, no version would ever be merged.
    name = str(config["merge.strategy"])
    if not name.startswith("flower:"):
        return ""
    job = {"strategy": name.removeprefix("flower:"), "only_look": True}
    work = hub.directory / "work" / "strategy" / federation
    try:
        worker = await Worker.start(
            hub.config["runtime.python"], "zk0d.hub.flower", job, work, hub.directory / "log" / "flower.log"
        )
        try:
            found = await worker.wait()
        finally:
            if worker.running:
                await worker.kill()
    except WorkerError as error:  # this hub's workers do not run at all: said now, and again by what needs one
        found = {"missing": error.message, "hint": error.hint}
    finally:
        await asyncio.to_thread(shutil.rmtree, work, True)
    if found.get("problem"):
        raise ConfigError(f"{where}: merge.strategy = {name!r}: {found['problem']}", str(found["hint"]))
    if found.get("missing"):
        return f"no version can be merged yet: {found['missing']}; {found['hint']}"
    return ""
