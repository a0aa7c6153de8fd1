"""What the demo prints: lines with a clock while it runs, a table and a summary at the end."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from zk0d.demo.cast import Node

_COLOURS = {"hub": "36", "alice": "32", "bob": "33", "carol": "35", "maintainer": "34", "demo": "31"}


class Board:
    """Prints one line per event, from any thread; in colour on a terminal unless NO_COLOR is set."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._last: dict[str, str] = {}
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def title(self, text: str) -> None:
        with self._lock:
            print(f"\n{self._paint('1', text)}", flush=True)

    def say(self, who: str, text: str, faint: bool = False, strong: bool = False) -> None:
        if not text.strip():
            return
        clock = f"{time.monotonic() - self._began:6.1f} s"
        name = self._paint(_COLOURS.get(who, "0"), f"{who:<10}")
        body = self._paint("2", text) if faint else self._paint("1", text) if strong else text
        with self._lock:
            print(f"{clock}  {name} {body}", flush=True)

    def change(self, who: str, text: str) -> None:
        """As `say`, only when the text differs from the last one of `who`."""
        if self._last.get(who) != text:
            self._last[who] = text
            self.say(who, text, faint=True)

    def _paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colour else text


def size(count: float) -> str:
    """Bytes for people: 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return ""


def table(lines: list[dict[str, Any]]) -> str:
    """version, updates merged, held-out loss, bytes up and down, as text."""
    rows = [("version", "updates", "held-out loss", "up", "down")]
    for line in lines:
        loss = line.get("heldout_loss")
        rows.append(
            (
                str(line["version"]),
                str(line["updates"]),
                "not known" if loss is None else f"{loss:.4f}",
                size(line.get("bytes_up", 0)),
                size(line.get("bytes_down", 0)),
            )
        )
    widths = [max(len(r[i]) for r in rows) for i in range(5)]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows) + "\n"


def summarise(
    nodes: dict[str, Node], lines: list[dict[str, Any]], policy: Path, seconds: dict[str, float]
) -> dict[str, Any]:
    """The content of summary.json. Bytes are of the whole run, as the nodes counted them."""
    up = down = episodes = 0
    for node in nodes.values():
        status = node.status()
        up += status["bytes"]["up"]
        down += status["bytes"]["down"]
        episodes += sum(d["episodes"] for d in status.get("datasets", []))
    return {
        "nodes": len(nodes),
        "episodes": episodes,
        "versions": [{k: line.get(k) for k in ("version", "updates", "heldout_loss")} for line in lines],
        "policy_dir": str(policy),
        "bytes_up": up,
        "bytes_down": down,
        "seconds": seconds,
    }
