"""The control socket's operations on whole datasets: a worker does the work; the store learns what came of it.

Nothing is deleted without `confirmed`, and then the former folder is kept beside the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zk0d import dataset_info
from zk0d.daemon import datasets, names, staged
from zk0d.daemon.curating import WithdrawnError
from zk0d.daemon.dataset_swap import held, renumbered, swap
from zk0d.daemon.delivery import deliver, spool
from zk0d.daemon.store import Dataset
from zk0d.errors import DatasetError, LinkLostError, UnseenError, UsageError, Zk0Error

if TYPE_CHECKING:
    from zk0d.control_server import ControlConnection
    from zk0d.daemon.service import Service

COPIES = "dataset_copies"
"""The store's key of the last export of each dataset: when, how many episodes, where to."""
_HIDDEN = tuple(Path(p) for p in ("/home", "/root", "/run/user", "/tmp", "/var/tmp"))
"""What the units of daemon and workers do not see, or see another of (ProtectHome=, PrivateTmp=)."""


def _episodes(request: dict[str, Any], total: int) -> list[int]:
    value = request.get("episodes")
    if not isinstance(value, list) or not value or not all(isinstance(n, int) for n in value):
        raise UsageError("which episodes?", "for example 3 7-9")
    wrong = sorted({n for n in value if not 0 <= n < total})
    if wrong:
        raise UsageError(f"there is no episode {', '.join(map(str, wrong))}", f"it has 0 to {total - 1}")
    return sorted(set(value))


async def op_dataset_exclude(service: Service, request: dict[str, Any], connection: ControlConnection) -> Any:
    """Keep episodes out of training, or with `include` train on them whatever the rules say; → those out now."""
    dataset = service.store.dataset(str(request.get("name")))
    total = datasets.refreshed(dataset).episodes
    named, choose = set(_episodes(request, total)), service.selection
    out, taken_in = choose.kept_out(dataset.name), choose.taken_in(dataset.name)
    if request.get("include"):
        choose.set(dataset.name, out - named, taken_in | named)
    else:
        choose.set(dataset.name, out | named, taken_in - named)
    after = choose.out(dataset)
    if len(after) >= total:
        choose.set(dataset.name, out, taken_in)
        raise UsageError("no episode would be left to train on", f"zk0ctl dataset add {dataset.root} --no-train")
    service.store.event("dataset", f"dataset {dataset.name!r}: {len(after)} of {total} episodes kept out of training")
    service.datasets_changed()
    return {"name": dataset.name, "excluded": sorted(after), "episodes": total}


def _target(service: Service, name: str) -> Path:
    names.checked(name, "dataset")
    if any(d.name == name for d in service.store.datasets()):
        raise DatasetError(f"there is a dataset {name!r} already", "choose another name")
    _idle(service, name)
    target = service.datasets_folder / name
    if os.path.lexists(target):
        raise DatasetError(f"{target} is there already", f"another name, or zk0ctl dataset add local:{target}")
    return target


def seen(service: Service, path: Path) -> None:
    """Raises UnseenError for a folder that the daemon cannot read, rather than that it is not there."""
    hidden = service.workers.systemd is not None and any(path.is_relative_to(each) for each in _HIDDEN)
    if hidden or not _readable(path):
        raise UnseenError(f"zk0d cannot read {path}", "zk0ctl dataset import copies it in")


def _readable(path: Path) -> bool:
    try:
        path.stat()
    except PermissionError:
        return False
    except OSError:
        return True  # it is not there: that is said better by whoever looks for its files
    return os.access(path, os.R_OK | os.X_OK)


def _idle(service: Service, name: str) -> None:
    live = service.arm.live
    if live is not None and live.dataset == name:
        raise DatasetError(f"{name!r} is being recorded into", "end that first: zk0ctl record finish")


async def _settled(service: Service, *names: str) -> None:
    """Nobody records into these, and what a killed recorder left in them is part of them. Raises DatasetError."""
    for name in names:
        _idle(service, name)
        root = service.store.dataset(name).root
        if staged.left_behind([root]):
            if not await asyncio.shield(service.arm.background(staged.adopt(service.workers, service.store, [root]))):
                raise DatasetError(
                    f"{name!r} holds takes that are not saved yet", "zk0ctl status, and the log, say why"
                )
            _idle(service, name)


