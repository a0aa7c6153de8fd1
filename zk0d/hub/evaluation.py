"""Evaluating and publishing each version in a worker, and what comes of it: metrics (metrics.py) and the chart.

One version at a time, oldest first. The rounds never wait for it: an evaluation that fails is tried a bounded number of
times, then its version has no loss, and that is said. Folders that are still to be made come after (folders.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from zk0d.errors import UsageError, WorkerError, Zk0Error
from zk0d.hub import outputs, remains
from zk0d.hub.config import Config
from zk0d.hub.folders import Folders
from zk0d.hub.ledger import Ledger
from zk0d.hub.metrics import Metrics
from zk0d.hub.store import Row
from zk0d.model.blobs import BlobStore, DiskFullError
from zk0d.supervise import Worker

log = structlog.get_logger("evaluation")

STOP_S = 3.0
CHART_S = 120.0
HISTORY = 100
"""Versions whose losses a model card tells."""


class Evaluations:
    """The queue of versions to evaluate. `configs` holds each federation's settings."""

    def __init__(
        self,
        directory: Path,
        settings: Config,
        ledger: Ledger,
        blobs: BlobStore,
        configs: dict[str, Config],
        reported: Callable[[], None] = lambda: None,
        merge_room: Callable[[], int] = lambda: 0,
    ) -> None:
        """`reported` is called when a federation's folders and metrics are new; `merge_room` as in folders.py."""
        self.progress = ""
        """What is being evaluated, for status; "" when nothing is."""
        self._directory, self._settings = directory, settings
        self._ledger, self._blobs, self._configs = ledger, blobs, configs
        self._reported = reported
        self._wake = asyncio.Event()
        self._worker: Worker | None = None
        self._loop: asyncio.Task[None] | None = None
        self._chart_problem = ""
        self._undrawn: set[str] = set()
        self.metrics = Metrics(directory, ledger)
        self.folders = Folders(directory, ledger, blobs, configs, settings["runtime.attempts"], merge_room)

    def start(self) -> None:
        self._loop = asyncio.create_task(self._run(), name="evaluations")

    def wake(self) -> None:
        """A version was made."""
        self._wake.set()

    async def again(self, name: str, number: int | None, actor: str) -> list[int]:
        """Have version `number` evaluated and published anew, or (None) all whose evaluation was given up, with as many
        attempts as at first → which. Folders that could not be made are tried again as well. Raises UsageError when
        there is nothing such."""
        kept = {int(r["number"]): str(r["evaluation"]) for r in self._ledger.assessments.kept(name)}
        which = [n for n, state in kept.items() if state == "failed"] if number is None else [number]
        if not which and not self.folders.problem(name):
            raise UsageError(f"no evaluation of {name} was given up", "name a version to evaluate it again")
        if number is not None and number not in kept:
            known = ", ".join(str(n) for n in kept) or "none yet"
            raise UsageError(f"{name} has no version {number}, or keeps it no more", f"there are: {known}")
        if number is not None and kept[number] == "waiting":
            raise UsageError(f"version {number} of {name} waits for its evaluation already", f"zk0-hub versions {name}")
        self._ledger.assessments.again(name, which, actor)
        self.folders.forget(name)
        try:
            await self.metrics.begin_anew(name)
        except OSError as error:
            log.warning("a federation's metrics cannot be begun anew", federation=name, error=str(error))
        await self._told(name)
        self._wake.set()
        return which

    async def close(self) -> None:
        """Stop the worker; its version is evaluated again when the hub is back."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])
        if self._worker is not None:
            await self._worker.stop(STOP_S)

    async def _run(self) -> None:
        await asyncio.to_thread(remains.sweep, self._directory)
        for name in list(self._configs):
            await self._told(name)  # a kill may have come between an evaluation and its line
            self.folders.look(name)  # or it is a backup's hub
        while True:
            try:
                await self._turn()
            except Exception:  # a full disk, a database that fails: it may be better later
                log.exception("evaluations wait")
                await asyncio.sleep(self._settings["runtime.retry_s"])

    async def _turn(self) -> None:
        """Evaluate the oldest version that waits; where none does, make a folder that lacks, draw what is to be drawn
        and wait for one."""
        self._wake.clear()
        version = self._ledger.assessments.to_evaluate()
        pause: float | None = None
        if version is None and (lacks := await self.folders.next()) is not None:
            pause = await self._make_folder(lacks)
            if not pause:
                return
        if version is None:
            # Drawing takes seconds of a core: not while a version waits.
            while self._undrawn and not self._wake.is_set():
                await self._chart(self._undrawn.pop())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause)
            return
        try:
            await self._evaluate(version)
        except (OSError, sqlite3.Error):
            raise  # this machine's trouble counts as no attempt
        except Exception:
            log.exception("an evaluation met a defect")
            self._failed(version, "a defect of the hub: see its log")
        latest = self._ledger.version(version["federation"], version["number"])
        if latest is not None and latest["evaluation"] == "waiting":
            await asyncio.sleep(self._settings["runtime.retry_s"] * 2.0 ** (latest["attempts"] - 1))
        else:
            await self._told(version["federation"])

    async def _told(self, name: str) -> None:
        """Report, where that can be done: a full disk must not end the evaluations, and the next report is whole."""
        try:
            new, path = await self.metrics.report(name), self.metrics.path(name)
            if new or (path.exists() and not path.with_name("chart.png").exists()):
                self._undrawn.add(name)
                self._reported()
        except Exception:
            log.exception("a federation's metrics cannot be written", federation=name)

    async def _evaluate(self, version: Row) -> None:
        name, number = version["federation"], version["number"]
        folder = self.folders.path(name, number)
        # Not committed as evaluated, so whatever lies there is from an interrupted attempt.
        for left in (folder, folder.with_name(f".{folder.name}.tmp")):
            await asyncio.to_thread(shutil.rmtree, left, True)
        try:
            datasets = dataset_names(self._configs[name]["evaluation.datasets"])
            job = self._job(version, folder, datasets)
            try:
                self.folders.require_room(version)
            except DiskFullError:
                job["publish"] = None  # its loss is known all the same, and the folder comes when there is room
            result = await self._work(f"version {number} of {name}", job)
            loss = result.get("loss")
            if loss is not None and not math.isfinite(loss):
                raise WorkerError(f"the held-out loss of version {number} is {loss}", "lower the learning rate")
            self._ledger.assessments.evaluated(name, number, loss, result)
            await self.folders.keep(name)
            self._stop_early(name)
            self.folders.look(name)
            log.info("evaluated", federation=name, version=number, loss=loss, seconds=result.get("seconds"))
        except Zk0Error as error:
            await self.folders.clear(name, number)
            self._failed(version, str(error))

    async def _make_folder(self, version: Row) -> float:
        """Publish a version that needs no evaluation, or has none: with the loss that is known of it → seconds until
        the next one can be tried, 0 when it is made."""
        name, number = version["federation"], version["number"]
        try:
            self.folders.require_room(version)
        except DiskFullError as error:
            self.folders.put_off(version, error)
            return float(self._settings["runtime.retry_s"])
        job = self._job(version, self.folders.path(name, number), [])
        job["losses"] = json.loads(version["result"]).get("datasets", {})
        try:
            await self._work(f"version {number} of {name}: its folder", job)
        except Zk0Error as error:
            await self.folders.clear(name, number)
            log.warning("a version's folder cannot be made", federation=name, version=number, reason=str(error))
            return float(self._settings["runtime.retry_s"] * 2.0 ** self.folders.failed(name, number, str(error)))
        self.folders.made(name, number)
        log.info("a version's folder is made", federation=name, version=number)
        await self.folders.keep(name)
        self._reported()
        return 0.0

    async def _work(self, what: str, job: dict[str, Any]) -> dict[str, Any]:
        """One evaluator, with its limit of time → its result. Raises Zk0Error."""
        work, logs = self._directory / "work" / "evaluation", self._directory / "log" / "evaluation.log"
        limit = self._settings["runtime.evaluation_timeout_s"]
        self.progress = what
        try:
            self._worker = await Worker.start(
                self._settings["runtime.python"], "zk0d.train.evaluator", job, work, logs,
                env={"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1")},
            )  # fmt: skip
            async with asyncio.timeout(limit):
                result = await self._worker.wait()
            if result.get("finished") is False:
                raise WorkerError(f"the evaluation of version {job['number']} was told to end", "it is tried again")
            return result
        except TimeoutError:
            raise WorkerError(f"it took longer than {limit:.0f} s") from None
        finally:
            self.progress = ""
            if self._worker is not None and self._worker.running:
                await self._worker.stop(STOP_S)
            self._worker = None

    def _stop_early(self, name: str) -> None:
        """Finish a federation that no longer gets better."""
        retention, patience = self._ledger.retention, self._configs[name]["evaluation.patience"]
        late = patience and retention.since_best(name, patience) >= patience
        if late and self._ledger.federation(name)["phase"] == "open":
            log.info("stopped early", federation=name, best=retention.best(name))
            self._ledger.finish(name, "hub")

    def _failed(self, version: Row, reason: str) -> None:
        name, number = version["federation"], version["number"]
        last = self._ledger.assessments.evaluation_failed(name, number, reason, self._settings["runtime.attempts"])
        log.warning("evaluation failed", federation=name, version=number, reason=reason, given_up=last)
        if last:
            self.folders.look(name)

    def _job(self, version: Row, folder: Path, datasets: list[tuple[str, str]]) -> dict[str, Any]:
        name, config = version["federation"], self._configs[version["federation"]]
        federation = self._ledger.federation(name)
        return {
            "spec": str(self._blobs.path(federation["spec"])),
            "base": str(self._blobs.path(federation["base"])),
            "version": str(self._blobs.path(version["digest"])),
            "number": version["number"],
            "publish": str(folder),
            "card": {
                "federation": name,
                "updates": version["updates"],
                "nodes": len(self._ledger.members.names(name)),
                "samples": version["samples"],
                "training": config.table("training"),
                "history": [
                    {"version": v["number"], "updates": v["updates"], "heldout_loss": v["loss"]}
                    for v in self._ledger.versions(name, version["number"] - HISTORY, version["number"])
                ],
                "licence": config["publish.licence"],
                "failed": version["evaluation"] == "failed",
            },
            "datasets": [{"name": n, "root": root, "episodes": None} for n, root in datasets],
            "max_samples": config["evaluation.max_samples"],
            "seed": config["evaluation.seed"],
            "device": self._settings["runtime.device"],
            "cache": str(self._directory / "cache"),
        }

    async def _chart(self, name: str) -> None:
        folder = self._directory / "federations" / name
        work = self._directory / "work" / "chart"
        job = {
            "title": name,
            "metrics": str(folder / "metrics.jsonl"),
            "out": str(folder / "chart.png"),
            "svg": str(folder / "chart.svg"),
        }
        logs = self._directory / "log" / "chart.log"
        worker: Worker | None = None
        try:
            worker = await Worker.start(self._settings["runtime.python"], "zk0d.hub.chart", job, work, logs)
            async with asyncio.timeout(CHART_S):
                await worker.wait()
            self._chart_problem = ""
        except (TimeoutError, Zk0Error) as error:
            if str(error) != self._chart_problem:  # the same each version: said once
                self._chart_problem = str(error)
                log.warning("no chart", federation=name, reason=str(error) or "it took too long")
        finally:
            if worker is not None and worker.running:
                await worker.kill()


def dataset_names(locations: list[str]) -> list[tuple[str, str]]:
    """`local:/path` or `hf:owner/name` → (name, folder); names are the folders', made different where two are alike."""
    named: list[tuple[str, str]] = []
    for location in locations:
        root = outputs.dataset_root(location)
        name = Path(location.removeprefix("local:")).name
        taken = sum(1 for n, _ in named if n == name or n.startswith(f"{name}-"))
        named.append((f"{name}-{taken + 1}" if taken else name, root))
    return named
