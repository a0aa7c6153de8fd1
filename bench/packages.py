"""What the packages cost: time from `apt install` to a running, enrolled daemon, size, time to ready, sandbox scores, lint.

The full size boots a bare Debian 13 (packaging/booted) and makes the managed environment too (5 or 6 GB, minutes). The small size
only builds and lints. A figure that cannot be taken here is null, and the reason is printed.
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

from _harness import REPOSITORY, RESULTS, arguments, revision, write

ADDRESS = "127.0.0.1:7730"


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("zk0_container", REPOSITORY / "packaging" / "booted" / "container.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def digests(folder: Path) -> dict[str, str]:
    return {d.name: hashlib.sha256(d.read_bytes()).hexdigest() for d in sorted(folder.glob("*.deb"))}


def build(out: Path) -> dict[str, str]:
    """Build into `out` → digest of each package by name."""
    subprocess.run([REPOSITORY / "packaging/deb/build.sh", out], check=True, capture_output=True)
    return digests(out)


def build_elsewhere(work: Path) -> dict[str, str]:
    """The same commit's files built in another folder, with other times, umask, zone and language."""
    git: dict[str, Any] = {"cwd": REPOSITORY, "capture_output": True, "text": True, "check": True}
    names = subprocess.run(["git", "ls-files", "-z"], **git).stdout.split("\0")
    for name in filter(None, names):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, work / name)
    epoch = subprocess.run(["git", "log", "-1", "--format=%ct"], **git).stdout.strip()
    other = {
        "PATH": os.environ["PATH"],
        "TZ": "Pacific/Kiritimati",
        "LC_ALL": "tr_TR.UTF-8",
        "SOURCE_DATE_EPOCH": epoch,
    }
    script = 'umask 077; exec "$0" "$1"'
    subprocess.run(
        ["sh", "-c", script, work / "packaging/deb/build.sh", work / "out"], check=True, capture_output=True, env=other
    )
    return digests(work / "out")


def lint(out: Path) -> int | None:
    """Errors and warnings of lintian; None where it may not be had."""
    done = subprocess.run([REPOSITORY / "packaging/deb/lint.sh", out], capture_output=True, text=True, check=False)
    if done.returncode == 69:
        print(f"lintian_tags is null: {done.stderr.strip()}")
        return None
    print(done.stdout, end="")
    return sum(line.startswith(("E:", "W:")) for line in done.stdout.splitlines())


def score(system: Any, unit: str) -> float:
    found = re.search(r"exposure level for \S+: ([0-9.]+)", system.sh(f"systemd-analyze security --no-pager {unit}"))
    assert found is not None
    return float(found[1])


def enrolled(system: Any, debs: list[Path]) -> dict[str, Any]:
    """Install on a bare system, make a hub, enrol, until the node is connected."""
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
    said = system.run("zk0ctl", "status", "--wait", "connected", "--json", check=False).stdout
    install_s = time.monotonic() - began
    assert json.loads(said)["link"]["phase"] == "connected", said
    kib = sum(map(int, system.sh("dpkg-query -W -f '${Installed-Size}\\n' zk0-common zk0d zk0-hub").split()))
    return {"install_s": install_s, "apt_install_s": apt_s, "installed_mb": kib * 1024 / 1e6}


def stamp(system: Any, name: str, unit: str = "") -> int:
    """A moment that systemd noted, in µs."""
    return int(system.sh(f"systemctl show --value -p {name}TimestampMonotonic {unit}"))