def _add(service: Service, name: str, root: Path, like: Dataset | None, **said: Any) -> Dataset:
    """Register what was made, with the settings of `like` or as was `said` (datasets.describe)."""
    if like is not None:
        said = {"units": like.units, "rename": like.rename, "train": like.train}
    dataset = datasets.describe(name, root, None, **{"units": "", **said})
    if like is not None:
        dataset = replace(dataset, tasks=like.tasks)
    service.store.put_dataset(dataset)
    service.datasets_changed()
    return dataset


async def op_dataset_verify(service: Service, request: dict[str, Any], connection: ControlConnection) -> Any:
    dataset = service.store.dataset(str(request.get("name")))
    return await service.curating.run({"action": "verify", "root": str(dataset.root)}, connection)


async def op_dataset_sheet(service: Service, request: dict[str, Any], connection: ControlConnection) -> Any:
    dataset = service.store.dataset(str(request.get("name")))
    with spool(service.workers.work, "sheet") as folder:
        out = folder / "sheet.png"
        job = {"action": "sheet", "root": str(dataset.root), "out": str(out), "episodes": request.get("episodes") or []}
        return {**await service.curating.run(job, connection), **await deliver(folder, connection)}


async def op_dataset_delete(service: Service, request: dict[str, Any], connection: ControlConnection) -> Any:
    """Make the dataset anew without some episodes; the former folder stays as NAME.before-TIME."""
    dataset = service.store.dataset(str(request.get("name")))
    await _settled(service, dataset.name)
    with held([dataset.root], alone=True):
        total = datasets.refreshed(dataset).episodes
        episodes = _episodes(request, total)
        if not request.get("confirmed"):
            raise UsageError(f"{len(episodes)} of {total} episodes would be deleted", "say --yes, or dataset exclude")
        fresh = dataset.root.with_name(f"{dataset.root.name}.new-{time.time_ns():x}")
        job = {"action": "delete", "root": str(dataset.root), "episodes": episodes, "target": str(fresh)}
        await service.curating.run(job, connection)
        before = swap(service.store, service.selection, dataset.name, dataset.root, fresh, episodes)
    now = datasets.describe(dataset.name, dataset.root, dataset, units=dataset.units)
    service.store.put_dataset(now)
    service.store.event("dataset", f"{len(episodes)} episodes deleted from {dataset.name!r}; before: {before}")
    service.datasets_changed()
    return {"name": dataset.name, "episodes": now.episodes, "frames": now.frames, "before": str(before)}


async def op_dataset_split(service: Service, request: dict[str, Any], connection: ControlConnection) -> Any:
    dataset = service.store.dataset(str(request.get("name")))
    await _settled(service, dataset.name)
    target = _target(service, str(request.get("into")))
    rest = _target(service, str(request["rest"])) if request.get("rest") else None
    with held([dataset.root]):
        total = datasets.refreshed(dataset).episodes
        episodes = _episodes(request, total)
        job = {"action": "split", "root": str(dataset.root), "target": str(target), "rest": str(rest or ""),
               "episodes": episodes}  # fmt: skip
        result = await service.curating.run(job, connection)
    others, choose = [n for n in range(total) if n not in set(episodes)], service.selection
    for root, without in ((target, others), (rest, episodes)):
        if root is not None:
            said = (choose.kept_out(dataset.name), choose.taken_in(dataset.name))
            choose.set(root.name, *(renumbered(words, without) for words in said))
            _add(service, root.name, root, replace(dataset, train=False))
    return list(result.values())


async def op_dataset_merge(service: Service, request: dict[str, Any], connection: ControlConnection) -> Any:
    sources = [service.store.dataset(str(name)) for name in request.get("names") or ()]
    if len(sources) < 2:
        raise UsageError("a merge needs two datasets or more")
    await _settled(service, *(source.name for source in sources))
    if len({s.units for s in sources}) > 1:
        raise DatasetError("their joints are in different units", "merge those of one unit")
    target = _target(service, str(request.get("into")))
    job = {"action": "merge", "roots": [str(s.root) for s in sources], "target": str(target)}
    first, out, taken_in = 0, list[int](), list[int]()
    with held([s.root for s in sources]):
        for source in sources:
            out += [first + n for n in service.selection.kept_out(source.name)]
            taken_in += [first + n for n in service.selection.taken_in(source.name)]
            first += datasets.refreshed(source).episodes
        result = await service.curating.run(job, connection)
    service.selection.set(target.name, out, taken_in)
    tasks = tuple(dict.fromkeys(t for s in sources for t in s.tasks))
    _add(service, target.name, target, replace(sources[0], tasks=tasks, train=False))
    return result


