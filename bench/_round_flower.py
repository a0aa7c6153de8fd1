"""Flower doing the work of bench/round.py: the installed release's SuperLink and SuperNodes over TLS, in processes.

Nothing here is part of the product. The server is a process and so is each node, as with ours; what they run is
bench/_flower_app. Flower keeps all models in memory: when the machine would run out of it, Flower ends, nothing else.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from _harness import versions
from _round_world import family, free_port, peak_mb

_SPARE = 1 << 30
"""Bytes of memory that stay free for the rest of the machine."""
_BIN = Path(sys.executable).parent
_APP = Path(__file__).with_name("_flower_app")


def flower_rounds(nodes: int, mb: float, count: int, patience_s: float) -> tuple[dict[str, Any] | None, str]:
    """Seconds of each of `count` rounds, or None and why there are none."""
    if versions("flwr")["flwr"] == "absent":
        return None, "flwr is not installed (extra `flower`)"
    # Its state on tmpfs too: what it keeps on disk is little, and its nodes stand for other machines.
    with tempfile.TemporaryDirectory(prefix="zk0-flower-", dir="/dev/shm") as name:
        folder = Path(name)
        _certificates(folder)
        with _running(folder, nodes, mb, count) as processes:
            peaks: dict[str, float] = {}
            end, at = time.monotonic() + patience_s, []
            while len(at) < count + 1:
                time.sleep(0.1)
                with contextlib.suppress(OSError, ValueError):
                    at = json.loads((folder / "times.json").read_text())
                _look(processes, peaks)
                why = ""
                if psutil.virtual_memory().available < _SPARE:
                    why = "it needs more memory than this machine has"
                elif time.monotonic() > end:
                    why = f"it was not done after {patience_s:g} s"
                if why and at:
                    return {
                        "wall_s": None,
                        "unfinished_after_s": time.time() - at[-1],
                        "why": why,
                        **_sizes(peaks),
                    }, why
                if why:
                    return None, why + _tail(folder)
        walls = [b - a for a, b in itertools.pairwise(at)]
        return {"wall_s": sorted(walls)[len(walls) // 2], "walls_s": walls, **_sizes(peaks)}, ""


@contextlib.contextmanager
def _running(folder: Path, nodes: int, mb: float, count: int) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    port, processes = free_port(), {}
    tls = [
        f"--ssl-{k}={folder / n}"
        for k, n in (("ca-certfile", "ca.pem"), ("certfile", "server.pem"), ("keyfile", "server.key"))
    ]
    environ = {**os.environ, "HOME": str(folder), "FLWR_HOME": str(folder / "home"), "FLWR_TELEMETRY_ENABLED": "0",
               "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
               "OMP_NUM_THREADS": "1", "PATH": f"{_BIN}:{os.environ['PATH']}"}  # fmt: skip

    def start(name: str, *command: str) -> None:
        with (folder / f"{name}.log").open("wb") as log:
            processes[name] = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environ,
                                               cwd=folder, preexec_fn=_first_to_go)  # fmt: skip

    (folder / "home").mkdir()
    (folder / "home" / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "localhost:{port}"\n'
        f'root-certificates = "{folder / "ca.pem"}"\n'
    )
    app = shutil.copytree(_APP, folder / "app", ignore=shutil.ignore_patterns("__pycache__"))
    try:
        start("server", str(_BIN / "flower-superlink"), "--host=localhost", f"--port={port}", *tls)
        _until_listening(port)
        for index in range(nodes):
            start(str(index), str(_BIN / "flower-supernode"), f"--root-certificates={folder / 'ca.pem'}",
                  f"--superlink=localhost:{port}", "--host=localhost", f"--port={free_port()}", *tls,
                  "--node-config", f"index={index}")  # fmt: skip
        settings = f'mb={float(mb)} rounds={count} nodes={nodes} out="{folder / "times.json"}"'
        done = subprocess.run([str(_BIN / "flwr"), "run", str(app), "bench", "-c", settings], env=environ, cwd=folder,
                              capture_output=True, text=True, timeout=60)  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        yield processes
    finally:
        _end(processes)


def _first_to_go() -> None:
    Path("/proc/self/oom_score_adj").write_text("1000")


def _until_listening(port: int) -> None:
    end = time.monotonic() + 60
    while not any(c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in psutil.net_connections("tcp")):
        if time.monotonic() > end:
            raise TimeoutError(f"nothing listens on {port}")
        time.sleep(0.1)


def _look(processes: dict[str, subprocess.Popen[bytes]], peaks: dict[str, float]) -> None:
    """Each part's peak: its processes' own peaks together."""
    for name, process in processes.items():
        peaks[name] = max(peaks.get(name, 0.0), sum(map(peak_mb, family(process.pid))))


def _end(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    everything = [one for process in processes.values() for one in family(process.pid)]
    for one in everything:
        with contextlib.suppress(psutil.Error):
            psutil.Process(one).kill()
    for process in processes.values():
        process.wait()


def _sizes(peaks: dict[str, float]) -> dict[str, Any]:
    return {"server_rss_mb": peaks["server"], "node_rss_mb": max(v for k, v in peaks.items() if k != "server"),
            "path": "flower-superlink, flower-supernode (TLS)"}  # fmt: skip


def _tail(folder: Path) -> str:
    return "".join(f"\n== {p.name}\n{p.read_text(errors='replace')[-600:]}" for p in sorted(folder.glob("*.log")))


def _certificates(folder: Path) -> None:
    # gRPC's TLS library takes no Ed25519 by default: a throw-away P-256 chain.
    import datetime as dt

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import NameOID

    now = dt.datetime.now(dt.UTC)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def certificate(subject: str, public: ec.EllipticCurvePublicKey, ca: bool) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("ca"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        )
        return builder.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM)

    (folder / "ca.pem").write_bytes(certificate("ca", ca_key.public_key(), True))
    (folder / "server.pem").write_bytes(certificate("localhost", key.public_key(), False))
    (folder / "server.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
