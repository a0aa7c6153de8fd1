"""What leaves the hub for others, where a maintainer has configured it: pushes to the Hugging Face Hub, and WandB.

Beside rounds and evaluations and never in their way: a push that fails is tried a bounded number of times and then
told. What is pushed is push.plan's; what is evaluated and published locally is evaluation.py's.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import structlog

from zk0d.durable import write_json
from zk0d.errors import ConfigError, UsageError, WorkerError, Zk0Error
from zk0d.hub import outputs, push
from zk0d.hub.config import Config
from zk0d.hub.store import Store
from zk0d.supervise import Worker

log = structlog.get_logger("outlets")

ATTEMPTS = 5
LIMIT_S = 3600.0
RETRY_S = 60.0
WANDB_S = 300.0


class Outlets:
    """`configs` holds each federation's settings, as they are now."""

    def __init__(self, directory: Path, settings: Config, store: Store, configs: dict[str, Config]) -> None:
        self._directory, self._settings, self._store, self._configs = directory, settings, store, configs
        self.problems: dict[str, str] = {}
        """Federation → why nothing leaves, for status."""
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._one = asyncio.Lock()

    def start(self) -> None:
        self._loop = asyncio.create_task(self._run(), name="outlets")

    def wake(self) -> None:
        """A version was evaluated."""
        self._wake.set()

    async def close(self) -> None:
        """End; what was not sent is sent by the next run."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])

    # -- pushes ------------------------------------------------------------------------------------------------------

    async def plan(self, name: str, version: int | None) -> dict[str, Any]:
        """What a push of a version (None: the best, else the newest) is. Raises UsageError, ConfigError."""
        config = self._configs[name]
        repo = config["publish.repo"]
        if not repo:
            raise ConfigError(
                f"federation {name} has no publish.repo", 'accepted: repo = "owner/name" in its [publish]'
            )
        found = "SELECT * FROM versions WHERE federation = ? AND evaluation != 'waiting'"
        rows = {int(v["number"]): v for v in self._store.all(found, name)}
        if version is None:
            losses = {n: v["loss"] for n, v in rows.items() if v["evaluation"] == "done"}
            version = outputs.best(losses)
            version = max(losses, default=None) if version is None else version
        if version is None or version not in rows:
            raise UsageError(f"federation {name} has no such version to push", f"zk0-hub versions {name}")
        return await asyncio.to_thread(
            push.plan, self._folder(name, version), name, version, repo, config["publish.private"]
        )  # fmt: skip

    def _folder(self, name: str, version: int) -> Path:
        return self._directory / "federations" / name / "versions" / f"{version:04d}"

    async def push(self, name: str, version: int | None, actor: str) -> dict[str, Any]:
        """Push now → {repo, version, commit, url}. Raises Zk0Error; the outcome is in the database and the audit."""
        async with self._one:
            told = await self.plan(name, version)
            return await self._push(name, told, actor)

    async def _push(self, name: str, told: dict[str, Any], actor: str) -> dict[str, Any]:
        number, repo = int(told["version"]), str(told["repo"])
        job = {
            "plan": told,
            "folder": str(self._folder(name, number)),
            "endpoint": self._settings["outlets.hf_endpoint"],
        }
        env = {
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(self._directory / "cache" / "huggingface"),
            **self._token("HF_TOKEN", "hf_token"),
        }
        try:
            done = await self._work("zk0d.hub.push", "push", job, env, LIMIT_S)
        except Zk0Error as error:
            self._note(name, number, repo, "failed", {"reason": error.message}, actor)
            self.problems[name] = f"version {number} is not pushed to {repo}: {error.message}"
            log.warning("push failed", federation=name, version=number, repo=repo, reason=error.message)
            raise
        self._note(name, number, repo, "done", done, actor)
        self.problems.pop(name, None)
        log.info("pushed", federation=name, version=number, repo=repo, commit=done.get("commit"))
        return {"repo": repo, "version": number, "commit": done.get("commit"), "url": done.get("url"),
                "files": len(told["files"])}  # fmt: skip

    def _note(self, name: str, version: int, repo: str, state: str, detail: dict[str, Any], actor: str) -> None:
        with self._store.write() as db:
            db.execute(
                "INSERT INTO pushes (federation, version, repo, state, attempts, at, detail)"
                " VALUES (?, ?, ?, ?, 1, ?, ?)"
                " ON CONFLICT (federation, version, repo) DO UPDATE SET state = excluded.state,"
                " attempts = attempts + 1, at = excluded.at, detail = excluded.detail",
                (name, version, repo, state, self._store.now(), json.dumps(detail, ensure_ascii=False)),
            )
            self._store.audit(db, actor, "push" if state == "done" else "push.failed", name, version=version, repo=repo)

    def due(self, name: str) -> int | None:
        """The version that [publish] says should be pushed and is not, or None. Of every one none below one that is
        pushed already, or an old version would end as what the repository shows."""
        config = self._configs[name]
        repo, rule = config["publish.repo"], config["publish.push"]
        if not repo or rule == "never":
            return None
        best = " AND loss IS NOT NULL ORDER BY loss, number LIMIT 1" if rule == "best" else ""
        newest = self._store.one("SELECT version FROM pushes WHERE federation = ? AND repo = ? AND state = 'done'"
                                 " ORDER BY version DESC LIMIT 1", name, repo)  # fmt: skip
        above = -1 if newest is None or rule == "best" else int(newest["version"])
        rows = self._store.all(
            "SELECT number FROM (SELECT number FROM versions WHERE federation = ? AND evaluation = 'done'"
            f" AND retired_at IS NULL{best}) v WHERE number > ? AND NOT EXISTS (SELECT 1 FROM pushes p"
            " WHERE p.federation = ? AND p.version = v.number AND repo = ? AND (state = 'done' OR attempts >= ?))"
            " ORDER BY number",
            name, above, name, repo, ATTEMPTS,
        )  # fmt: skip
        return next((r["number"] for r in rows if self._folder(name, r["number"]).is_dir()), None)

    # -- the loop ----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            pause: float | None = None
            for name in list(self._configs):
                try:
                    if not await self._serve(name):
                        pause = RETRY_S
                except Exception:
                    log.exception("an outlet met a defect", federation=name)
                    pause = RETRY_S
            try:
                await asyncio.wait_for(self._wake.wait(), pause)
            except TimeoutError:
                pass

    async def _serve(self, name: str) -> bool:
        """Send what is due of one federation; False when something is to be tried again."""
        while (number := self.due(name)) is not None:
            try:
                await self.push(name, number, "hub")
            except Zk0Error:
                return False
        return await self._wandb(name)

    async def _wandb(self, name: str) -> bool:
        config = self._configs[name]
        metrics = self._directory / "federations" / name / "metrics.jsonl"
        if not config["publish.wandb_project"] or not metrics.is_file():
            return True
        state = self._directory / "work" / "wandb" / f"{name}.json"
        known = json.loads(state.read_text()) if state.is_file() else {"last": -1}
        line, _ = outputs.last_line(metrics)
        newest = json.loads(line)["version"] if line else -1
        if newest <= known["last"]:
            return True
        made = self._store.one("SELECT created_at FROM federations WHERE name = ?", name)
        run = hashlib.sha256(f"{name} {made['created_at'] if made else 0}".encode()).hexdigest()[:12]
        place = self._directory / "federations" / name
        job = {
            "project": config["publish.wandb_project"], "entity": config["publish.wandb_entity"], "name": name,
            "run": run, "mode": config["publish.wandb_mode"], "dir": str(place), "metrics": str(metrics),
            "after": known["last"],
        }  # fmt: skip
        env = {"HOME": os.environ.get("HOME", str(self._directory)), **self._token("WANDB_API_KEY", "wandb_key")}
        try:
            done = await self._work("zk0d.hub.wandb_log", "wandb", job, env, WANDB_S)
        except Zk0Error as error:
            self.problems[name] = f"metrics are not logged to WandB: {error.message}"
            log.warning("wandb failed", federation=name, reason=error.message)
            return False
        self.problems.pop(name, None)
        state.parent.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(write_json, state, {"last": done["last"], "run": run})
        return True

    async def _work(
        self, module: str, kind: str, job: dict[str, Any], env: dict[str, str], limit: float
    ) -> dict[str, Any]:
        work, logs = self._directory / "work" / kind, self._directory / "log" / f"{kind}.log"
        worker = await Worker.start(self._settings["runtime.python"], module, job, work, logs, env=env)
        try:
            async with asyncio.timeout(limit):
                return await worker.wait()
        except TimeoutError:
            raise WorkerError(f"it took longer than {limit:.0f} s") from None
        finally:
            if worker.running:
                await worker.kill()

    def _token(self, variable: str, file: str) -> dict[str, str]:
        """A secret for a worker's environment, from keys/ (0600) or our own environment; never in a job file."""
        path = self._directory / "keys" / file
        if not path.is_file():
            found = os.environ.get(variable, "")
            return {variable: found} if found else {}
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path} can be read by others", f"chmod 600 {path}")
        return {variable: path.read_text().strip()}
