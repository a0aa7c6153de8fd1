"""Room for recordings: a floor of free bytes on the disk, and what a quota over all datasets leaves.

Decides from numbers; a take that would not fit does not begin, one that reaches the floor ends and is kept. Deletes
nothing. Not for measuring datasets (zk0d/daemon/room.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_BYTES_A_PIXEL = 0.04
"""Of an encoded frame, before anything was recorded (video.py: 11 KiB at 640x480)."""


def _said(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


class Room:
    """For one session. `quota_left` 0: no quota. `cameras`: (height, width) of each."""

    def __init__(
        self, floor: int, quota_left: int, cameras: Sequence[tuple[int, int]], fps: int, episode_s: float
    ) -> None:
        self._floor, self._quota_left, self._episode_s = floor, quota_left, episode_s
        self._rate = sum(h * w * _BYTES_A_PIXEL for h, w in cameras) * fps
        self._used = 0
        self.reason = ""
        """Why no more is recorded; "" while there is room."""

    def recorded(self, size: int, seconds: float) -> None:
        """An episode has come to the dataset: the next one is taken to be like it."""
        self._used += size
        if seconds > 0:
            self._rate = size / seconds

    def refusal(self, free: int) -> str:
        """Why no take may begin; "" when it may."""
        need = int(self._rate * self._episode_s)
        if free < self._floor + need:
            self.reason = (
                f"{_said(free)} are free on the disk; a take needs about {_said(need)},"
                f" and {_said(self._floor)} stay free ([datasets] floor_gb)"
            )
        elif self._quota_left and self._used + need > self._quota_left:
            left = max(0, self._quota_left - self._used)
            self.reason = f"the quota of all datasets leaves {_said(left)} ([datasets] quota_gb)"
        return self.reason

    def full(self, free: int, take: Path) -> bool:
        """Whether the take that is being written in the folder `take` must end now."""
        if free < self._floor:
            self.reason = f"the disk is down to its floor: {_said(free)} free ([datasets] floor_gb)"
        elif self._quota_left:
            size = sum(p.stat().st_size for p in take.glob("*"))
            if self._used + size > self._quota_left:
                self.reason = "the quota of all datasets is used up ([datasets] quota_gb)"
        return bool(self.reason)