def ready(system: Any, times: int) -> dict[str, Any]:
    """From the first process of a boot to the daemon's READY (median), how much of that is the unit's own start, and the hub's."""
    boots, starts, hubs = [], [], []
    for _ in range(times):
        system.reboot()
        began = stamp(system, "Userspace")
        boots.append((stamp(system, "ActiveEnter", "zk0d.service") - began) / 1e3)
        starts.append(
            (stamp(system, "ActiveEnter", "zk0d.service") - stamp(system, "InactiveExit", "zk0d.service")) / 1e3
        )
        hubs.append((stamp(system, "ActiveEnter", "zk0-hub.service") - began) / 1e3)
    restarts = []
    for _ in range(times):
        system.sh("systemctl restart zk0d.service")
        restarts.append(
            (stamp(system, "ActiveEnter", "zk0d.service") - stamp(system, "InactiveExit", "zk0d.service")) / 1e3
        )
    return {"ready_ms": statistics.median(boots), "ready_own_ms": statistics.median(starts),
            "restart_ms": statistics.median(restarts), "ready_hub_ms": statistics.median(hubs)}  # fmt: skip


def runtime(folder: Path, flags: list[str]) -> dict[str, Any]:
    """`zk0ctl runtime install` as a machine without a GPU has it, from the index of this machine's own settings or --wheels."""
    command = [sys.executable, "-m", "zk0d.ctl.main", "runtime", "install", *flags]
    environment = {**os.environ, "ZK0_RUNTIME": str(folder)}
    began = time.monotonic()
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    seconds = time.monotonic() - began
    if done.returncode:
        print(f"the figures of the runtime are null: {done.stderr.strip().splitlines()[-2:]}")
        return {}
    print(done.stderr, end="")
    du = subprocess.run(["du", "-s", "-B1", folder], capture_output=True, text=True, check=True).stdout
    check = ["runtime", "check"]
    subprocess.run([sys.executable, "-m", "zk0d.ctl.main", *check], cwd=REPOSITORY, env=environment, check=True)
    return {"runtime_install_s": seconds, "runtime_gb": int(du.split()[0]) / 1e9}


def packages(work: Path) -> dict[str, Any]:
    first = build(work / "one")
    return {"reproducible": first == build_elsewhere(work / "two"), "lintian_tags": lint(work / "one"),
            "download_kb": sum(d.stat().st_size for d in (work / "one").glob("*.deb")) / 1e3}  # fmt: skip


def system(work: Path) -> dict[str, Any]:
    booted = tool()
    build(work / "one")
    with booted.Container(booted.image("bare")) as box:
        return {
            **enrolled(box, sorted((work / "one").glob("*.deb"))),
            **ready(box, 5),
            "security_zk0d": score(box, "zk0d.service"),
            "security_hub": score(box, "zk0-hub.service"),
        }


FIGURES = ("install_s", "installed_mb", "ready_ms", "security_zk0d", "security_hub", "lintian_tags", "reproducible",
           "runtime_install_s", "runtime_gb")  # fmt: skip


def keep(small: bool, figures: dict[str, Any]) -> None:
    """Add figures to the results' file, which keeps those of other pieces from the same revision."""
    path = RESULTS / "packages.json"
    last = json.loads(path.read_text()) if path.exists() else {}
    kept = last.get("figures", {}) if (last.get("small"), last.get("revision")) == (small, revision()) else {}
    kept |= {k: v for k, v in figures.items() if v is not None or k not in kept}
    write("packages", small, {"packages": 3}, dict.fromkeys(FIGURES) | kept, ())


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--only", default="", help="packages, system, runtime; those named are added to the last results"
    )
    parser.add_argument("--wheels", help="for runtime: a folder of wheels instead of an index")
    options = parser.parse_args()
    pieces = (
        options.only.split(",")
        if options.only
        else ["packages"]
        if options.small
        else ["packages", "system", "runtime"]
    )
    work = Path(tempfile.mkdtemp(prefix="zk0-bench-", dir="/var/tmp"))
    try:
        if "packages" in pieces:
            keep(options.small, packages(work))
        reason = "not in the small size" if "system" not in pieces else tool().why_not()
        if reason:
            print(f"no system is booted ({reason}): the figures of an installation are null")
        else:
            keep(options.small, system(work))
        if "runtime" in pieces:
            keep(options.small, runtime(work / "runtime", ["--wheels", options.wheels] if options.wheels else []))
        elif not options.only:
            print("the runtime is not installed in the small size (5 GB from an index): its figures are null")
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