@contextlib.contextmanager
def _told(service: Service, connection: ControlConnection, what: str) -> Iterator[None]:
    """Failed after whoever asked had left, it is an event, so that they find out."""
    try:
        with service.curating.coming(connection):
            yield
    except WithdrawnError:
        raise
    except Zk0Error as error:
        if connection.closed.is_set() or isinstance(error, LinkLostError):
            service.store.event("dataset", f"{what} for {connection.user} failed: {error}")
        raise


def said(request: dict[str, Any]) -> dict[str, Any]:
    """The settings of a dataset that a request names, for datasets.describe."""
    rename = request.get("rename")
    return {
        "units": str(request.get("units") or ""), "task": str(request.get("task") or ""),
        "rename": datasets.renamed_cameras(rename) if rename else None, "train": request.get("train"),
    }  # fmt: skip


async def op_dataset_import(service: Service, request: dict[str, Any], connection: ControlConnection) -> Any:
    """Take in the dataset that the client sends, converted to v3.0 where needed; with its settings from the first."""
    target, settings = _target(service, str(request.get("name"))), said(request)
    renamed, told = settings["rename"] or {}, request.get("carry")
    if isinstance(told, dict) and isinstance(told.get("features"), list):  # before anything comes
        datasets.check_renamed(renamed, [str(name) for name in told["features"]], told.get("folder"))
    with _told(service, connection, f"import of {target.name!r}"):
        async with service.carrying.folder(target, request, connection) as source:
            info = await asyncio.to_thread(dataset_info.read, source)
            dataset_info.check(info, source)
            datasets.check_renamed(renamed, dataset_info.features(info), source)
            job = {"action": "take_in", "source": str(source), "target": str(target)}
            result = await service.curating.run(job, connection)
            made = _add(service, target.name, target, None, **settings)
    service.store.event("dataset", f"{made.episodes} episodes copied in as {made.name!r} by {connection.user}")
    return {**result, "name": made.name, "train": made.train}


async def op_dataset_cancel(service: Service, request: dict[str, Any], connection: ControlConnection) -> Any:
    """End what the same program has a worker make of a dataset."""
    return {"cancelled": await service.curating.cancel(connection)}


async def op_dataset_export(service: Service, request: dict[str, Any], connection: ControlConnection) -> Any:
    """Send the dataset's files to the caller, who says with `dataset_exported` that they are in their place."""
    dataset = service.store.dataset(str(request.get("name")))
    await _settled(service, dataset.name)
    with held([dataset.root]):
        meta = datasets.read_meta(dataset.root)
        sent = await deliver(dataset.root, connection)
    return {"name": dataset.name, "episodes": meta.episodes, "frames": meta.frames, **sent}


async def op_dataset_exported(service: Service, request: dict[str, Any], connection: ControlConnection) -> Any:
    """The caller of an export has all of it, durably, at `folder`: that is what is shown as the dataset's copy."""
    dataset = service.store.dataset(str(request.get("name")))
    folder, episodes = Path(str(request.get("folder") or "")), request.get("episodes")
    if not folder.is_absolute() or not isinstance(episodes, int):
        raise UsageError("dataset_exported needs an absolute folder and the number of episodes")
    copy = {"at": time.time(), "episodes": episodes, "folder": str(folder)}
    service.store.put(COPIES, {**service.store.get(COPIES, {}), dataset.name: copy})
    service.store.event("dataset", f"{episodes} episodes of {dataset.name!r} copied by {connection.user} to {folder}")


async def op_dataset_repair(service: Service, request: dict[str, Any], connection: ControlConnection) -> Any:
    """Save what can be saved of the broken folder that the client sends, as a new dataset of this node."""
    target = _target(service, str(request.get("into")))
    with _told(service, connection, f"repair of {target.name!r}"):
        async with service.carrying.folder(target, request, connection, anew=True) as root:
            job = {"action": "repair", "root": str(root), "target": str(target)}
            result = await service.curating.run(job, connection)
            dataset = _add(service, target.name, target, None)
            service.store.put_dataset(replace(dataset, train=False))
    service.store.event("dataset", f"{dataset.episodes} episodes saved as {target.name!r} for {connection.user}")
    return result
