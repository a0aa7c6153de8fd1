"""A `record` request as a person may ask it, checked, and as the store keeps it for a daemon that takes it over.

Not for carrying it out (sessions.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from zk0d import viewer
from zk0d.arguments import MAX_EPISODES, Whole
from zk0d.daemon import names
from zk0d.daemon.config import Config
from zk0d.daemon.store import Dataset
from zk0d.errors import UsageError


@dataclass(frozen=True)
class RecordRequest:
    """A checked `record` request. `until` is the number of episodes the dataset shall have at the end."""

    dataset: str
    task: str
    by: str
    robot: dict[str, Any]
    until: int | None = None
    episodes: int = 0
    episode_s: float = 20.0
    reset_s: float = 0.0
    fps: int = 30
    keep: str = "success"
    seed: int = 0
    train: bool = True
    pace: str = ""
    """"real" or "fast" (the recorder's own choice when empty)."""
    paused: bool = False
    """The first take waits for `next`."""
    auto: bool = True
    """A take ends by itself: after `episode_s`, or when a virtual leader is done. Else `next` ends it."""
    rerun: str = ""

    @classmethod
    def kept(cls, value: Mapping[str, Any]) -> RecordRequest:
        """From what a daemon before us, perhaps of another release, stored: fields that we do not know are left out."""
        known = {f.name for f in fields(cls)}
        return cls(**{"robot": {}, **{k: v for k, v in value.items() if k in known}})

    @classmethod
    def checked(
        cls, request: Mapping[str, Any], by: str, config: Config, datasets: list[Dataset], robot: dict[str, Any]
    ) -> RecordRequest:
        """A request as it came over the socket; `robot` is the whole table. Raises UsageError."""
        name = str(request.get("dataset") or "")
        known = next((d for d in datasets if d.name == name), None)
        if known is None:
            names.checked(name, "dataset")
        if request.get("rerun"):
            viewer.place(str(request["rerun"]))
        task = str(request.get("task") or (known.tasks[-1] if known and known.tasks else ""))
        if not task:
            raise UsageError("a recording needs a task text", 'for example --task "pick up the cube"')
        until, episodes = request.get("until"), request.get("episodes")
        if (until is None) == (episodes is None):
            raise UsageError("say how much to record", "either --episodes N more or --until N in the dataset")
        wanted = Whole(1, MAX_EPISODES).of(episodes if until is None else until, "the number of episodes")
        keep = str(request.get("keep") or "success")
        if keep not in ("success", "all"):
            raise UsageError(f"keep {keep!r} is not known", "success or all")
        return cls(
            dataset=name, task=task, by=by, until=until and wanted, episodes=0 if until else wanted,
            episode_s=float(request.get("episode_s") or config["record", "episode_s"]),
            reset_s=_seconds(request, "reset_s", config["record", "reset_s"]), fps=config["record", "fps"], keep=keep,
            seed=int(request.get("seed") or 0), robot=robot,
            train=bool(request.get("train", True)),
            pace=str(request.get("pace") or ""), paused=bool(request.get("paused")),
            auto=bool(request.get("auto", True)), rerun=str(request.get("rerun") or ""),
        )  # fmt: skip


def _seconds(request: Mapping[str, Any], key: str, default: float) -> float:
    value = request.get(key)
    return float(default if value is None else value)
