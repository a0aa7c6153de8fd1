"""The control socket's operations: one short function each, in one table. What they do is in the parts they call.

Requests come from zk0ctl on this machine; `by` is the caller's user name, which stays here.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zk0d.arguments import Whole
from zk0d.daemon import dataset_ops, datasets, log_ops, names, robot_ops
from zk0d.daemon.arm import Live
from zk0d.daemon.delivery import deliver, spool
from zk0d.daemon.quality import reports
from zk0d.daemon.rollouts import rollout
from zk0d.daemon.store import Dataset, Store
from zk0d.errors import LinkLostError, UsageError, Zk0Error
from zk0d.model.spec import ModelSpec

if TYPE_CHECKING:
    from zk0d.control_server import ControlConnection
    from zk0d.daemon.service import Service

Request = dict[str, Any]
Op = Callable[["Service", Request, "ControlConnection"], Awaitable[Any]]
_OVERRIDE_S = {"pause": 8 * 3600.0, "now": 2 * 3600.0}
_MAX_OVERRIDE_S = 30 * 86400.0


def _text(request: Request, key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str) or not value:
        raise UsageError(f"{request['op']} needs {key}")
    return value


async def op_status(service: Service, request: Request, connection: ControlConnection) -> Any:
    return service.status()


async def op_why(service: Service, request: Request, connection: ControlConnection) -> Any:
    return service.why()


async def op_signals(service: Service, request: Request, connection: ControlConnection) -> Any:
    """What every signal says now."""
    return [
        {"name": r.name, "says": r.says, "known": r.known, "level": r.level.name.lower(), "uses": list(r.uses),
         "firm": r.firm, "hard": r.hard}
        for r in service.training.signals().readings
    ]  # fmt: skip


async def op_enroll(service: Service, request: Request, connection: ControlConnection) -> Any:
    from zk0d.daemon.enrolment import enrol, required  # with all that makes and checks certificates

    where = required(request)
    result = await enrol(service.store, service.state, where, connection.emit, connection.closed.is_set)
    await service.uplink.close()
    await service.uplink.start()
    service.changed()
    return result


async def op_certificate(service: Service, request: Request, connection: ControlConnection) -> Any:
    """Until when this node's certificate is good: the keys' folder is open to the daemon alone."""
    from zk0d.link.lifetime import Lifetime

    path = service.state / "keys" / "node.pem"
    if not path.exists():
        raise Zk0Error("this node has no certificate", "zk0ctl enroll")
    return {"until": Lifetime.of(path.read_bytes()).end}


async def op_federation_list(service: Service, request: Request, connection: ControlConnection) -> Any:
    await service.uplink.hear()
    return {"joined": service.status()["federations"], "offered": service.store.get("offered", [])}


async def op_federation_join(service: Service, request: Request, connection: ControlConnection) -> Any:
    name = _text(request, "federation")
    names.checked(name, "federation", "ask the maintainer for its name")
    if service.store.hub() is None:
        raise Zk0Error("this node is not enrolled at a hub", "zk0ctl enroll first")
    service.store.join(name)
    service.uplink.kick()
    deadline = time.monotonic() + float(request.get("wait_s") or 5.0)
    while time.monotonic() < deadline:
        federation = service.store.federation(name)
        if federation is None or federation.state != "joining" or federation.reason:
            break
        await asyncio.sleep(0.05)
    service.changed()
    return next(f for f in service.status()["federations"] if f["name"] == name)


async def op_federation_leave(service: Service, request: Request, connection: ControlConnection) -> Any:
    name = _text(request, "federation")
    if service.store.federation(name) is None:
        raise UsageError(f"not a member of {name!r}", "zk0ctl federation list")
    task = service.store.task_at_hand()
    if task is not None and task.federation == name:
        service.store.set_task(task.id, state="dropped", reason="left the federation")
    service.store.leave(name)
    service.uplink.kick()
    service.changed()
    return {"federation": name, "waiting": sum(u.federation == name for u in service.store.updates("waiting"))}


async def op_record(service: Service, request: Request, connection: ControlConnection) -> Any:
    service.arm.expect(connection.user)  # first of all: what is looked up for the recording takes its time
    try:
        return await service.sessions.record(request, Live.asked("recording", connection), connection.emit)
    except Zk0Error:
        service.arm.refused()
        raise
    finally:
        service.datasets_changed()


async def op_make_way(service: Service, request: Request, connection: ControlConnection) -> Any:
    service.arm.expect(connection.user)


async def op_record_control(service: Service, request: Request, connection: ControlConnection) -> Any:
    asker = connection.asker if request.get("own") else None
    return service.arm.control(_text(request, "action"), str(request.get("note") or ""), asker)


def _described(d: Dataset) -> dict[str, Any]:
    now = datasets.refreshed(d)
    return {
        "name": d.name, "root": str(d.root), "episodes": now.episodes, "frames": now.frames, "fps": d.fps,
        "features": d.features, "tasks": list(d.tasks), "units": d.units, "rename": d.rename, "train": d.train,
        "added_at": d.added_at,
    }  # fmt: skip


async def op_dataset_list(service: Service, request: Request, connection: ControlConnection) -> Any:
    return [_described(d) for d in service.store.datasets()]


async def op_dataset_show(service: Service, request: Request, connection: ControlConnection) -> Any:
    dataset = service.store.dataset(_text(request, "name"))
    fit: dict[str, list[str]] = {}
    for federation in service.store.federations():
        if federation.spec_digest and service.uplink.blobs.has(federation.spec_digest):
            spec = ModelSpec.load(service.uplink.blobs.path(federation.spec_digest))
            fit[federation.name] = datasets.misfits(dataset, spec)
    copy = service.store.get(dataset_ops.COPIES, {}).get(dataset.name)
    return {**_described(dataset), "misfits": fit, "copy": copy, "quality": _quality(service, dataset)}


def _quality(service: Service, dataset: Dataset) -> list[dict[str, Any]]:
    """Of each episode: its report as far as it has one, and whether it is trained on or why not."""
    out, found = service.selection.out(dataset), reports(dataset.root)
    taken_in = service.selection.taken_in(dataset.name)
    return [
        {"episode": n, **found.get(n, {}), "trained": n not in out, "why_not": out.get(n, ""),
         "taken_in": n in taken_in}
        for n in range(datasets.refreshed(dataset).episodes)
    ]  # fmt: skip


async def op_dataset_add(service: Service, request: Request, connection: ControlConnection) -> Any:
    name, root = _text(request, "name"), Path(_text(request, "path"))
    names.checked(name, "dataset")
    if not root.is_absolute():
        raise UsageError(f"{root} is not an absolute path")
    known = next((d for d in service.store.datasets() if d.name == name), None)
    if known is not None and known.root != root:
        raise UsageError(f"the dataset {name!r} is the one in {known.root}", f"give {root} another name with --name")
    dataset_ops.seen(service, root)
    dataset = datasets.describe(name, root, known, **dataset_ops.said(request))
    service.store.put_dataset(dataset)
    service.store.event("dataset", f"dataset {name!r} added: {dataset.episodes} episodes")
    service.datasets_changed()
    return _described(dataset)


async def op_train(service: Service, request: Request, connection: ControlConnection) -> Any:
    action = _text(request, "action")
    if action == "resume":
        service.training.set_override(None, connection.user)
        service.uplink.kick()
    elif action in _OVERRIDE_S:
        asked = request.get("for_s")
        for_s = _OVERRIDE_S[action] if asked is None else float(asked)
        if not 0 < for_s <= _MAX_OVERRIDE_S:
            raise UsageError(f"{for_s:.0f} s is not a time for an override", "between a second and 30 days")
        service.training.set_override(action, connection.user, for_s)
        if action == "now":
            service.uplink.forgive()
    else:
        raise UsageError(f"train {action!r} is not known", "now, pause or resume")
    return service.status()["state"]


async def op_model_list(service: Service, request: Request, connection: ControlConnection) -> Any:
    return service.models.table()


async def op_model_show(service: Service, request: Request, connection: ControlConnection) -> Any:
    version = service.models.find(_text(request, "version"))
    rows = service.models.table()
    return next(r for r in rows if (r["federation"], r["version"]) == (version.federation, version.number))


async def op_model_pull(service: Service, request: Request, connection: ControlConnection) -> Any:
    version = service.models.find(_text(request, "version"))
    await service.models.pull(version, connection.emit)
    return {"federation": version.federation, "version": version.number}


async def op_model_export(service: Service, request: Request, connection: ControlConnection) -> Any:
    version = service.models.find(_text(request, "version"))
    target = Path(_text(request, "folder"))
    if not target.is_absolute():
        raise UsageError(f"{target} is not an absolute path")
    with spool(service.workers.work, "model") as folder:
        result = await service.models.export(version, target, folder / "model", connection.emit)
        return {**result, **await deliver(folder / "model", connection)}


async def op_rollout(service: Service, request: Request, connection: ControlConnection) -> Any:
    version = service.models.find(_text(request, "model"))
    arm, store, emit = service.arm, service.store, connection.emit
    kept = service.state / "rollouts" / time.strftime("%Y%m%d-%H%M%S")
    live = Live.asked("rollout", connection)
    live.goal = Whole(1, 10_000).of(request.get("episodes") or 1, "the number of episodes")
    with arm.waited_for(live):
        # A model may take minutes to come and be made: whoever ends the command meanwhile must not see the arm move.
        policy = await arm.beforehand(live, service.models.folder(version, emit))
        spec = ModelSpec.load(service.uplink.blobs.path(version.spec_digest))
        work = rollout(arm, store, service.config, policy, spec, request, kept, live, emit)
        try:
            result = await arm.independent(work)
        except Zk0Error:
            shutil.rmtree(kept, ignore_errors=True)
            raise
    try:
        sent = await _film(kept, connection)
    except LinkLostError:
        store.event("rollout", "nobody was left to take its video; zk0ctl rollout fetch --out DIR writes it")
        raise
    return {"federation": version.federation, "version": version.number, **result, **sent}


async def _film(folder: Path, connection: ControlConnection) -> dict[str, int]:
    """Hand a rollout's folder over; it is removed only when it was sent whole."""
    sent = await deliver(folder, connection)
    shutil.rmtree(folder, ignore_errors=True)
    return sent


