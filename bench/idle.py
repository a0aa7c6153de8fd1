"""What the programs cost when nothing happens: resident memory of an enrolled zk0d and of its hub, `zk0ctl status` as a whole process.

The reference for the command is `python3 -c pass` of the same interpreter, in turn with it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from _harness import arguments, write

from zk0d.demo.cast import Hub, Node, environment, free_port


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment())
    return time.perf_counter() - began


def main() -> None:
    options = arguments(__doc__.splitlines()[0]).parse_args()
    rounds, idle_s = (10, 5.0) if options.small else (50, 60.0)
    with tempfile.TemporaryDirectory(prefix="zk0-bench-") as name:
        folder = Path(name)
        hub, node = Hub(folder / "hub"), Node("node", folder / "node")
        try:
            hub.admin("init", "--listen", f"127.0.0.1:{free_port()}")
            hub.start(hub.answers)
            node.configure("virtual:Touch", "expert", {"front": (96, 96)})
            node.start(node.answers)
            node.ctl("enroll", json.loads(hub.admin("invite", "--json"))["token"])
            program = str(Path(sys.executable).with_name("zk0ctl"))
            status = [program, "--socket", str(node.socket), "status"]
            nothing = [sys.executable, "-c", "pass"]
            took = [(seconds(status), seconds(nothing)) for _ in range(rounds)]
            daemon, broker = psutil.Process(node.pid), psutil.Process(hub.pid)
            before = daemon.cpu_times()
            time.sleep(idle_s)
            after = daemon.cpu_times()
            used = after.user + after.system - before.user - before.system
            figures = {
                "daemon_rss_mb": daemon.memory_info().rss / 1e6,
                "hub_rss_mb": broker.memory_info().rss / 1e6,
                "daemon_cpu_share": used / idle_s,
                "status_ms": 1000 * statistics.median(s for s, _ in took),
                "status_vs_python": statistics.median(s / n for s, n in took),
            }
        finally:
            node.kill()
            hub.kill()
    write("idle", options.small, {"rounds": rounds, "idle_s": idle_s}, figures, ("pyzmq", "structlog", "cryptography"))


if __name__ == "__main__":
    main()
