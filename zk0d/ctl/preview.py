"""The live picture of a recording in a terminal: rate, joints, how old the cameras' frames are, how the servos are.

Made of the recorder's progress events. Not for images (--rerun).
"""

from __future__ import annotations

import os
import sys

from zk0d.ctl.render import Progress, paint, safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_WIDTH = 24
_OLD_MS = 100.0
_SPAN = {"gripper": (0.0, 100.0)}
_COLOURS = {"ok": "green", "warn": "yellow", "slow": "yellow", "release": "red"}


class Block(Progress):
    """Several lines that are rewritten on a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._lines = 0

    def update(self, text: str) -> None:
        """Show `text`, which may have several lines, as the passing state of things."""
        if not self._tty:
            return
        self.clear()
        columns, rows = os.get_terminal_size(sys.stderr.fileno())
        lines = text.split("\n")[: max(1, rows - 2)]
        if any(len(line) >= columns for line in lines) and len(lines) > 1:
            lines = lines[:1]  # too narrow for the picture
        lines[0] = lines[0] if "\x1b" in lines[0] else lines[0][: max(20, columns - 1)]
        sys.stderr.write("\n".join(lines))
        sys.stderr.flush()
        self._lines, self._open = len(lines), True

    def clear(self) -> None:
        """Take the picture away."""
        if self._open:
            up = f"\x1b[{self._lines - 1}A" if self._lines > 1 else ""
            sys.stderr.write(f"{up}\r\x1b[J")
            sys.stderr.flush()
            self._open = False


def picture(event: dict[str, Any], done: str) -> str:
    """The picture of a progress event; the first line alone says the most."""
    phase = event.get("phase", "take")
    if phase == "paused":
        head = f"{done}; paused: `zk0ctl record next` begins a take"
    elif phase == "reset":
        head = f"{done}; put things back, {max(0.0, event.get('left_s', 0.0)):.0f} s (next begins at once)"
    else:
        rate = f", {event['hz']:.1f} Hz" if isinstance(event.get("hz"), int | float) else ""
        seconds = f", {event['seconds']:.1f} s" if isinstance(event.get("seconds"), int | float) else ""
        head = f"{done}; taking episode {event.get('episode')}: {event.get('frames', 0)} frames{seconds}{rate}"
    lines = [head]
    for name, value in (event.get("joints") or {}).items():
        lines.append(f"  {safe(name).removesuffix('.pos'):<20} {value:8.1f} {_bar(name, value)}")
    cameras = event.get("cameras") or {}
    if cameras:
        ages = (f"{safe(n)} {a:.0f} ms" + (paint(" old", "yellow") if a > _OLD_MS else "") for n, a in cameras.items())
        lines.append(f"  cameras: {', '.join(ages)}")
    care = event.get("care") or {}
    if care:
        told = f"  servos: up to {care['celsius']:.0f} °C, {care['volts']:.1f} V"
        if care["level"] != "ok":
            told += f"; {paint(safe(care['level']), _COLOURS.get(care['level'], 'red'))}: {safe(care['reason'])}"
        lines.append(told)
    return "\n".join(lines)


def _bar(name: str, value: float) -> str:
    low, high = next((span for part, span in _SPAN.items() if part in name), (-100.0, 100.0))
    at = round((min(max(value, low), high) - low) / (high - low) * (_WIDTH - 1))
    return "".join("|" if k == at else "·" for k in range(_WIDTH))