async def op_rollout_fetch(service: Service, request: Request, connection: ControlConnection) -> Any:
    """The latest rollout whose caller had gone away before it ended."""
    kept = sorted(path for path in (service.state / "rollouts").glob("*/") if (path / "rollout.json").exists())
    if not kept:
        raise Zk0Error("no rollout waits to be fetched", "zk0ctl rollout --out DIR writes them itself")
    return {"begun": kept[-1].name, "waiting": len(kept) - 1, **await _film(kept[-1], connection)}


def receipts_document(store: Store) -> dict[str, Any]:
    """All evidence the node holds, bytes in hex: what `zk0ctl receipts` verifies, with or without the daemon."""
    hub = store.hub()
    return {
        "key": "" if hub is None else hub.receipt_key.decode(),
        "entries": [
            {"leaf": e.leaf, "update": e.update, "receipt": e.receipt.hex(), "signature": e.signature.hex(),
             "stored_at": e.stored_at, "position": e.position, "size": e.size, "path": b"".join(e.path).hex(),
             "set_aside": e.set_aside}
            for e in store.entries()
        ],
        "heads": [
            {"size": h.size, "head": h.head.hex(), "signature": h.signature.hex(), "stored_at": h.stored_at,
             "consistency": b"".join(h.consistency).hex()}
            for h in store.heads()
        ],
        "refusals": [
            {**r, "refusal": r["refusal"].hex(), "signature": r["signature"].hex()} for r in store.refusals()
        ],
        "log": store.get("log", {}),
        "conflict": store.get("log_conflict"),
    }  # fmt: skip


async def op_receipts(service: Service, request: Request, connection: ControlConnection) -> Any:
    return receipts_document(service.store)


async def op_receipts_accept_head(service: Service, request: Request, connection: ControlConnection) -> Any:
    told = await service.uplink.exchange.accept_head()
    service.uplink.kick()
    service.changed()
    return told


async def op_modules(service: Service, request: Request, connection: ControlConnection) -> Any:
    """Names of the top-level modules the daemon has loaded, so that a test can see that no torch is among them."""
    import sys

    return sorted({name.partition(".")[0] for name in sys.modules})


OPS: dict[str, Op] = {
    name.removeprefix("op_"): f
    for name, f in {**vars(robot_ops), **vars(dataset_ops), **vars(log_ops), **globals()}.items()
    if name.startswith("op_")
}
