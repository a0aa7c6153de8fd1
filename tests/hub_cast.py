"""A real `zk0-hub serve` process and nodes that speak to it over loopback TLS, for the hub's integration tests.

The nodes are made of zk0d.link alone: no daemon and no training; their deltas are random numbers fixed by a seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np

from zk0d.control import call
from zk0d.durable import canonical_json, digest_of, write_text
from zk0d.errors import LinkLostError, NotRunningError, RefusedError
from zk0d.hub.main import main
from zk0d.hub.receipts import RECEIPT_PREFIX, REFUSAL_PREFIX, UPDATE_PREFIX
from zk0d.invitation import Invitation
from zk0d.link.enroll import enroll
from zk0d.link.identity import NodeIdentity, verify
from zk0d.link.node import NodeLink
from zk0d.link.state import LinkLimits
from zk0d.model.blobs import BlobStore
from zk0d.model.codec import decode_bfloat16, encode_bfloat16
from zk0d.model.payload import Payload, PayloadWriter, write_exchange
from zk0d.model.spec import Feature, ModelSpec, TensorSpec

REPOSITORY = Path(__file__).resolve().parents[1]
JOINTS = tuple(f"joint_{i}.pos" for i in range(6))
FAST = LinkLimits(retry_min_s=0.05, retry_max_s=0.3, reask_s=5.0, stall_s=60.0, refused_min_s=0.2)
TOML = """
[model]
policy = "act"
dtype = "{dtype}"
[model.cameras]
front = [96, 96]
[training]
local_steps = 5
[rounds]
min_nodes = {nodes}
target = {nodes}
quorum = 1
deadline_s = {deadline_s}
versions = {versions}
"""


def make_parts(
    folder: Path, elements: int = 60_000, dtype: str = "bfloat16", shapes: dict[str, tuple[int, ...]] | None = None
) -> ModelSpec:
    """spec.json, base.safetensors and exchange.safetensors of a small model, for `federation create --from`.

    `shapes`: the exchange set, instead of a head of about `elements`."""
    rng = np.random.default_rng(7)
    shapes = shapes or {"head.bias": (7,), "head.weight": (elements // 100, 100)}
    exchange = tuple(TensorSpec(name, shape) for name, shape in sorted(shapes.items()))
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {t.name: rng.standard_normal(t.shape, dtype=np.float32) for t in exchange}
    tensors["frozen.weight"] = rng.standard_normal((10, 10), dtype=np.float32)
    with PayloadWriter(folder / "base.safetensors", {n: ("F32", v.shape) for n, v in tensors.items()}) as out:
        for name in sorted(tensors):
            out.write(name, tensors[name])
    vector = Feature("float32", (6,), JOINTS)
    features = {
        "action": vector,
        "observation.images.front": Feature("image", (96, 96, 3)),
        "observation.state": vector,
    }
    spec = ModelSpec("act", {}, "", features, 30, "degrees", exchange, dtype, out.digest)  # type: ignore[arg-type]
    write_exchange(folder / "exchange.safetensors", spec, lambda n: tensors[n])
    (folder / "spec.json").write_bytes(spec.to_bytes())
    return spec


def stats(mean: float, count: float = 100.0) -> dict[str, dict[str, list[float]]]:
    one = {"mean": [mean] * 6, "std": [2.0] * 6, "min": [mean - 9] * 6, "max": [mean + 9] * 6, "count": [count]}
    return {"action": one, "observation.state": one}


_PORTS = itertools.count(20_000 + os.getpid() % 100 * 120)


def free_port() -> int:
    """A port on loopback that nobody has, and that no kernel hands out (those are above 32767): a hub that ends and
    starts again is to find its own, whatever tests run beside it."""
    while True:
        port = next(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class HubProcess:
    """`zk0-hub serve` in `folder`, as a process of its own. A context manager: it runs inside, and is killed at the end."""

    def __init__(self, folder: Path, runtime: str = 'python = "/bin/false"\nattempts = 1\n') -> None:
        self.folder = folder
        self.patience_s = 60.0
        self.process: subprocess.Popen[bytes] | None = None
        settings = folder / "hub.toml"
        if not settings.exists():
            assert main(["--dir", str(folder), "init", "--listen", f"127.0.0.1:{free_port()}", "--name", "test"]) == 0
            write_text(settings, settings.read_text() + f"[runtime]\n{runtime}")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def start(self) -> None:
        """Begin, and wait until it answers."""
        self.begin()
        self.ready()

    def begin(self) -> None:
        (self.folder / "log").mkdir(exist_ok=True)
        with (self.folder / "log" / "console.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "zk0d.hub.main", "--dir", str(self.folder), "serve"],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=REPOSITORY,
            )  # fmt: skip

    def ready(self) -> None:
        """Until it answers."""
        assert self.process is not None
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                self.ask("status")
                return
            except NotRunningError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(self.log()) from None
                time.sleep(0.02)

    def ask(self, op: str, **fields: Any) -> Any:
        return call(self.folder / "admin.sock", {"op": op, **fields}, timeout=self.patience_s)

    def create(
        self, name: str, parts: Path, nodes: int, versions: int = 0, dtype: str = "bfloat16", deadline_s: int = 600
    ) -> None:
        toml = TOML.format(nodes=nodes, versions=versions, dtype=dtype, deadline_s=deadline_s)
        self.ask("federation_create", name=name, toml=toml, parts=str(parts))

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> float:
        """SIGTERM → seconds it took. Fails when the exit status is not 0."""
        if self.process is None or self.process.poll() is not None:
            return 0.0
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)
        assert status == 0, self.log()
        return time.monotonic() - began

    def log(self) -> str:
        return (self.folder / "log" / "console.log").read_text()

    def events(self, event: str) -> list[dict[str, Any]]:
        whole = (self.folder / "log" / "hub.log").read_text().rpartition("\n")[0]  # the last line may be half there
        lines = (json.loads(line) for line in whole.splitlines())
        return [line for line in lines if line["event"] == event]


class TestNode:
    """A node by the protocol: enrols, joins, takes tasks, offers signed updates, collects receipts."""

    __test__ = False

    def __init__(self, folder: Path, name: str, limits: LinkLimits = FAST) -> None:
        self.name = name
        self.samples = 5 + ord(name[-1]) % 32
        """What it states to have seen in 5 steps of 8, a part of its own."""
        self.dataset = str(uuid.uuid4())
        self.folder = folder / name
        self.limits = limits
        self.identity = NodeIdentity.create(self.folder / "keys")
        self.blobs = BlobStore(self.folder / "blobs", reserve=0)
        self.receipts: dict[str, dict[str, Any]] = {}
        self.refusals: dict[str, dict[str, Any]] = {}
        self.pushes: list[tuple[str, dict[str, Any]]] = []
        self.receipt_key = b""
        self.link: NodeLink | None = None

    async def enrol(self, hub: HubProcess) -> None:
        token = await asyncio.to_thread(hub.ask, "invite", label=self.name)
        self.invitation = Invitation.parse(token["token"])
        request = {"csr": self.identity.csr(), "secret": self.invitation.secret}
        reply = await enroll(self.invitation.host, self.invitation.port, request, self.invitation.ca)
        self.take(reply)

    def take(self, reply: dict[str, Any]) -> None:
        self.identity.install(reply["certificate"], reply["ca"], reply["node_id"])
        self.receipt_key = reply["receipt_key"]

    async def connect(self) -> None:
        self.link = NodeLink(
            host=self.invitation.host, port=self.invitation.port, identity=self.identity, blobs=self.blobs,
            run_dir=self.folder / "run", on_push=self._push, limits=self.limits,
        )  # fmt: skip
        await self.link.start()
        await self.link.wait_connected(60)

    async def close(self) -> None:
        if self.link is not None:
            await self.link.close()

    def _push(self, kind: str, body: dict[str, Any]) -> None:
        self.pushes.append((kind, body))
        if kind == "receipt":
            self._receipt(body["receipt"], body["signature"])
        if kind == "refusal":
            self.refusal(body["refusal"], body["signature"])

    def refusal(self, refusal: bytes, signature: bytes) -> dict[str, Any]:
        """A signed refusal, verified and kept."""
        verify(self.receipt_key, REFUSAL_PREFIX + refusal, signature)
        value = dict(json.loads(refusal))
        assert canonical_json(value) == refusal and value["node"] == self.identity.node_id
        self.refusals[value["update"]] = value
        return value

    def _receipt(self, receipt: bytes, signature: bytes) -> None:
        verify(self.receipt_key, RECEIPT_PREFIX + receipt, signature)
        value = json.loads(receipt)
        assert canonical_json(value) == receipt and value["node"] == self.identity.node_id
        self.receipts[value["update"]] = value

    async def request(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask until the hub answers: it may be away for a moment."""
        assert self.link is not None
        async with asyncio.timeout(90):
            while True:
                try:
                    return await self.link.request(kind, body, timeout=5)
                except LinkLostError:
                    await asyncio.sleep(0.02)

    async def join(self, federation: str, mean: float = 0.0) -> dict[str, Any]:
        await self.request("hello", {"software": "test", "federations": [federation]})
        datasets = [{"uuid": self.dataset, "episodes": 5, "frames": 100}]
        return await self.request(
            "federation.join", {"federation": federation, "stats": stats(mean), "datasets": datasets}
        )

    async def task(self, federation: str, version: int) -> dict[str, Any]:
        """The task of `version`, waited for."""
        async with asyncio.timeout(90):
            while True:
                reply = await self.request("task.request", {"federation": federation})
                if reply["task"] is not None and reply["task"]["version"] == version:
                    return dict(reply["task"])
                await asyncio.sleep(0.03)

    async def fetch(self, digest: str) -> Path:
        assert self.link is not None
        async with asyncio.timeout(90):
            while True:
                try:
                    return await self.link.fetch(digest)
                except LinkLostError:
                    await asyncio.sleep(0.05)

    def delta(self, spec: ModelSpec, task: dict[str, Any]) -> dict[str, np.ndarray]:
        """What this node "learned", fixed by its name and the version."""
        rng = np.random.default_rng([ord(self.name[-1]), task["version"]])
        return {t.name: rng.standard_normal(t.shape, dtype=np.float32) * np.float32(0.1) for t in spec.exchange}

    def prepare(
        self, spec: ModelSpec, task: dict[str, Any], tensors: dict[str, np.ndarray], **changes: Any
    ) -> dict[str, Any]:
        """A signed update as the body of `update.offer`; `changes` alters the statement before it is signed."""
        out = self.folder / "update.safetensors"
        digest = write_exchange(out, spec, lambda n: tensors[n]).digest
        size = out.stat().st_size
        self.blobs.add_file(out, move=True)
        return self.sign(
            {"federation": task["federation"], "task": task["id"], "node": self.identity.node_id,
             "base_version": task["version"], "payload": digest, "size": size, "samples": self.samples, "steps": 5, "loss_first": 1.5, "loss_last": 1.25, "base": task["version_digest"], **changes}
        )  # fmt: skip

    def sign(self, statement: dict[str, Any]) -> dict[str, Any]:
        assert self.link is not None
        raw = canonical_json(statement)
        if self.blobs.has(statement["payload"]):
            self.link.share(statement["payload"])
        return {"statement": raw, "signature": self.identity.sign(UPDATE_PREFIX + raw), "size": statement["size"]}

    async def give(
        self, offer: dict[str, Any], until: Callable[[dict[str, Any]], bool] = lambda r: True
    ) -> dict[str, Any]:
        """Offer until there is a receipt for which `until` holds. RefusedError when the hub refuses the update."""
        update = digest_of(offer["statement"])
        async with asyncio.timeout(90):
            while not (update in self.receipts and until(self.receipts[update])):
                reply = await self.request("update.offer", offer)
                if "receipt" in reply:
                    self._receipt(reply["receipt"], reply["receipt_signature"])
                await asyncio.sleep(0.03)
        return self.receipts[update]

    async def refused(self, offer: dict[str, Any]) -> str:
        """The reason this node is given for the refusal of its update."""
        try:
            await self.give(offer)
        except RefusedError as error:
            return error.message
        raise AssertionError("the update was taken")


