"""What interruptions leave in a hub's `federations/`: folders half made or half replaced, and removed federations'.

All of these names begin with a dot, as no federation's and no version's does.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from pathlib import Path

_REMOVED = ".removed"


def put_aside(directory: Path, name: str) -> Path:
    """Rename a federation's folder, whose name somebody else may take at once → what it is called until it is deleted.
    `directory` is the hub's."""
    folder = directory / "federations" / name
    aside = folder.with_name(f".{name}.{secrets.token_hex(4)}{_REMOVED}")
    with contextlib.suppress(OSError):  # there was none; or the disk takes nothing, and a new one writes over it
        folder.rename(aside)
    return aside


def sweep(directory: Path) -> None:
    """Delete all of it, before anything works in these folders. Reads the folders of all versions: for a thread."""
    for pattern in (f".*{_REMOVED}", "*/versions/.*.tmp", "*/versions/.*.old"):
        with contextlib.suppress(OSError):  # what cannot be read cannot be cleaned, and harms nothing else
            for left in list((directory / "federations").glob(pattern)):
                shutil.rmtree(left, ignore_errors=True)
