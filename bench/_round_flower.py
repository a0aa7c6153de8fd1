"""Flower doing the work of bench/round.py: the installed release's gRPC server and clients, with TLS, in processes.

Nothing here is part of the product. The server is a process and so is each client, as with ours.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _harness import versions
from _round_world import TENSOR, free_port

_ENVIRON = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}


def flower_rounds(nodes: int, mb: float, count: int) -> tuple[dict[str, Any] | None, str]:
    """Seconds per round after the first, or None and why there are none."""
    if versions("flwr")["flwr"] == "absent":
        return None, "flwr is not installed (extra `flower`)"
    with tempfile.TemporaryDirectory(prefix="zk0-flower-") as name:
        folder = Path(name)
        _certificates(folder)
        port = str(free_port())
        me = [sys.executable, __file__]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [*me, "server", name, port, str(nodes), str(mb), str(count + 1)], stdout=log, stderr=log, env=_ENVIRON
            )
            clients = [
                subprocess.Popen([*me, "client", name, port, str(i)], stdout=log, stderr=log, env=_ENVIRON)
                for i in range(nodes)
            ]
            try:
                server.wait(150 + 60 * (count + 1))
            except subprocess.TimeoutExpired:
                return None, "it did not end in time"
            finally:
                for process in (server, *clients):
                    if process.poll() is None:
                        process.kill()
                    process.wait()
        if not (folder / "times.json").exists():
            return None, (folder / "log").read_text(errors="replace")[-300:]
        found = json.loads((folder / "times.json").read_text())
        walls = [b - a for a, b in zip(found["at"][:-1], found["at"][1:], strict=True)]
        return {"wall_s": sorted(walls)[len(walls) // 2], "walls_s": walls, "server_rss_mb": found["rss_mb"],
                "path": "start_server/start_client (gRPC, TLS)"}, ""  # fmt: skip


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


def _arrays(mb: float) -> list[Any]:
    import numpy as np

    elements = int(mb * 1e6) // 4
    count = max(1, -(-elements // TENSOR))
    side = max(1, int((elements / count) ** 0.5))
    rng = np.random.default_rng(7)
    return [rng.standard_normal((side, side), dtype=np.float32) for _ in range(count)]


def _server(folder: Path, port: str, nodes: int, mb: float, count: int) -> None:
    import psutil
    from flwr.common import ndarrays_to_parameters
    from flwr.server import ServerConfig, start_server
    from flwr.server.strategy import FedAvg

    at: list[float] = []

    class Timed(FedAvg):
        def aggregate_fit(self, *args: Any, **kwargs: Any) -> Any:
            made = super().aggregate_fit(*args, **kwargs)
            at.append(time.time())
            return made

    strategy = Timed(fraction_fit=1.0, fraction_evaluate=0.0, min_fit_clients=nodes, min_available_clients=nodes,
                     initial_parameters=ndarrays_to_parameters(_arrays(mb)))  # fmt: skip
    certificates = tuple((folder / n).read_bytes() for n in ("ca.pem", "server.pem", "server.key"))
    start_server(server_address=f"127.0.0.1:{port}", config=ServerConfig(num_rounds=count), strategy=strategy,
                 certificates=certificates)  # type: ignore[arg-type]  # fmt: skip
    peak = psutil.Process().memory_info().rss
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            peak = int(line.split()[1]) * 1024
    (folder / "times.json").write_text(json.dumps({"at": at, "rss_mb": peak / 1e6}))


def _client(folder: Path, port: str, index: int) -> None:
    import numpy as np
    from flwr.client import NumPyClient, start_client

    class Constant(NumPyClient):
        def fit(self, parameters: Any, config: Any) -> Any:
            return [p + np.float32(1e-3 * (index + 1)) for p in parameters], 100 + index, {}

    deadline = time.monotonic() + 60
    while True:
        try:
            start_client(server_address=f"localhost:{port}", client=Constant().to_client(),
                         root_certificates=(folder / "ca.pem").read_bytes())  # fmt: skip
            return
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


if __name__ == "__main__":
    role, where, at_port, *more = sys.argv[1:]
    if role == "server":
        _server(Path(where), at_port, int(more[0]), float(more[1]), int(more[2]))
    else:
        _client(Path(where), at_port, int(more[0]))
