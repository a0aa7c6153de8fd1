"""`zk0ctl signals`: what the daemon senses of the machine and its owner, live. What follows from it: `why`."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from zk0d.ctl.command import Args, Command, Context, arg
from zk0d.ctl.render import paint, safe, show_json, table

_LEVELS = {"clear": ("", ()), "wary": ("none starts", ("yellow",)), "stop": ("none runs", ("red", "bold"))}


def text(readings: list[dict[str, Any]]) -> str:
    """A line for each signal: its name, what it says, and what it holds back."""
    rows = []
    for r in readings:
        word, style = _LEVELS.get(r["level"], (r["level"], ()))
        what = "training" if r["uses"] == ["train"] else "transfers" if r["uses"] == ["network"] else "both"
        says = safe(r["says"]) if r["known"] else paint(safe(r["says"]), "dim")
        rows.append([safe(r["name"]), what, paint(word, *style), says])
    return table(["signal", "for", "holds", "says"], rows)


def run(context: Context, args: Args) -> int:
    shown = ""
    while True:
        found = context.call("signals")
        if not args.watch:
            show_json(found) if args.json else print(text(found))
            return 0
        now = json.dumps(found) if args.json else text(found)
        if sys.stdout.isatty() and not args.json:
            sys.stdout.write(f"\x1b[H\x1b[J{now}\n\n{paint('every second; Ctrl-C ends', 'dim')}\n")
        elif now != shown:
            print(now, flush=True)
        sys.stdout.flush()
        shown = now
        time.sleep(1.0)


COMMAND = Command(
    "signals",
    "what the daemon senses of the machine and its owner",
    (
        arg("--json", help="as JSON", action="store_true"),
        arg("--watch", help="show it again every second", action="store_true"),
    ),
    run,
)
