"""How fast bytes travel: chunks from a node to the hub through the whole link, against a bare TLS socket and gRPC.

Every way moves the same chunks between two processes with the same TLS, in turns, in one run; the quotients are the
figures. The whole transfer (verified, durable on disk) is measured too. Times are never asserted.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import structlog
from _harness import REPOSITORY, arguments, earlier, write
from _link_idle import crowd, idle, lone_hub
from _link_node import Memory, Node, node
from _link_others import BareTls, Grpc, other

from zk0d.link.hub import HubLink
from zk0d.link.identity import Authority, NodeIdentity, ServerIdentity
from zk0d.link.state import LinkLimits
from zk0d.model.blobs import BlobStore

MIB = 1 << 20
CHUNKS = (256 * 1024, MIB)
WINDOW = 8
PARTS = ("rtt", "speed", "transfer", "cuts", "idle")


@dataclass
class Run:
    """One round of one way."""

    seconds: float
    cpu: float
    """Of both ends, in seconds."""


class Cast:
    """The hub in this process, one node in another, and everything that they need."""

    def __init__(self, folder: Path, mib: int) -> None:
        self.folder, self.mib = folder, mib
        if (folder / "ca").exists():  # the hub's own process of the idle crowd
            self.authority, self.server = Authority.load(folder / "ca"), ServerIdentity.load(folder / "keys")
            return
        self.authority = Authority.create(folder / "ca")
        self.server = self.authority.issue_server(folder / "keys")
        identity = NodeIdentity.create(folder / "node")
        identity.install(self.authority.issue_node(identity.csr(), "bench"), self.authority.pem, "bench")

    def hub(self, limits: LinkLimits | None = None) -> HubLink:
        async def answer(node_id: str, kind: str, body: dict[str, Any]) -> dict[str, Any]:
            return {"node_id": node_id}

        async def nobody(request: dict[str, Any]) -> dict[str, Any]:
            return {"state": "pending"}

        return HubLink(
            host="127.0.0.1", port=0, authority=self.authority, server_identity=self.server,
            run_dir=self.folder / "hub-run", blobs=BlobStore(self.folder / "hub-blobs"),
            allowed=lambda node_id, fingerprint: True, on_request=answer, may_fetch=lambda node_id, digest: True,
            on_enroll=nobody, limits=limits,
        )  # fmt: skip


async def stream(hub: HubLink, digest: str, size: int, chunk: int) -> None:
    """Take every chunk of the node's blob into memory, by the link's own messages, `WINDOW` in flight; no disk here."""
    peer, count = hub._peer("bench"), -(-size // chunk)
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    state = {"asked": 0, "bytes": 0}

    def ask() -> None:
        if state["asked"] < count:
            peer.ask_chunk(digest, state["asked"], chunk)
            state["asked"] += 1

    def arrival(index: int, data: bytes | memoryview | None, code: str) -> None:
        if data is None:
            done.set_exception(RuntimeError(f"chunk {index}: {code}"))
            return
        state["bytes"] += len(data)
        ask()
        if state["bytes"] == size and not done.done():
            done.set_result(None)

    peer.arrivals[digest] = arrival
    try:
        with peer.expected.lasting((WINDOW + 1) * chunk):  # the hub holds no more than that
            for _ in range(WINDOW):
                ask()
            await asyncio.wait_for(done, 300)
    finally:
        del peer.arrivals[digest]


async def timed(pid: int, work: Any) -> Run:
    """Run it; wall time, and CPU of this process and process `pid`."""
    both = [psutil.Process(), psutil.Process(pid)]
    cpu = [sum(p.cpu_times()[:2]) for p in both]
    began = time.perf_counter()
    await work
    return Run(time.perf_counter() - began, sum(sum(p.cpu_times()[:2]) - c for p, c in zip(both, cpu, strict=True)))


async def rounds(cast: Cast, hub: HubLink, peer: Node, n: int) -> dict[tuple[str, int], list[Run]]:
    """`n` interleaved rounds of every way at every chunk size."""
    found: dict[tuple[str, int], list[Run]] = {}
    bare = await BareTls.start(cast.folder, cast.authority, cast.server)
    rpc = await Grpc.start(cast.folder)
    if rpc is None:
        print("gRPC is left out: grpcio is not installed (pip install 'zk0d[bench]')")
    for _ in range(n):
        for chunk in CHUNKS:
            ways: list[tuple[str, int, Any]] = [("bare", bare.pid, bare.move(cast.mib * MIB, chunk))]
            ways.append(("link", peer.pid, stream(hub, peer.digest, cast.mib * MIB, chunk)))
            if rpc is not None:
                ways.append(("grpc", rpc.pid, rpc.move(cast.mib * MIB, chunk)))
            for name, pid, work in ways:
                found.setdefault((name, chunk), []).append(await timed(pid, work))
    await bare.close()
    if rpc is not None:
        await rpc.close()
    return found


async def resent(cast: Cast, hub: HubLink, peer: Node, cuts: int, seed: int) -> float:
    """Bytes the node sent beyond the blob's own during a fetch with `cuts` cuts of the link, in windows."""
    dice = random.Random(seed)
    digest = await peer.share_another(cast.mib)
    size = cast.mib * MIB
    before = await peer.sent()
    fetch = asyncio.create_task(hub.fetch("bench", digest, 1 << 40))
    peer_state = hub._peer("bench")
    at = sorted(dice.sample(range(size // 20, size - size // 20), cuts))
    while at and not fetch.done():
        progress = peer_state.progress.get(("down", digest))
        if progress is not None and progress.done >= at[0]:
            at.pop(0)
            hub.disconnect("bench", "a cut of the benchmark")
        await asyncio.sleep(0.001)
    await fetch
    extra = (await peer.sent()) - before - size
    return max(0, extra) / (WINDOW * MIB)


def median(runs: list[Run]) -> float:
    return statistics.median(run.seconds for run in runs)


def quotient(found: dict[tuple[str, int], list[Run]], other: str, chunk: int) -> float | None:
    """Speed of the link over the other's: the median over rounds of quotients within a round."""
    if (other, chunk) not in found:
        return None
    pairs = zip(found[other, chunk], found["link", chunk], strict=True)
    return statistics.median(theirs.seconds / ours.seconds for theirs, ours in pairs)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def measure(cast: Cast, small: bool, seed: int, only: set[str]) -> dict[str, Any]:
    """The figures of the parts in `only`."""
    hub = cast.hub()
    await hub.start()
    peer = await Node.start(cast.folder, hub.port, cast.mib)
    figures: dict[str, Any] = {}
    try:
        if "rtt" in only:
            trips = await peer.trips(200 if small else 2000)
            loaded = asyncio.create_task(peer.trips(100 if small else 1000, 0.005))
            while not loaded.done():
                await stream(hub, peer.digest, cast.mib * MIB, MIB)
            figures |= {
                "rtt_p50_ms": percentile(trips, 0.5) * 1e3,
                "rtt_p99_ms": percentile(trips, 0.99) * 1e3,
                "rtt_p50_loaded_ms": percentile(loaded.result(), 0.5) * 1e3,
                "rtt_p99_loaded_ms": percentile(loaded.result(), 0.99) * 1e3,
            }
        if "speed" in only:
            figures |= speeds(await rounds(cast, hub, peer, 1 if small else 5), cast.mib)
        if "transfer" in only:
            figures |= await transfer(cast, hub, peer)
        if "cuts" in only:
            figures["resent_windows"] = await resent(cast, hub, peer, 3 if small else 10, seed)
    finally:
        await peer.close()
        await hub.close()
    return figures


def speeds(found: dict[tuple[str, int], list[Run]], mib: int) -> dict[str, Any]:
    size, link = mib * MIB, found["link", MIB]

    def cpu(way: str, chunk: int) -> float | None:
        return statistics.median(r.cpu for r in found[way, chunk]) * 1024 / mib if (way, chunk) in found else None

    return {
        "bulk_vs_raw_tls": quotient(found, "bare", MIB),
        "bulk_vs_grpc": quotient(found, "grpc", MIB),
        "cpu_s_per_gib": cpu("link", MIB),
        "bulk_vs_raw_tls_256k": quotient(found, "bare", CHUNKS[0]),
        "bulk_vs_grpc_256k": quotient(found, "grpc", CHUNKS[0]),
        "cpu_s_per_gib_256k": cpu("link", CHUNKS[0]),
        "raw_tls_cpu_s_per_gib": cpu("bare", MIB),
        "grpc_cpu_s_per_gib": cpu("grpc", MIB),
        "bulk_mb_per_s": size / median(link) / 1e6,
        "raw_tls_mb_per_s": size / median(found["bare", MIB]) / 1e6,
    }


async def transfer(cast: Cast, hub: HubLink, peer: Node) -> dict[str, Any]:
    """A whole fetch of twice the size: asked for, verified, durable; its memory, its speed against the disk's own."""
    digest, size = await peer.share_another(2 * cast.mib), 2 * cast.mib * MIB
    floor = disk(cast.folder, 2 * cast.mib)  # before, so that both find memory in the same state
    await peer.watch()
    ours = Memory()
    whole = await timed(peer.pid, hub.fetch("bench", digest, 1 << 40))
    grown = ours.grown, await peer.grown()
    return {
        "transfer_rss_mib": max(grown) / MIB,
        "transfer_rss_hub_mib": grown[0] / MIB,
        "transfer_rss_node_mib": grown[1] / MIB,
        "transfer_mib": 2 * cast.mib,
        "durable_transfer_mb_per_s": size / whole.seconds / 1e6,
        "durable_transfer_cpu_s_per_gib": whole.cpu * 1024 / (2 * cast.mib),
        "disk_mb_per_s": size / floor / 1e6,
        "fresh_memory_s_per_gib": fresh_memory(),
    }


def fresh_memory() -> float:
    """CPU seconds for a GiB that nobody had before: what each page costs a file that grows, on top of its writing.

    A tenth of a second on bare metal; seconds in a virtual machine whose host takes back what is free.
    """
    size = 256 * MIB
    with mmap.mmap(-1, size) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        began = time.process_time()
        for at in range(0, size, mmap.PAGESIZE):
            memory[at] = 1
        return (time.process_time() - began) * 1024 * MIB / size


def disk(folder: Path, mib: int) -> float:
    """Seconds to write as much and fsync it: the floor of a durable transfer."""
    path, block = folder / "floor", os.urandom(MIB)
    began = time.perf_counter()
    with path.open("wb", buffering=0) as f:
        for _ in range(mib):
            f.write(block)
        os.fsync(f.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    return seconds


def folders() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="zk0-bench-", dir=REPOSITORY / "bench"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--mib", type=int, default=0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 16))
    parser.add_argument("--only", default="", help=f"parts of it, added to those measured before: {','.join(PARTS)}")
    parser.add_argument("--nodes", type=int, default=0, help="idle nodes")
    for hidden in ("--role", "--folder", "--port"):
        parser.add_argument(hidden, default="")
    options = parser.parse_args()
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(40),
    )
    folder = Path(options.folder)
    if options.role == "node":
        asyncio.run(node(folder, int(options.port), options.mib))
    elif options.role == "crowd":
        asyncio.run(crowd(folder, int(options.port), options.nodes))
    elif options.role == "hub":
        asyncio.run(lone_hub(Cast(folder, 1)))
    elif options.role:
        other(options.role, folder, int(options.port))
    else:
        mib, nodes = options.mib or (64 if options.small else 1024), options.nodes or (50 if options.small else 1000)
        only = set(options.only.split(",")) if options.only else set(PARTS)
        if unknown := only - set(PARTS):
            parser.error(f"--only {','.join(unknown)}: the parts are {', '.join(PARTS)}")
        sizes = {"mib": mib, "chunk": MIB, "nodes": nodes}
        figures = earlier("link", options.small, sizes) if options.only else {}
        print(f"seed {options.seed}")
        if only - {"idle"}:
            for folder in folders():
                figures |= asyncio.run(measure(Cast(folder, mib), options.small, options.seed, only))
        if "idle" in only:
            for folder in folders():
                figures |= asyncio.run(idle(Cast(folder, 1), nodes, 10 if options.small else 60))
        write("link", options.small, sizes, figures, ("pyzmq", "msgpack", "cryptography", "grpcio"))


if __name__ == "__main__":
    main()
