"""What every benchmark shares: options, the machine's description, a table, and one JSON under bench/results/.

Figures are ratios against a reference in the same run wherever there is one; nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "bench" / "results"
sys.path.insert(0, str(REPOSITORY))


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser that knows `--small`: the sizes of `make bench`, against those of `make bench-NAME`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--small", action="store_true", help="small sizes, for `make bench`")
    return parser


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")),
        platform.processor(),
    )  # fmt: skip
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of `packages`; "absent" where one is not installed."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def revision() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=REPOSITORY, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def earlier(name: str, small: bool, sizes: dict[str, Any]) -> dict[str, Any]:
    """The figures of the last run of this revision with the same sizes, for a benchmark that is run in parts."""
    path = RESULTS / f"{name}.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    same = (record.get("small"), record.get("sizes"), record.get("revision")) == (small, sizes, revision())
    figures: dict[str, Any] = record["figures"] if same else {}
    return figures


def write(
    name: str, small: bool, sizes: dict[str, Any], figures: dict[str, Any], packages: tuple[str, ...], **more: Any
) -> Path:
    """Write bench/results/NAME.json and print the figures as a table; returns the file's path."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    record = {
        "benchmark": name,
        "small": small,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "revision": revision(),
        "machine": machine(),
        "versions": versions(*packages),
        "sizes": sizes,
        "figures": figures,
        **more,
    }
    path.write_text(json.dumps(record, indent=2) + "\n")
    width = max(len(k) for k in figures)
    print(f"\n{name}{' (small)' if small else ''}")
    for key, value in figures.items():
        print(f"  {key:<{width}}  {value:.4g}" if isinstance(value, float) else f"  {key:<{width}}  {value}")
    print(f"  → {path.relative_to(REPOSITORY)}")
    return path
