"""What a dataset's meta/info.json says of itself, asked before anybody opens the dataset.

Whoever made the folder wrote it: no file that it names may lie elsewhere. Standard library only. Not for counts, nor
for what fits a federation (zk0d/daemon/datasets.py).
"""

from __future__ import annotations

import json
import re
import string
from pathlib import Path
from typing import Any

from zk0d.errors import DatasetError

MOST = 16 << 20
"""Bytes of a meta file."""
_NUMBER = re.compile(r"0?\d*d")


def read(root: Path) -> dict[str, Any]:
    """The info file of a folder, empty when there is none that can be read."""
    path = root / "meta/info.json"
    try:
        value = json.loads(path.read_bytes()) if path.stat().st_size <= MOST else None
    except (OSError, ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}


def version(info: dict[str, Any]) -> str:
    """Of its format; "" when it does not say."""
    return str(info.get("codebase_version") or "")[:100]


def features(info: dict[str, Any]) -> list[str]:
    """Their names."""
    found = info.get("features")
    return [str(name) for name in found] if isinstance(found, dict) else []


def check(info: dict[str, Any], where: object) -> None:
    """Raises DatasetError when a file of it would be looked for, or written, outside of its folder.

    Its paths are templates that LeRobot fills in: a number stays one, and a camera's name is a folder's.
    """
    for name in features(info):
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise DatasetError(f"{where}: a feature cannot be called {name[:100]!r}", "LeRobot makes no such dataset")
    for key in ("data_path", "video_path"):
        if info.get(key) is not None and not _below(info[key]):
            raise DatasetError(
                f"{where}: {key} = {str(info[key])[:200]!r} could lead out of the dataset",
                "LeRobot makes no such dataset: where does it come from?",
            )


def _below(template: object) -> bool:
    if not isinstance(template, str) or template.startswith("/") or ".." in template.split("/") or "\0" in template:
        return False
    try:
        fields = [(name, spec, how) for _, name, spec, how in string.Formatter().parse(template) if name is not None]
    except ValueError:
        return False
    return all(
        not how and (not spec if name == "video_key" else _NUMBER.fullmatch(spec or "")) for name, spec, how in fields
    )
