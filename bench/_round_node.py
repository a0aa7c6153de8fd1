"""One node of bench/round.py: a process that speaks the real link, trains nothing and gives back a fixed delta.

Everything it must not forget is in its folder, so that `kill -9` at any time costs only time.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from _harness import REPOSITORY  # noqa: F401  (puts the repository on the path)

from zk0d.durable import canonical_json, digest_of, write_bytes
from zk0d.errors import LinkLostError, RefusedError
from zk0d.link.identity import NodeIdentity
from zk0d.link.node import NodeLink
from zk0d.link.state import LinkLimits
from zk0d.model.blobs import BlobStore
from zk0d.model.payload import write_exchange
from zk0d.model.spec import ModelSpec

UPDATE_PREFIX = b"zk0 update v1\0"


class Node:
    """`folder` holds `keys/`, `blobs/` and, while an update waits for its receipt, `offer.json`."""

    def __init__(self, folder: Path, host: str, port: int, index: int, random: bool) -> None:
        self.folder, self.index, self.random = folder, index, random
        self.identity = NodeIdentity.load(folder / "keys")
        self.blobs = BlobStore(folder / "blobs", reserve=0)
        self.wake = asyncio.Event()
        self.receipts: set[str] = set()
        limits = LinkLimits(retry_min_s=0.05, retry_max_s=0.5, refused_min_s=0.2, reask_s=5.0)
        self.link = NodeLink(host=host, port=port, identity=self.identity, blobs=self.blobs, run_dir=folder / "run",
                             on_push=self._push, limits=limits)  # fmt: skip

    def _push(self, kind: str, body: dict[str, Any]) -> None:
        if kind == "receipt":
            self._receipt(body["receipt"])
        self.wake.set()

    def _receipt(self, receipt: bytes) -> None:
        self.receipts.add(str(json.loads(receipt)["update"]))

    async def ask(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        while True:
            try:
                await self.link.wait_connected(60)
                return await self.link.request(kind, body, timeout=30)
            except LinkLostError:
                await asyncio.sleep(0.02)
            except RefusedError as refused:
                if refused.reason != "busy":
                    raise
                await asyncio.sleep(0.2)  # small rounds come faster than a hub lets one node ask

    async def pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.wake.wait(), seconds)
        except TimeoutError:
            pass
        self.wake.clear()

    async def run(self, federation: str) -> None:
        """Rounds until the process is ended."""
        await self.link.start()
        await self.link.wait_connected(60)
        await self.ask("hello", {"software": "bench", "federations": [federation]})
        one = {"mean": [0.0] * 6, "std": [2.0] * 6, "min": [-9.0] * 6, "max": [9.0] * 6, "count": [100.0]}
        stats = {"action": one, "observation.state": one}
        dataset = {"uuid": str(uuid.uuid4()), "episodes": 5, "frames": 100}
        await self.ask("federation.join", {"federation": federation, "stats": stats, "datasets": [dataset]})
        before = ""
        while True:
            if (self.folder / "offer.json").exists():
                await self.deliver()
            reply = await self.ask("task.request", {"federation": federation})
            task = reply.get("task")
            if task is None:
                await self.pause(min(float(reply.get("retry_s") or 1.0), 0.5))
                continue
            began = time.monotonic()
            for key in ("spec_digest", "version_digest"):
                await self.fetch(str(task[key]))
            fetched = time.monotonic()
            if before and before != task["version_digest"]:
                self.blobs.delete(before)
            before = str(task["version_digest"])
            await asyncio.to_thread(self.train, task)
            print(f"version {task['version']}: fetched in {fetched - began:.2f} s, "
                  f"made in {time.monotonic() - fetched:.2f} s at {time.time():.2f}", flush=True)  # fmt: skip

    async def fetch(self, digest: str) -> None:
        while not self.blobs.has(digest):
            try:
                await self.link.fetch(digest)
            except LinkLostError:
                await asyncio.sleep(0.02)

    def train(self, task: dict[str, Any]) -> None:
        spec = ModelSpec.load(self.blobs.path(task["spec_digest"]))
        rng = np.random.default_rng([self.index, task["version"]])
        # Another one for each version: the hub does not ask for a payload that it has already.
        constant = np.float32(1e-3 * (self.index + 1) + 1e-6 * task["version"])

        def delta(name: str) -> Any:
            shape = next(t.shape for t in spec.exchange if t.name == name)
            return rng.standard_normal(shape, dtype=np.float32) if self.random else np.full(shape, constant)

        out = self.folder / "update.safetensors"
        payload = write_exchange(out, spec, delta)
        self.blobs.place(out, payload.digest, payload)
        statement = {
            "federation": task["federation"], "task": task["id"], "node": self.identity.node_id,
            "base_version": task["version"], "payload": payload.digest, "size": payload.size, "samples": 1 + self.index % 8, "steps": 1,
            "loss_first": 1.0, "loss_last": 1.0,
        }  # fmt: skip
        write_bytes(self.folder / "offer.json", canonical_json(statement))

    async def deliver(self) -> None:
        """Offer until there is a receipt; note it before the update is let go."""
        raw = (self.folder / "offer.json").read_bytes()
        statement, update = json.loads(raw), digest_of(raw)
        body = {"statement": raw, "signature": self.identity.sign(UPDATE_PREFIX + raw), "size": statement["size"]}
        self.link.share(statement["payload"])
        while update not in self.receipts:
            try:
                reply = await self.ask("update.offer", body)
                if "receipt" in reply:
                    self._receipt(reply["receipt"])
                    break
            except RefusedError as error:
                print(f"refused: {error.reason}: {error.message}", flush=True)
                break
            await self.pause(2.0)
        with (self.folder / "receipts.txt").open("a") as out:
            if update in self.receipts:
                out.write(update + "\n")
        (self.folder / "offer.json").unlink()
        print(f"delivered at {time.time():.2f}", flush=True)
        self.link.unshare(statement["payload"])
        self.blobs.delete(statement["payload"])


def main() -> None:
    folder, host, port, index, federation, random = sys.argv[1:]
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    began = time.time()
    try:
        asyncio.run(Node(Path(folder), host, int(port), int(index), random == "random").run(federation))
    finally:
        print(f"ended after {time.time() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
