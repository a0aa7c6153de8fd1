"""`zk0ctl logs`: what happened lately; entries of the log by their fields; or the output of a worker.

By fields it reads the journal of an installed daemon where the user may, else the daemon's own log, which the daemon
reads for members of group zk0; and the files when it is down.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zk0d.arguments import Whole
from zk0d.ctl.command import Args, Command, Context, arg
from zk0d.ctl.context import DEFAULT_SOCKET
from zk0d.ctl.render import paint, safe
from zk0d.errors import NotRunningError, UsageError, Zk0Error
from zk0d.logbook import LEVELS, Entry, Filter, matching, rotated

WHICH = ("zk0d", "trainer", "recorder", "rollout", "publisher", "curation", "tending")
SHORT = {"train": "trainer", "record": "recorder"}
_COLOURS = {"error": "red", "warning": "yellow"}


def since(text: str, now: float) -> float:
    """ "10min" (ago), "14:30" (today) or "2026-11-24 14:30" → seconds since the epoch. Raises UsageError."""
    from zk0d.ctl.train_cmd import seconds

    for pattern in ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d"):
        try:
            return time.mktime(time.strptime(text, pattern))
        except ValueError:
            continue
    try:
        hour, minute = map(int, text.split(":"))
        day = time.localtime(now)
        return time.mktime((*day[:3], hour, minute, 0, *day[6:8], -1))
    except ValueError:
        pass
    try:
        return now - seconds(text)
    except UsageError as error:
        hint = "for example 10min, 2h, 14:30 or '2026-11-24 14:30'"
        raise UsageError(f"--since {text!r} is not a time", hint) from error


def wanted(args: Args, now: float) -> Filter | None:
    """The filter that the arguments make; None when they name no field. Raises UsageError."""
    fields = {}
    for text in args.field or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--field {text!r} has no value", "NAME=VALUE, as in update=sha256:…")
        fields[name.lower().removeprefix("zk0_")] = value
    given = {"federation": args.federation, "version": args.version and args.version.lstrip("v")}
    fields |= {k: v for k, v in given.items() if v}
    if not (fields or args.event or args.level or args.journal):
        return None
    if args.worker:
        fields["kind"] = args.worker
    return Filter(args.event or "", args.level or "", since(args.since, now) if args.since else 0.0, fields)


class Printer:
    """Prints entries, one line each or as JSON lines."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json

    def show(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if self._json:
                print(json.dumps(entry.row(), ensure_ascii=False), flush=True)
                continue
            word = paint(safe(entry.event or entry.fields.get("unit", "")).ljust(10), _COLOURS.get(entry.level, "bold"))
            print(f"{self._stamp(entry.at)} {word} {safe(entry.text)}", flush=True)

    def event(self, event: dict[str, Any]) -> None:
        """An event of the daemon's answer."""
        if event["event"] == "line":
            print(json.dumps({"text": event["text"]}) if self._json else safe(event["text"]), flush=True)
        elif event["event"] == "log":
            self.show([Entry(**event["entry"])])
        elif self._json:
            row = {"at": event["at"], "level": "info", "event": event["kind"], "text": event["text"]}
            print(json.dumps(row, ensure_ascii=False), flush=True)
        else:
            print(f"{self._stamp(event['at'])} {event['kind'].ljust(10)} {safe(event['text'])}", flush=True)

    def _stamp(self, at: float) -> str:
        return paint(time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)), "dim")


def _from_files(context: Context, args: Args, filter: Filter | None, printer: Printer) -> None:
    folder = context.state / "log"
    if filter is not None:
        printer.show(matching(rotated(folder / "zk0d.log"), filter, args.lines))
    elif args.worker:
        path = folder / f"{args.worker}.log"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        for line in lines[max(0, len(lines) - args.lines) :]:
            printer.event({"event": "line", "text": line})
    else:
        from zk0d.daemon.store import Store

        store = Store.read(context.state / "zk0d.db")
        begin = since(args.since, time.time()) if args.since else 0.0
        for event in [e for e in store.events(args.lines) if e["at"] >= begin]:
            printer.event({"event": "entry", **event})
        store.close()


def _journal(context: Context, args: Args, filter: Filter, printer: Printer) -> bool:
    """Show what the journal has → whether it could be asked. Raises Zk0Error when it must be and cannot."""
    from zk0d.ctl import journal_reader

    installed = context.socket == Path(DEFAULT_SOCKET) and Path("/run/systemd/system").is_dir()
    if not (installed or args.journal):
        return False
    why = journal_reader.why_not()
    if why and args.journal:
        raise Zk0Error(why, journal_reader.mend())
    if why:
        print(f"({why}: this is zk0d's own log; {journal_reader.mend()})", file=sys.stderr)
        return False
    printer.show(journal_reader.entries(filter, args.lines, args.follow))
    return True


def run(context: Context, args: Args) -> int:
    args.worker = SHORT.get(args.worker, args.worker)
    now, printer = time.time(), Printer(args.json)
    filter = wanted(args, now)
    if filter is not None and _journal(context, args, filter, printer):
        return 0
    request: dict[str, Any] = {} if filter is None else {"filter": filter.plain()}
    if filter is None and args.since:
        request["since"] = since(args.since, now)
    which = args.worker if args.worker and filter is None else "zk0d" if filter else "events"
    try:
        context.call("logs", printer.event, timeout=None if args.follow else 30.0, which=which,
                     count=args.lines, follow=args.follow, **request)  # fmt: skip
    except NotRunningError as error:
        if not os.access(context.state / "zk0d.db", os.R_OK):
            raise
        _from_files(context, args, filter, printer)
        print(f"({error.message})", file=sys.stderr)
        return error.exit_code
    return 0


_NAMES = (*WHICH, *SHORT)
_PROGRAMS = "|".join(WHICH)
COMMAND = Command(
    "logs",
    "what happened lately, or the log by its fields",
    (
        arg("--event", help="entries of this event, such as receipt or 'link.*'", metavar="NAME"),
        arg("--federation", help="entries about this federation", metavar="NAME"),
        arg("--version", help="entries about this version of its model", metavar="N"),
        arg("--field", help="entries whose field has this value, such as 'unit=zk0d-train@*'", action="append",
            metavar="NAME=VALUE"),
        arg("--level", help="entries at least this grave", choices=LEVELS, metavar="|".join(LEVELS)),
        arg("--worker", help="the output of one program; with a filter, entries about it", choices=_NAMES,
            metavar=_PROGRAMS),
        arg("--since", help="not older than this: 10min, 2h, 14:30 or '2026-11-24 14:30'", metavar="TIME"),
        arg("--journal", help="the system's journal: all entries, or those of a filter", action="store_true"),
        arg("-n", help="how many lines (default 30; 0 with -f: only new ones)", type=Whole(0), default=30, dest="lines",
            metavar="LINES"),
        arg("-f", "--follow", help="go on as more comes", action="store_true"),
        arg("--json", help="as JSON, one object a line", action="store_true"),
    ),
    run,
)  # fmt: skip
