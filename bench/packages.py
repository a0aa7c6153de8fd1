"""What the packages cost: time from `apt install` to a running, enrolled daemon, size, time to ready, sandbox scores, lint.

The full size boots a bare Debian 13 (packaging/booted) and, with --runtime, makes the managed environment too (6 GB). The small
size only builds and lints. A figure that cannot be taken here is null, and the reason is printed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from _harness import REPOSITORY, arguments, write

ADDRESS = "127.0.0.1:7730"


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("zk0_container", REPOSITORY / "packaging" / "booted" / "container.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def build(out: Path) -> dict[str, str]:
    """Build into `out` → digest of each package by name."""
    subprocess.run([REPOSITORY / "packaging/deb/build.sh", out], check=True, capture_output=True)
    return {d.name: hashlib.sha256(d.read_bytes()).hexdigest() for d in sorted(out.glob("*.deb"))}


def lint(out: Path) -> int | None:
    """Errors and warnings of lintian; None where it is not installed."""
    if shutil.which("lintian") is None:
        print("lintian is not installed: lintian_tags is null")
        return None
    said = subprocess.run(["lintian", *out.glob("*.changes")], capture_output=True, text=True, check=False).stdout
    print(said, end="")
    return sum(line.startswith(("E:", "W:")) for line in said.splitlines())


def score(system: Any, unit: str) -> float:
    found = re.search(r"exposure level for \S+: ([0-9.]+)", system.sh(f"systemd-analyze security --no-pager {unit}"))
    assert found is not None
    return float(found[1])


def installed(system: Any, debs: list[Path]) -> dict[str, Any]:
    """Install on a bare system, make a hub, enrol; then measure starts and scores."""
    system.sh("mkdir /root/debs")
    for deb in debs:
        system.put(deb, f"/root/debs/{deb.name}")
    began = time.monotonic()
    system.sh("apt-get install -y /root/debs/*.deb </dev/null", timeout=600)
    apt_s = time.monotonic() - began
    hub = ("zk0-hub",)
    system.run(*hub, "init", "--listen", ADDRESS, "--name", "bench", user="zk0-hub")
    system.sh("systemctl start zk0-hub.service")
    token = json.loads(system.run(*hub, "invite", "--address", ADDRESS, "--json", user="zk0-hub").stdout)["token"]
    system.run("zk0ctl", "enroll", token)
    system.run("zk0ctl", "status", "--wait", "connected", check=False)
    install_s = time.monotonic() - began
    ready = []
    for _ in range(5):
        system.sh("systemctl restart zk0d.service")
        show = "systemctl show --value -p InactiveExitTimestampMonotonic -p ActiveEnterTimestampMonotonic zk0d.service"
        first, last = sorted(map(int, system.sh(show).split()))
        ready.append((last - first) / 1e3)
    kib = sum(map(int, system.sh("dpkg-query -W -f '${Installed-Size}\\n' zk0-common zk0d zk0-hub").split()))
    return {
        "install_s": install_s,
        "apt_install_s": apt_s,
        "installed_mb": kib * 1024 / 1e6,
        "ready_ms": statistics.median(ready),
        "security_zk0d": score(system, "zk0d.service"),
        "security_hub": score(system, "zk0-hub.service"),
    }


def runtime(folder: Path) -> dict[str, Any]:
    """`zk0ctl runtime install` from the index that this machine's own settings name."""
    command = [sys.executable, "-m", "zk0d.ctl.main", "runtime", "install"]
    began = time.monotonic()
    subprocess.run(command, check=True, cwd=REPOSITORY, env={**os.environ, "ZK0_RUNTIME": str(folder)})
    seconds = time.monotonic() - began
    size = int(
        subprocess.run(["du", "-s", "-B1", folder], capture_output=True, text=True, check=True).stdout.split()[0]
    )
    return {"runtime_install_s": seconds, "runtime_gb": size / 1e9}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--runtime", action="store_true", help="also make the managed environment (6 GB, from an index)"
    )
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="zk0-bench-", dir="/var/tmp"))
    figures: dict[str, Any] = dict.fromkeys(
        ("install_s", "installed_mb", "ready_ms", "security_zk0d", "security_hub", "lintian_tags", "reproducible")
    )
    try:
        first = build(work / "one")
        figures["reproducible"] = first == build(work / "two")
        figures["lintian_tags"] = lint(work / "one")
        booted = tool()
        reason = "small size" if options.small else booted.why_not()
        if reason:
            print(f"no system is booted ({reason}): the figures of an installation are null")
        else:
            with booted.Container(booted.image("bare")) as system:
                figures |= installed(system, sorted((work / "one").glob("*.deb")))
        if options.runtime:
            figures |= runtime(work / "runtime")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    write("packages", options.small, {"packages": len(first)}, figures, ())


if __name__ == "__main__":
    main()
