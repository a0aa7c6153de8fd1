"""How a federation comes to be: its settings and everything they name are looked at, version 0 is made or taken in. And
how one that was made by mistake goes again.

Called by admin.py. Not for what opens it (merging.py), nor for changing or ending it later (stewardship.py).
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from zk0d.errors import ConfigError, UsageError
from zk0d.hub import aggregate, preflight, remains
from zk0d.hub.config import Config, check_name, parse_federation
from zk0d.hub.federation import FederationRunner
from zk0d.hub.service import Hub
from zk0d.model.payload import Payload
from zk0d.model.spec import ModelSpec
from zk0d.supervise import Worker

log = structlog.get_logger("hub")

PARTS = ("spec.json", "base.safetensors", "exchange.safetensors")
"""What `zk0d.train.initial` leaves, and what a federation can be imported from."""

OnEvent = Callable[[dict[str, Any]], None]


async def create(
    hub: Hub, name: str, toml: str, where: str, actor: str, on_event: OnEvent, parts: Path | None = None
) -> dict[str, Any]:
    """Make version 0 in a worker, or take it from the folder `parts` → what was made. Raises Zk0Error.

    `where` the settings are from; `warning`, where it is not empty, says what is still missing for the first merge.
    """
    check_name(name)
    _check_free(hub, name)
    config = parse_federation(toml, where)
    warning = await preflight.check(hub, config, name, where)
    work = hub.directory / "work" / "initial" / name
    try:
        if parts is None:
            await _initial(hub, config, work, on_event)
        return {**await from_files(hub, name, toml, actor, *((parts or work) / p for p in PARTS)), "warning": warning}
    finally:
        await asyncio.to_thread(shutil.rmtree, work, True)


def _check_free(hub: Hub, name: str) -> None:
    if name in hub.federations:
        free = f", or free it: `zk0-hub federation remove {name}`" if hub.ledger.version(name) is None else ""
        raise UsageError(f"there is a federation {name!r} already", f"choose another name{free}")


async def _initial(hub: Hub, config: Config, work: Path, on_event: OnEvent) -> None:
    model = config.table("model")
    job = {"model": {k: v for k, v in model.items() if k != "seed"}, "seed": model["seed"], "out": str(work),
           "cache": str(hub.directory / "cache")}  # fmt: skip
    logs = hub.directory / "log" / "initial.log"
    worker = await Worker.start(hub.config["runtime.python"], "zk0d.train.initial", job, work, logs, on_event)
    try:
        await worker.wait()
    finally:
        if worker.running:
            await worker.stop(3.0)


async def from_files(
    hub: Hub, name: str, toml: str, actor: str, spec_path: Path, base: Path, exchange: Path
) -> dict[str, Any]:
    """A federation from a spec without statistics, a base and version 0's exchange set; all are checked first."""
    config = parse_federation(toml, f"federation {name}")
    spec = ModelSpec.load(spec_path)
    if spec.stats is not None or not spec.exchange:
        raise ConfigError(f"{spec_path} has statistics already, or no exchange set", "take one that initial made")
    if (spec.dtype, spec.policy_type) != (config["model.dtype"], config["model.policy"]):
        raise ConfigError(f"{spec_path} is {spec.policy_type} in {spec.dtype}, the federation's TOML says otherwise")

    def take() -> tuple[str, str]:
        with Payload.open(exchange) as payload:
            payload.check_against(spec)
            payload.check_finite()
        aggregate.first_master(spec, exchange, base, exchange.with_name(".first.tmp"))
        exchange.with_name(".first.tmp").unlink()
        return hub.blobs.add_file(base), hub.blobs.add_file(exchange)

    base_digest, exchange_digest = await asyncio.to_thread(take)
    if base_digest != spec.base_digest:
        raise ConfigError(f"{base} is {base_digest}, the spec says {spec.base_digest}", "take the files of one run")
    draft = hub.blobs.add_bytes(spec.to_bytes())
    _check_free(hub, name)  # another may have been made meanwhile, or one removed that shared these files
    if not (hub.blobs.has(base_digest) and hub.blobs.has(exchange_digest)):
        raise UsageError(f"a federation with the files of {name} was just removed", "try again")
    hub.ledger.create(name, toml, draft, base_digest, exchange_digest, actor)
    hub.add(name)
    log.info("federation created", federation=name, parameters=sum(t.elements for t in spec.exchange))
    return {
        "name": name,
        "draft_spec": draft,
        "base": base_digest,
        "version_0": exchange_digest,
        "tensors": len(spec.exchange),
        "parameters": sum(t.elements for t in spec.exchange),
        "payload_bytes": spec.payload_bytes,
    }


async def remove(hub: Hub, federation: FederationRunner, actor: str) -> None:
    """Take away a federation that never had a version: its name is free again. Raises UsageError.

    Its nodes' links are ended, so that they say anew what they are members of, and hear that there is none.
    """
    name, row = federation.name, federation.row
    if hub.ledger.version(name) is not None:
        raise UsageError(
            f"federation {name} has published versions: they and the receipts for them stay",
            f"`zk0-hub federation finish {name}` ends it",
        )
    if federation.is_merging:
        raise UsageError(f"federation {name} is being opened", "try again in a moment")
    members = hub.ledger.members.names(name)
    federation.custody.remove(name, actor)
    folder = remains.put_aside(hub.directory, name)  # before the name is free: a new one's is not to be deleted
    hub.forget(name)
    for digest in (row["draft_spec"], row["base"], row["exchange"]):
        hub.discard(digest)
    log.info("federation removed", federation=name, nodes=len(members), actor=actor)
    for node in members:
        hub.link.disconnect(node, f"federation {name} was removed")
    await asyncio.to_thread(shutil.rmtree, folder, True)
