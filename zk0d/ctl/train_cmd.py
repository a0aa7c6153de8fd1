"""`zk0ctl train`: override the arbiter for a while, visibly and with an end."""

from __future__ import annotations

import re
import time

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


def until(text: str, now: float) -> float:
    """Seconds from `now` until the next time the clock shows "08:00". Raises UsageError."""
    match = re.fullmatch(r"(\d{1,2}):(\d\d)", text.strip())
    if match is None or int(match[1]) > 23 or int(match[2]) > 59:
        raise UsageError(f"--until {text!r} is not a time of day", "for example 08:00")
    here = time.localtime(now)
    for days in (0, 1, 2):  # mktime puts the day right, and keeps the clock's time over a DST change
        at = time.mktime((here.tm_year, here.tm_mon, here.tm_mday + days, int(match[1]), int(match[2]), 0, 0, 0, -1))
        if at > now:
            return at - now
    raise AssertionError


def _action(action: str, help: str, *, lasts: str) -> Command:
    def run(context: Context, args: Args) -> int:
        for_s = None
        if lasts and args.for_ and args.until:
            raise UsageError("--for and --until contradict each other", "one of them says when it ends")
        if lasts and args.for_:
            for_s = seconds(args.for_)
        elif lasts and args.until:
            for_s = until(args.until, time.time())
        state = context.call("train", action=action, for_s=for_s)
        print(safe(state["sentence"]))
        return 0

    args = (
        arg("--for", help=f"how long (default {lasts})", dest="for_", metavar="TIME"),
        arg("--until", help="until the clock shows it, for example 08:00", metavar="HH:MM"),
    ) if lasts else ()  # fmt: skip
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
