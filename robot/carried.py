"""What a recorder noted of episodes (quality, task, how they ended), for the same episodes in an edited dataset.

By it is decided what is trained on. Hashes and true times stay behind: the files are others. Not for editing as such.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

EPISODES = "meta/zk0/episodes"
_KEPT = ("quality", "task", "facts")


def carry(parts: Sequence[tuple[Path, Sequence[int]]], made: Path) -> None:
    """Write into `made`, before it has its name, the notes of its episodes: those of each source, in this order."""
    fresh = 0
    for root, episodes in parts:
        for episode in episodes:
            with contextlib.suppress(FileNotFoundError, ValueError, AttributeError):
                noted = json.loads((root / EPISODES / f"{episode:06d}.json").read_text())
                value = {key: noted[key] for key in _KEPT if key in noted}
                value["facts"] = {**(value.get("facts") or {}), "from": {"dataset": root.name, "episode": episode}}
                (made / EPISODES).mkdir(parents=True, exist_ok=True)
                (made / EPISODES / f"{fresh:06d}.json").write_text(json.dumps(value, indent=2) + "\n")
            fresh += 1
