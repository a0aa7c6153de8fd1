"""Evaluating and publishing each version in a worker, and what comes of it: metrics.jsonl and the chart.

One version at a time, oldest first. The rounds never wait for it: an evaluation that fails is tried a bounded number of
times, then its version has no loss, and that is said.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import structlog

from zk0d.durable import publish
from zk0d.errors import WorkerError, Zk0Error
from zk0d.hub import outputs
from zk0d.hub.config import Config
from zk0d.hub.ledger import Ledger
from zk0d.hub.receipts import timestamp
from zk0d.hub.store import Row
from zk0d.model.blobs import BlobStore
from zk0d.supervise import Worker

log = structlog.get_logger("evaluation")

STOP_S = 3.0
CHART_S = 120.0
HISTORY = 100
"""Versions whose losses a model card tells."""
AT_ONCE = 32
"""Versions whose lines are made between two looks of the event loop."""


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
    ) -> None:
        """`reported` is called when a federation's folders and metrics are new."""
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
        self._written: dict[str, int] = {}
        """Federation → the version whose line is the next of its metrics.jsonl."""

    def start(self) -> None:
        self._loop = asyncio.create_task(self._run(), name="evaluations")

    def wake(self) -> None:
        """A version was made."""
        self._wake.set()

    async def close(self) -> None:
        """Stop the worker; its version is evaluated again when the hub is back."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])
        if self._worker is not None:
            await self._worker.stop(STOP_S)

    async def _run(self) -> None:
        for name in list(self._configs):
            await self._told(name)  # a kill may have come between an evaluation and its line
        while True:
            try:
                await self._turn()
            except Exception:  # a full disk, a database that fails: it may be better later
                log.exception("evaluations wait")
                await asyncio.sleep(self._settings["runtime.retry_s"])

    async def _turn(self) -> None:
        """Evaluate the oldest version that waits; where none does, draw what is to be drawn and wait for one."""
        self._wake.clear()
        version = self._ledger.assessments.to_evaluate()
        if version is None:
            # Drawing takes seconds of a core: not while a version waits.
            while self._undrawn and not self._wake.is_set():
                await self._chart(self._undrawn.pop())
            await self._wake.wait()
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
            await self.report(name)
        except Exception:
            log.exception("a federation's metrics cannot be written", federation=name)

    async def _evaluate(self, version: Row) -> None:
        name, number = version["federation"], version["number"]
        folder = self._directory / "federations" / name / "versions" / f"{number:04d}"
        # Not committed as evaluated, so whatever lies there is from an interrupted attempt.
        for left in (folder, folder.with_name(f".{folder.name}.tmp")):
            await asyncio.to_thread(shutil.rmtree, left, True)
        self.progress = f"version {number} of {name}"
        work = self._directory / "work" / "evaluation"
        logs = self._directory / "log" / "evaluation.log"
        limit = self._settings["runtime.evaluation_timeout_s"]
        try:
            self._worker = await Worker.start(
                self._settings["runtime.python"], "zk0d.train.evaluator", self._job(version, folder), work, logs,
                env={"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1")},
            )  # fmt: skip
            async with asyncio.timeout(limit):
                result = await self._worker.wait()
            if result.get("finished") is False:
                raise WorkerError(f"the evaluation of version {number} was told to end", "it is tried again")
            loss = result.get("loss")
            if loss is not None and not math.isfinite(loss):
                raise WorkerError(f"the held-out loss of version {number} is {loss}", "lower the learning rate")
            self._ledger.assessments.evaluated(name, number, loss, result)
            self._keep_and_stop(name)
            log.info("evaluated", federation=name, version=number, loss=loss, seconds=result.get("seconds"))
        except TimeoutError:
            self._failed(version, f"it took longer than {limit:.0f} s")
        except Zk0Error as error:
            self._failed(version, str(error))
        finally:
            self.progress = ""
            if self._worker is not None and self._worker.running:
                await self._worker.stop(STOP_S)
            self._worker = None

    def _keep_and_stop(self, name: str) -> None:
        """Delete the folders that retention gives up, and finish a federation that no longer gets better."""
        config = self._configs[name]
        retention, patience = self._ledger.retention, config["evaluation.patience"]
        top = retention.best(name)
        versions = self._directory / "federations" / name / "versions"
        numbers = [int(p.name) for p in versions.iterdir() if p.name.isdigit()] if versions.is_dir() else []
        for number in outputs.superfluous(numbers, config["publish.keep_last"], config["publish.keep_every"], top):
            shutil.rmtree(versions / f"{number:04d}", ignore_errors=True)
            log.info("folder deleted by retention", federation=name, version=number)
        late = patience and retention.since_best(name, patience) >= patience
        if late and self._ledger.federation(name)["phase"] == "open":
            log.info("stopped early", federation=name, best=top)
            self._ledger.finish(name, "hub")

    def _failed(self, version: Row, reason: str) -> None:
        name, number = version["federation"], version["number"]
        last = self._ledger.assessments.evaluation_failed(name, number, reason, self._settings["runtime.attempts"])
        log.warning("evaluation failed", federation=name, version=number, reason=reason, given_up=last)

    def _job(self, version: Row, folder: Path) -> dict[str, Any]:
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
            },
            "datasets": [
                {"name": n, "root": root, "episodes": None} for n, root in dataset_names(config["evaluation.datasets"])
            ],
            "max_samples": config["evaluation.max_samples"],
            "seed": config["evaluation.seed"],
            "device": self._settings["runtime.device"],
            "cache": str(self._directory / "cache"),
        }

    # -- metrics and chart -----------------------------------------------------------------------------------------

    async def report(self, name: str) -> None:
        """Write metrics.jsonl, a line per version up to the first that still waits; the chart follows."""
        folder = self._directory / "federations" / name
        path = folder / "metrics.jsonl"
        first = self._written.pop(name, None)
        if first is None:  # this run's first report, or one after a report that failed
            first = self._taken_up(name, path)
        out, last = path if first else path.with_name(f".{path.name}.tmp"), first - 1
        if not first:
            out.unlink(missing_ok=True)
        async for lines in self.batches(name, first):
            await asyncio.to_thread(_append, out, _text(lines))
            last = lines[-1]["version"]
        new = last >= first
        if new and not first:
            await asyncio.to_thread(publish, out, path)
        self._written[name] = last + 1
        if new or (path.exists() and not (folder / "chart.png").exists()):
            self._undrawn.add(name)
            self._reported()

    def _taken_up(self, name: str, path: Path) -> int:
        """The version whose line is the next of a metrics.jsonl that an earlier run left; 0: it is written anew. By its
        last line, as after years there are gigabytes of them."""
        try:
            text, end = outputs.last_line(path)
            known = int(json.loads(text)["version"])
            if text != _text(self.lines(name, known, known + 1)):
                return 0
            os.truncate(path, end)  # a kill tore what followed
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return known + 1

    async def batches(self, name: str, first: int = 0) -> AsyncIterator[list[dict[str, Any]]]:
        """`lines`, some at a time: what a year leaves takes minutes, in which nodes are to be answered."""
        whole = True
        while whole:
            lines = self.lines(name, first, first + AT_ONCE)
            first, whole = first + AT_ONCE, len(lines) == AT_ONCE  # else some are not evaluated yet
            if lines:
                yield lines
            await asyncio.sleep(0)

    def lines(self, name: str, first: int = 0, end: int = 1 << 62) -> list[dict[str, Any]]:
        """What metrics.jsonl says of the versions from `first` to before `end`. Bytes are payload bytes that came with
        a version's updates, and that nodes took between the version before and it; losses are null where an evaluation
        was given up or had no dataset."""
        lines: list[dict[str, Any]] = []
        earlier = self._ledger.version(name, first - 1) if first else None
        before = earlier["created_at"] if earlier is not None else 0.0
        for version in self._ledger.versions(name, first, end):
            if version["evaluation"] == "waiting":
                break
            updates = self._ledger.merged_into(name, version["number"])
            result = json.loads(version["result"])
            statements = {u["node"]: json.loads(u["statement"]) for u in updates}
            lines.append(
                {
                    "version": version["number"],
                    "updates": version["updates"],
                    "samples": version["samples"],
                    "heldout_loss": version["loss"],
                    "datasets": result.get("datasets", {}),
                    "train_loss": {
                        n: {"first": s["loss_first"], "last": s["loss_last"]} for n, s in sorted(statements.items())
                    },
                    "weights": {u["node"]: u["weight"] for u in updates},
                    "norms": {u["node"]: u["norm"] for u in updates},
                    "staleness": {u["node"]: version["number"] - 1 - u["base_version"] for u in updates},
                    "bytes_up": sum(u["size"] for u in updates),
                    "bytes_down": self._ledger.assessments.bytes_down(name, before, version["created_at"]),
                    "seconds": {
                        "round": round(version["created_at"] - before, 3) if before else 0.0,
                        "merge": round(version["merge_s"], 3),
                        "evaluation": result.get("seconds"),
                    },
                    "created_at": timestamp(version["created_at"]),
                    "digest": version["digest"],
                    "evaluation": version["evaluation"],
                    "problem": result.get("error", ""),
                }
            )
            before = version["created_at"]
        return lines

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


def _text(lines: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _append(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def dataset_names(locations: list[str]) -> list[tuple[str, str]]:
    """`local:/path` or `hf:owner/name` → (name, folder); names are the folders', made different where two are alike."""
    named: list[tuple[str, str]] = []
    for location in locations:
        root = outputs.dataset_root(location)
        name = Path(location.removeprefix("local:")).name
        taken = sum(1 for n, _ in named if n == name or n.startswith(f"{name}-"))
        named.append((f"{name}-{taken + 1}" if taken else name, root))
    return named
