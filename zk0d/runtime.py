"""Where the managed environment for torch and lerobot is, and which one is in use: shared by zk0d and zk0ctl.

BASE/envs/KEY are environments; BASE/current and BASE/previous point at two of them. zk0d/ctl/environment.py makes them.
"""

from __future__ import annotations

import os
from pathlib import Path

BASE = Path("/var/lib/zk0-runtime")
COMPLETE = "zk0-complete"
"""The file, in an environment, that says that it was installed to the end; it holds the lock's digest."""


def base() -> Path:
    """The folder of the managed environments: ZK0_RUNTIME, else the installed one."""
    return Path(os.environ.get("ZK0_RUNTIME") or BASE)


def managed_python(folder: Path | None = None) -> str:
    """The interpreter in use of the managed environment; empty when there is none."""
    python = (folder or base()) / "current" / "bin" / "python"
    return str(python) if os.access(python, os.X_OK) else ""
