"""`zk0ctl logs`: what happened lately; or the output of the daemon or of a worker.

Reads the files when the daemon is down.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from zk0d.ctl.command import Args, Command, Context, arg
from zk0d.ctl.render import paint, safe
from zk0d.errors import NotRunningError

WHICH = ("zk0d", "trainer", "recorder", "rollout", "publisher")


def _entry(event: dict[str, Any]) -> None:
    if event["event"] == "line":
        print(safe(event["text"]), flush=True)
    else:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["at"]))
        print(f"{paint(stamp, 'dim')} {event['kind'].ljust(10)} {safe(event['text'])}", flush=True)


def _from_files(context: Context, args: Args) -> None:
    if args.worker:
        path = context.state / "log" / f"{args.worker}.log"
        if os.access(path, os.R_OK):
            for line in path.read_text(errors="replace").splitlines()[-args.lines :]:
                print(safe(line))
        return
    from zk0d.daemon.store import Store

    store = Store.read(context.state / "zk0d.db")
    for event in store.events(args.lines):
        _entry({"event": "entry", **event})
    store.close()


def run(context: Context, args: Args) -> int:
    try:
        context.call("logs", _entry, timeout=None if args.follow else 30.0, which=args.worker or "events",
                     count=args.lines, follow=args.follow)  # fmt: skip
    except NotRunningError as error:
        if not os.access(context.state / "zk0d.db", os.R_OK):
            raise
        _from_files(context, args)
        print(f"({error.message})", file=sys.stderr)
        return error.exit_code
    return 0


COMMAND = Command(
    "logs",
    "what happened lately",
    (
        arg("--worker", help="the output of one program instead of the events", choices=WHICH, metavar="|".join(WHICH)),
        arg("-n", help="how many lines (default 30)", type=int, default=30, dest="lines", metavar="LINES"),
        arg("-f", "--follow", help="go on as more comes", action="store_true"),
    ),
    run,
)
