"""How fast an update travels: a blob from a node to the hub through the whole link, against a bare TLS socket.

The node is a process of its own, as in life. Both times are of this run on this machine; the quotient is the figure.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import structlog
from _harness import REPOSITORY, arguments, write

from zk0d.link.hub import HubLink
from zk0d.link.identity import HUB_NAME, Authority, NodeIdentity, ServerIdentity
from zk0d.link.node import NodeLink
from zk0d.link.state import LinkLimits
from zk0d.link.tls import link_context, server_context
from zk0d.model.blobs import BlobStore

MIB = 1 << 20


async def node(folder: Path, port: int, mib: int) -> None:
    """The other process: shares one blob, prints its digest, fetches what its standard input names until EOF."""
    blobs = BlobStore(folder / "node-blobs")
    digest = blobs.add_bytes(os.urandom(mib * MIB))
    link = NodeLink(
        host="127.0.0.1", port=port, identity=NodeIdentity.load(folder / "node"), blobs=blobs,
        run_dir=folder / "node-run", on_push=lambda kind, body: None, limits=LinkLimits(chunk_size=MIB),
    )  # fmt: skip
    link.share(digest)
    await link.start()
    await link.wait_connected(10)
    print(digest, flush=True)
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        began = time.perf_counter()
        await link.fetch(line)
        print(time.perf_counter() - began, flush=True)
    trips = []
    for _ in range(200):
        began = time.perf_counter()
        await link.request("hello", {"software": "bench", "federations": []})
        trips.append(time.perf_counter() - began)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"trip": sorted(trips)[100], "cpu": used.ru_utime + used.ru_stime}), flush=True)
    await link.close()


def bare_sender(folder: Path, port: int, mib: int) -> None:
    """The other process of the reference: one blocking TLS socket, 1 MiB a time, no checks, no disk."""
    data = os.urandom(MIB)
    with (
        socket.create_connection(("127.0.0.1", port)) as raw,
        link_context(NodeIdentity.load(folder / "node")).wrap_socket(raw, server_hostname=HUB_NAME) as tls,
    ):
        tls.recv(1)
        for _ in range(mib):
            tls.sendall(data)
        tls.recv(1)


def bare_tls(folder: Path, authority: Authority, server: ServerIdentity, mib: int) -> float:
    """Seconds for `mib` MiB through a bare TLS socket pair with the same settings."""
    context = server_context(authority.directory / "ca.pem", server)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        subprocess.Popen(_command("bare", folder, listener.getsockname()[1], mib)),
        context.wrap_socket(listener.accept()[0], server_side=True) as tls,
    ):
        buffer, left = bytearray(MIB), mib * MIB
        tls.sendall(b"g")
        began = time.perf_counter()
        while left:
            left -= tls.recv_into(buffer)
        seconds = time.perf_counter() - began
        tls.sendall(b"e")
    return seconds


def _command(role: str, folder: Path, port: int, mib: int) -> list[str]:
    return [sys.executable, __file__, f"--role={role}", f"--folder={folder}", f"--port={port}", f"--mib={mib}"]


async def linked(folder: Path, authority: Authority, server: ServerIdentity, mib: int) -> dict[str, Any]:
    async def answer(node_id: str, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        return {"node_id": node_id}

    async def nobody(request: dict[str, Any]) -> dict[str, Any]:
        return {"state": "pending"}

    blobs = BlobStore(folder / "hub-blobs")
    hub = HubLink(
        host="127.0.0.1", port=0, authority=authority, server_identity=server, run_dir=folder / "hub-run", blobs=blobs,
        allowed=lambda node_id, fingerprint: True, on_request=answer, may_fetch=lambda node_id, digest: True,
        on_enroll=nobody,
    )  # fmt: skip
    down = blobs.add_bytes(os.urandom(mib * MIB))
    await hub.start()
    command = _command("node", folder, hub.port, mib)
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    digest = (await process.stdout.readline()).decode().strip()
    began, cpu = time.perf_counter(), time.process_time()
    await hub.fetch("bench", digest, 1 << 40)
    up, cpu = time.perf_counter() - began, time.process_time() - cpu
    process.stdin.write(f"{down}\n".encode())
    down_s = float(await process.stdout.readline())
    process.stdin.close()
    last = json.loads(await process.stdout.readline())
    await process.wait()
    await hub.close()
    return {"up_s": up, "down_s": down_s, "hub_cpu_up_s": cpu, "trip_s": last["trip"]}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--mib", type=int, default=0)
    for hidden in ("--role", "--folder", "--port"):
        parser.add_argument(hidden, default="")
    options = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if options.role == "node":
        asyncio.run(node(Path(options.folder), int(options.port), options.mib))
        return
    if options.role == "bare":
        bare_sender(Path(options.folder), int(options.port), options.mib)
        return
    mib = options.mib or (64 if options.small else 256)
    folder = Path(tempfile.mkdtemp(prefix="zk0-bench-", dir=REPOSITORY / "bench"))
    try:
        authority = Authority.create(folder / "ca")
        server = authority.issue_server(folder / "keys")
        identity = NodeIdentity.create(folder / "node")
        identity.install(authority.issue_node(identity.csr(), "bench"), authority.pem, "bench")
        bare = bare_tls(folder, authority, server, mib)
        found = asyncio.run(linked(folder, authority, server, mib))
    finally:
        shutil.rmtree(folder)
    assert threading.active_count() == 1
    figures = {
        "bare_tls_mb_per_s": mib * MIB / bare / 1e6,
        "upload_mb_per_s": mib * MIB / found["up_s"] / 1e6,
        "download_mb_per_s": mib * MIB / found["down_s"] / 1e6,
        "upload_time_over_bare_tls": found["up_s"] / bare,
        "download_time_over_bare_tls": found["down_s"] / bare,
        "hub_cpu_s_per_gib_up": found["hub_cpu_up_s"] * 1024 / mib,
        "request_round_trip_ms": found["trip_s"] * 1e3,
    }
    write("link", options.small, {"mib": mib}, figures, ("pyzmq", "msgpack", "cryptography"))


if __name__ == "__main__":
    main()
