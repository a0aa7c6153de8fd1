"""How much room recordings have: the floor of the disk and what the quota leaves. Measures; deletes nothing.

Not for what a recorder does at the limit (robot/room.py).
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from zk0d.daemon.config import Config
from zk0d.daemon.store import Dataset
from zk0d.errors import DatasetError

_GB = 1_000_000_000


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder, as it is now; 0 when it is not there."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_size
            except OSError:
                continue  # it went meanwhile
    return total


def _used(folder: Path, datasets: Iterable[Dataset]) -> int:
    others = {d.root for d in datasets if not d.root.is_relative_to(folder)}
    return size_of(folder) + sum(size_of(root) for root in others)


async def limits(config: Config, folder: Path, datasets: Iterable[Dataset]) -> dict[str, int]:
    """`floor_bytes` and `quota_left` of a recorder's job. Raises DatasetError when the disk or the quota is full."""
    floor, quota = int(config["datasets", "floor_gb"] * _GB), int(config["datasets", "quota_gb"] * _GB)
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < floor:
        raise DatasetError(
            f"{folder}: {free / _GB:.1f} GB are free, and {floor / _GB:g} GB stay free ([datasets] floor_gb)",
            "make room: nothing recorded is deleted for you; `zk0ctl dataset export` copies one elsewhere",
        )
    if not quota:
        return {"floor_bytes": max(1, floor), "quota_left": 0}
    used = await asyncio.to_thread(_used, folder, list(datasets))
    if used >= quota:
        raise DatasetError(
            f"the datasets take {used / _GB:.1f} GB of their quota of {quota / _GB:g} GB ([datasets] quota_gb)",
            "export what you want to keep and remove it yourself, or raise the quota: nothing is deleted for you",
        )
    return {"floor_bytes": max(1, floor), "quota_left": quota - used}
