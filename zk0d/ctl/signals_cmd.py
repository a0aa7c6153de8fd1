"""`zk0ctl signals`: what the daemon senses of the machine and its owner, live. What follows from it: `why`."""

from __future__ import annotations

import json
from typing import Any

from zk0d.ctl.command import Args, Command, Context, arg
from zk0d.ctl.render import paint, safe, show_json, table
from zk0d.watching import watch

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
    def picture() -> str:
        found = context.call("signals")
        return json.dumps(found) if args.json else text(found)

    if args.watch:
        watch(picture, screen=not args.json)
    found = context.call("signals")
    show_json(found) if args.json else print(text(found))
    return 0


COMMAND = Command(
    "signals",
    "what the daemon senses of the machine and its owner",
    (
        arg("--json", help="as JSON", action="store_true"),
        arg("--watch", help="show it again every second", action="store_true"),
    ),
    run,
)
