"""Our own processes among all others, from /proc: what processor time they had, and which process is of ours.

Not psutil, which costs the idle daemon a megabyte and a walk over all processes at every reading.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path


def cpu_ticks(pid: int, root: Path = Path("/proc")) -> float:
    """Clock ticks of a process, with those of its children that have ended (proc(5), fields 14 to 17); 0 when gone."""
    try:
        fields = (root / str(pid) / "stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return 0.0
    return float(sum(map(int, fields[11:15])))


def is_ours(pid: int, own: Collection[int]) -> bool:
    """Whether `pid` is one of our processes, or was started by one of our workers, which lead sessions of their own."""
    try:
        return pid in own or os.getsid(pid) in own
    except OSError:  # gone
        return False