async def cast(hub: HubProcess, folder: Path, count: int, join: str = "", mean: float = 0.0) -> list[TestNode]:
    """`count` nodes, enrolled, connected and, where a federation is named, joined; sorted by node id."""
    nodes = [TestNode(folder, f"node{i}") for i in range(count)]
    for node in nodes:
        await node.enrol(hub)
        await node.connect()
        if join:
            await node.join(join, mean=mean)
    return sorted(nodes, key=lambda n: n.identity.node_id)


def reference(
    spec: ModelSpec, master: dict[str, np.ndarray], parts: list[tuple[dict[str, np.ndarray], float]], out: Path
) -> str:
    """The next version by the rule alone, worked out whole in memory: changes `master`, gives the published digest."""
    total = sum(weight for _, weight in parts)
    for name in master:
        change = np.zeros_like(master[name])
        for delta, weight in parts:
            change += decode_bfloat16(encode_bfloat16(delta[name])) * np.float32(weight / total)
        master[name] = master[name] + change
    away = {n: ((v.view(np.uint32) + np.uint32(0x8000)) >> np.uint32(16)).astype(np.uint16) for n, v in master.items()}
    return write_exchange(out, spec, lambda n: away[n] if spec.dtype == "bfloat16" else master[n]).digest


def base_tensors(parts: Path, spec: ModelSpec) -> dict[str, np.ndarray]:
    with Payload.open(parts / "base.safetensors") as base:
        return {t.name: base.float32(t.name).copy() for t in spec.exchange}


async def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        await asyncio.sleep(0.02)


os.environ.setdefault("HF_HUB_OFFLINE", "1")
