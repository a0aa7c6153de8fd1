"""Which version is best, which published folders to keep, where a held-out dataset lies.

Pure but for looking at folders. The blobs of published versions go by the same rule, but later (retention.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zk0d.errors import WorkerError


def best(losses: Mapping[int, float | None]) -> int | None:
    """The version of lowest held-out loss, the older of equals; None where none has a loss."""
    known = [(loss, number) for number, loss in sorted(losses.items()) if loss is not None]
    return min(known)[1] if known else None


def superfluous(numbers: Sequence[int], last: int, every: int, best_version: int | None) -> list[int]:
    """The published versions whose folders may go: not among the `last` (0: all stay), no multiple of `every` (0: none
    is kept for that), not the best and never the newest."""
    if last == 0:
        return []
    kept = {*sorted(numbers)[-last:], best_version, *(n for n in numbers if every and n % every == 0)}
    return [n for n in sorted(numbers) if n not in kept]


def metrics_lines(path: Path) -> list[dict[str, Any]]:
    """A metrics.jsonl; a last line without its end was torn by a crash, or is being written: it is not there yet."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def last_line(path: Path) -> tuple[str, int]:
    """The last whole line of a metrics.jsonl, and the bytes up to its end; read from there, however long the file is.
    Empty where there is none."""
    with path.open("rb") as file:
        at, tail = file.seek(0, os.SEEK_END), b""
        while at > 0:
            step = min(at, 1 << 16)
            at -= step
            file.seek(at)
            tail = file.read(step) + tail
            whole = tail[: tail.rfind(b"\n") + 1]
            begin = whole[:-1].rfind(b"\n") + 1
            if whole and (begin or not at):
                return whole[begin:].decode(), at + len(whole)
    return "", 0


def dataset_root(location: str) -> str:
    """`local:/path` or `hf:owner/name` → its folder. WorkerError when the cache lacks it: nothing is fetched."""
    if location.startswith("local:"):
        return location.removeprefix("local:")
    name = location.removeprefix("hf:")
    hub = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    places = [Path(os.environ.get("HF_LEROBOT_HOME", hub / "lerobot")) / name]
    snapshots = hub / "hub" / f"datasets--{name.replace('/', '--')}" / "snapshots"
    if snapshots.is_dir():
        places += sorted(snapshots.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
    for place in places:
        if (place / "meta" / "info.json").is_file():
            return str(place)
    raise WorkerError(
        f"held-out dataset {location} is not in the cache of this machine ({places[0]})",
        f"hf download {name} --repo-type dataset --local-dir {places[0]}",
    )
