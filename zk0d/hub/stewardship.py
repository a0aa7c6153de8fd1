"""A maintainer's hand on one federation: freeze, thaw, drain, drop, roll back, new settings. Called by admin.py.

Checks and files are here, the transactions in custody.py.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import structlog

from zk0d.errors import ConfigError, UsageError
from zk0d.hub import preflight
from zk0d.hub.coherence import unheld
from zk0d.hub.config import ASIDE, FEDERATION, parse_federation
from zk0d.hub.federation import FederationRunner
from zk0d.hub.store import Row
from zk0d.model.payload import Payload, write_exchange

log = structlog.get_logger("federation")

FIXED = ("model.",)
"""Settings that make the model what it is: not to be changed while it lives."""


def hold(federation: FederationRunner, state: str, actor: str) -> None:
    """`state` "frozen", "draining" or "" (thaw). Raises UsageError when there is nothing to hold or thaw."""
    row = federation.row
    if row["phase"] == "finished":
        raise UsageError(f"federation {federation.name} is finished", "there is nothing to hold or thaw")
    if row["hold"] == state:
        told = f"is {state} already" if state else "is not held: there is nothing to thaw"
        raise UsageError(f"federation {federation.name} {told}", "`zk0-hub status` says what it does")
    federation.custody.hold(federation.name, state, actor)
    log.info("federation held" if state else "federation thawed", federation=federation.name, hold=state, actor=actor)
    federation.consider()


def finish(federation: FederationRunner, actor: str) -> None:
    """End a federation; its nodes hear of it with their next hello. Raises UsageError when it has ended already."""
    row = federation.row
    if row["phase"] == "finished":
        raise UsageError(f"federation {federation.name} is finished already", "nothing is left to end")
    if row["phase"] == "gathering" and federation.is_merging:
        raise UsageError(f"federation {federation.name} is being opened", "try again in a moment")
    federation.ledger.finish(federation.name, actor)
    federation.problem = ""  # of a version that is not to come any more
    if row["phase"] == "gathering":  # what would have been version 0, and nobody has got
        for digest in (row["base"], row["exchange"]):
            federation.hub.discard(digest)
    log.info("federation finished", federation=federation.name, actor=actor)


async def check_settings(federation: FederationRunner, toml: str, where: str) -> str:
    """Look at what new settings name, before `change_settings` → a warning, or empty. Raises ConfigError."""
    known = federation.config["evaluation.datasets"]  # one that has gone since must not keep others from being set
    return await preflight.check(federation.hub, parse_federation(toml, where), federation.name, where, known)


def change_settings(
    federation: FederationRunner, toml: str, where: str, actor: str
) -> tuple[dict[str, list[Any]], list[str]]:
    """Take new settings for the next version → key → [now, then], and the keys that hold at once. Raises ConfigError,
    UsageError; then nothing changes.

    At once: all of them while the federation gathers or cannot merge by the old ones, else [rounds] and what no round
    goes by, where no merge is under way. A version that waits for more nodes than there are would never come, nor what
    is to hold from it on.
    """
    new, old = parse_federation(toml, where), federation.config
    changed = {s.key: [old[s.key], new[s.key]] for s in FEDERATION if old[s.key] != new[s.key]}
    if federation.row["phase"] == "finished" and not all(k.startswith(ASIDE) for k in changed):
        raise UsageError(
            f"federation {federation.name} is finished", "only its [evaluation] and [publish] can still be changed"
        )
    fixed = [k for k in changed if k.startswith(FIXED)]
    if old.table("model") != new.table("model"):
        key = fixed[0] if fixed else "[model]"
        raise ConfigError(f"{where}: {key} cannot change in a federation that lives", "make a new federation for it")
    free = federation.row["phase"] == "gathering" or unheld(old)  # nothing is merged by these
    soon = [] if federation.is_merging else [k for k in changed if free or k.startswith(("rounds.", *ASIDE))]
    federation.custody.settings(federation.name, toml, changed, soon, actor)
    if not federation.is_merging:  # else when its version is out
        federation.settle()
    federation.hub.spawn(federation.open_if_ready(), f"open {federation.name}")
    federation.consider()
    log.info("new settings", federation=federation.name, changed=sorted(changed), at_once=sorted(soon), actor=actor)
    return changed, soon


def drop(federation: FederationRunner, which: str, node: str, reason: str, actor: str, *, fault: bool) -> list[Row]:
    """Take updates out of the next merge and refuse them, signed, with the reason → those updates.

    `which`: one update, by its digest or the beginning of it; `node`: where it is none, all of that node's. `fault`:
    the updates themselves were bad (refusals.py). Raises UsageError where none waits, or while a merge is under way.
    """
    name, ledger = federation.name, federation.ledger
    waiting = ledger.updates(name, "admitted") + ledger.updates(name, "receiving")
    begun = which.removeprefix("sha256:")
    found = [r for r in waiting if r["digest"][7:].startswith(begun)] if re.fullmatch("[0-9a-f]{4,64}", begun) else []
    if len(found) > 1:
        raise UsageError(f"{which!r} is the beginning of several updates", "give more of it")
    if not (found := found or [r for r in waiting if r["node"] == node]):
        raise UsageError(
            f"{which[:80]!r} is no update that waits in federation {name}, nor a node that has one",
            f"`zk0-hub federation show {name}` lists them; from what is merged only `rollback` leads back",
        )
    chosen = [r["digest"] for r in found]
    told = f"the maintainer dropped it: {reason}" if reason else "the maintainer dropped it and gave no reason"
    with federation.merging():
        plan = ledger.plans.unfinished(name)
        spoilt = plan is not None and any(s.update in chosen for s in plan.shares)
        ledger.plans.drop(name, plan.version if plan and spoilt else -1, chosen, told, actor, fault=fault)
    federation.problem = ""  # if it was another, the next try says it again
    log.warning("updates dropped", federation=name, updates=chosen, reason=reason, fault=fault, actor=actor)
    federation.consider()
    return found


async def roll_back(federation: FederationRunner, number: int, actor: str) -> int:
    """Publish version `number` again as the newest → its new number. Raises UsageError when that cannot be done now."""
    ledger, name = federation.ledger, federation.name
    source, newest = ledger.version(name, number), ledger.version(name)
    if federation.row["phase"] == "finished":
        raise UsageError(
            f"federation {name} is finished: no version can become its newest any more",
            f"its versions stay (`zk0-hub versions {name}`); make a new federation to go on",
        )
    if source is None or newest is None:
        raise UsageError(f"federation {name} has no version {number} to go back to", f"zk0-hub versions {name}")
    if source["retired_at"] is not None or not federation.hub.blobs.has(source["digest"]):
        kept = ", ".join(str(n) for n in ledger.retention.kept(name))
        raise UsageError(
            f"version {number} of {name} is not kept any more ([publish] keep_last, keep_every)",
            f"go back to one of {kept}; or restore a backup that has it beside this hub",
        )
    if number == newest["number"]:
        raise UsageError(f"version {number} is the newest of {name}", "give an older one")
    with federation.merging():
        blobs, spec = federation.hub.blobs, federation.spec
        master = source["master"]
        if not blobs.has(master):  # only what was published is kept of old versions: go on from that
            out = federation.hub.directory / "work" / "merge" / name / "rollback"

            def make() -> str:
                with Payload.open(blobs.path(source["digest"])) as published:
                    write_exchange(out, spec, published.float32, "float32")
                return blobs.add_file(out, move=True)

            master = await asyncio.to_thread(make)
        made = int(newest["number"]) + 1
        federation.custody.roll_back(name, source, made, master, actor)
    federation.problem = ""  # of what was rolled back from
    log.warning("rolled back", federation=name, to=number, version=made, actor=actor)
    try:
        await federation.announce(made)
    finally:
        federation.consider()
    return made
