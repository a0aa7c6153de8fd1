"""`zk0ctl train`: override the arbiter for a while, visibly and with an end."""

from __future__ import annotations

import re

from zk0d.ctl.command import Args, Command, Context, arg
from zk0d.ctl.render import safe
from zk0d.errors import UsageError

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d)")


def seconds(text: str) -> float:
    """Seconds of "90s", "30min", "2h", "1d". Raises UsageError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--for {text!r} is not a time", "for example 90s, 30min, 2h, 1d")
    return float(match[1]) * _UNITS[match[2]]


def _action(action: str, help: str, *, lasts: str) -> Command:
    def run(context: Context, args: Args) -> int:
        for_s = seconds(args.for_) if lasts and args.for_ else None
        state = context.call("train", action=action, for_s=for_s)
        print(safe(state["sentence"]))
        return 0

    args = (arg("--for", help=f"how long (default {lasts})", dest="for_", metavar="TIME"),) if lasts else ()
    return Command(action, help, args, run)


COMMAND = Command(
    "train",
    "train now, pause, or leave it to the daemon again",
    subs=(
        _action("now", "train whenever nobody records, without waiting", lasts="2h"),
        _action("pause", "do not train", lasts="8h"),
        _action("resume", "forget `now` or `pause`", lasts=""),
    ),
)
