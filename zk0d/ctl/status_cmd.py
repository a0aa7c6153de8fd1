"""`zk0ctl status`: the state in one sentence, then what it is made of; its options and how it waits and watches.

What is shown is in status_text.py, which main.py also calls by itself for the plain command. Not for why (`why`).
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Never

from zk0d.arguments import Number
from zk0d.ctl.command import Args, Command, Context, arg
from zk0d.ctl.render import duration
from zk0d.ctl.status_text import document, show, show_document, text
from zk0d.errors import DegradedError, NotRunningError, UsageError
from zk0d.watching import watch

if TYPE_CHECKING:
    from zk0d.ctl.status_text import Document


def _until(condition: str) -> Any:
    """A predicate over the document for --wait. Raises UsageError for an unknown condition."""
    kind, _, number = condition.partition("=")
    if kind == "version" and number.isdigit():
        return lambda d: (
            d["running"] and any((f["here"] if f["here"] is not None else -1) >= int(number) for f in d["federations"])
        )
    known = {
        "running": lambda d: d["running"],
        "connected": lambda d: bool(d["link"]) and d["link"]["phase"] == "connected",
        "settled": lambda d: (
            d["running"] and d["training"]["task"] is None and not d["updates_waiting"] and not d["session"]
        ),
    }
    if condition not in known:
        raise UsageError(f"--wait {condition!r} is not known", "running, connected, settled or version=N")
    return known[condition]


def _wait(context: Context, args: Args) -> Document:
    met, deadline = _until(args.wait), time.monotonic() + args.timeout
    while True:
        doc: Document | None = None
        try:
            doc = document(context)
        except NotRunningError as error:
            why = error
        if doc is not None and met(doc):
            return doc
        if time.monotonic() >= deadline:
            if doc is None:
                raise why
            raise DegradedError(f"not {args.wait} after {duration(args.timeout)}", doc["state"]["sentence"])
        time.sleep(0.2)


def _watch(context: Context, args: Args) -> Never:
    def picture() -> str:
        try:
            doc = document(context)
        except NotRunningError as error:
            return str(error)
        return json.dumps(doc) if args.json else text(doc)

    watch(picture, screen=not args.json)


def run(context: Context, args: Args) -> int:
    if args.watch:
        _watch(context, args)
    if args.wait:
        return show_document(_wait(context, args), as_json=args.json)
    return show(context, as_json=args.json)


COMMAND = Command(
    "status",
    "what zk0d does, why, and what comes next",
    (
        arg("--json", help="the whole document (schema: status.schema.json)", action="store_true"),
        arg("--watch", help="show it again every second", action="store_true"),
        arg("--wait", help="wait until running, connected, settled or version=N", metavar="CONDITION", nargs="?",
            const="running", default=""),
        arg("--timeout", help="seconds to wait (default 60)", type=Number(0), default=60.0, metavar="S"),
    ),
    run,
)  # fmt: skip
