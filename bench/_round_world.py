"""A hub and nodes as processes, for bench/round.py: made once, started, killed, looked at. Not a measurement itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from _harness import REPOSITORY

from zk0d.control import call
from zk0d.durable import write_text
from zk0d.errors import NotRunningError
from zk0d.hub.setup import initialise
from zk0d.invitation import Invitation
from zk0d.link.enroll import enroll
from zk0d.link.identity import NodeIdentity
from zk0d.model.payload import PayloadWriter, write_exchange
from zk0d.model.spec import Feature, ModelSpec, TensorSpec

FEDERATION = "bench"
TENSOR = 4 << 20
"""Elements of a tensor at most: 16 MiB of float32, as the larger ones of a small language model's expert."""
TOML = """
[model]
policy = "act"
dtype = "{dtype}"
[model.cameras]
front = [96, 96]
[rounds]
min_nodes = {nodes}
target = {nodes}
quorum = {nodes}
deadline_s = 86400
versions = 0
"""


def make_parts(folder: Path, payload_bytes: int, dtype: str) -> ModelSpec:
    """What `federation create --from` takes, for updates of about `payload_bytes`."""
    elements = payload_bytes // (2 if dtype == "bfloat16" else 4)
    count = max(1, -(-elements // TENSOR))
    side = max(1, int((elements / count) ** 0.5))
    exchange = tuple(TensorSpec(f"layer{i:03d}.weight", (side, side)) for i in range(count))
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    with PayloadWriter(folder / "base.safetensors", {t.name: ("F32", t.shape) for t in exchange}) as out:
        for t in exchange:
            out.write(t.name, rng.standard_normal(t.shape, dtype=np.float32))
    rng = np.random.default_rng(7)
    vector = Feature("float32", (6,), tuple(f"joint_{i}.pos" for i in range(6)))
    features = {"action": vector, "observation.images.front": Feature("image", (96, 96, 3)),
                "observation.state": vector}  # fmt: skip
    spec = ModelSpec("act", {}, "", features, 30, "degrees", exchange, dtype, out.digest)  # type: ignore[arg-type]
    write_exchange(
        folder / "exchange.safetensors", spec, lambda n: rng.standard_normal(exchange[0].shape, dtype=np.float32)
    )
    (folder / "spec.json").write_bytes(spec.to_bytes())
    return spec


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class World:
    """A hub in `hub` (a disk) and `count` nodes in `nodes` (tmpfs: they stand for other machines)."""

    def __init__(self, hub: Path, nodes: Path, count: int, random: bool = False) -> None:
        self.hub, self.nodes, self.count, self.random = hub, nodes, count, random
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.peaks: dict[str, float] = {}

    def prepare(self, parts: Path, dtype: str) -> None:
        """Hub, keys, enrolment, federation; all of it stopped again at the end."""
        self.port = free_port()
        initialise(self.hub, f"127.0.0.1:{self.port}", "bench")
        settings = self.hub / "hub.toml"
        write_text(settings, settings.read_text() + '[runtime]\npython = "/bin/false"\nattempts = 1\n')
        self.start_hub()
        self.ready()
        for index in range(self.count):
            asyncio.run(self._enrol(index))
        toml = TOML.format(dtype=dtype, nodes=self.count)
        self.ask("federation_create", name=FEDERATION, toml=toml, parts=str(parts))
        self.stop()

    async def _enrol(self, index: int) -> None:
        identity = NodeIdentity.create(self.nodes / str(index) / "keys")
        invitation = Invitation.parse(self.ask("invite", label=str(index))["token"])
        request = {"csr": identity.csr(), "secret": invitation.secret}
        reply = await enroll(invitation.host, invitation.port, request, invitation.ca)
        identity.install(reply["certificate"], reply["ca"], reply["node_id"])

    def start_hub(self) -> None:
        (self.hub / "log").mkdir(exist_ok=True)
        self._start("hub", [sys.executable, "-m", "zk0d.hub.main", "--dir", str(self.hub), "serve"], self.hub / "log")

    def start_node(self, index: int) -> None:
        folder = self.nodes / str(index)
        command = [sys.executable, str(Path(__file__).with_name("_round_node.py")), str(folder), "127.0.0.1",
                   str(self.port), str(index), FEDERATION, "random" if self.random else "constant"]  # fmt: skip
        self._start(str(index), command, folder)

    def _start(self, name: str, command: list[str], log: Path) -> None:
        with (log / "console.log").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=REPOSITORY,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )  # fmt: skip

    def ready(self, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.ask("status")
                return
            except NotRunningError:
                if self.processes["hub"].poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.hub / "log" / "console.log").read_text()[-2000:]) from None
                time.sleep(0.02)

    def ask(self, op: str, **fields: Any) -> Any:
        return call(self.hub / "admin.sock", {"op": op, **fields}, timeout=300)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """A query over the hub's database, read only."""
        with contextlib.closing(sqlite3.connect(f"file:{self.hub}/hub.db?mode=ro", uri=True, timeout=10)) as db:
            return db.execute(sql).fetchall()

    def version(self) -> int:
        found = self.rows("SELECT max(number) FROM versions")[0][0]
        return -1 if found is None else int(found)

    def wait_version(self, number: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.version() < number:
            self.look()
            if time.monotonic() > deadline:
                raise TimeoutError(f"version {number} was not there after {seconds:g} s")
            time.sleep(0.05)
        self.look()

    def look(self) -> None:
        """Note each program's peak resident memory, its children included (kernel's own high-water mark)."""
        for name, process in self.processes.items():
            with contextlib.suppress(psutil.Error, OSError):
                one = psutil.Process(process.pid)
                total = sum(peak_mb(p.pid) for p in [one, *one.children(recursive=True)])
                self.peaks[name] = max(self.peaks.get(name, 0.0), total)

    def kill(self, name: str) -> None:
        process = self.processes[name]
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()


def peak_mb(pid: int) -> float:
    """The most memory a process has had resident, in MB (VmHWM); 0 when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0
