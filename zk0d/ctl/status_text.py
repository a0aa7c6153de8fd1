"""What `zk0ctl status` shows: gets the status document and says it in words. Imports next to nothing, for speed.

Not for the command's options (status_cmd.py). From the state file when the daemon is down.
"""

from __future__ import annotations

import os
import time

from zk0d.ctl.render import duration, paint, plural, safe, show_json, size, transfer
from zk0d.errors import NotRunningError, UnknownStateError
from zk0d.moments import clock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from zk0d.ctl.context import Context

    Document = dict[str, Any]

HEALTHY, ERROR, DEGRADED, NOT_RUNNING = 0, 1, 2, 3
_STYLE = {"training": ("green", "bold"), "paused": ("yellow", "bold"), "idle": ("blue", "bold"),
          "recording": ("cyan", "bold"), "not running": ("red", "bold")}  # fmt: skip


def document(context: Context) -> Document:
    """The status document: the daemon's, or, when it is down, what its state file says."""
    try:
        return dict(context.call("status", timeout=10.0))
    except NotRunningError as error:
        from zk0d.daemon.report import status
        from zk0d.daemon.store import Store

        try:
            store = Store.read(context.state / "zk0d.db")
        except UnknownStateError as unreadable:
            if not os.access(context.state / "zk0d.db", os.R_OK):
                raise error from None
            raise NotRunningError(f"{error.message}; {unreadable.message}", unreadable.hint) from None
        try:
            return status(store, None)
        finally:
            store.close()


def exit_code(doc: Document) -> int:
    """0 healthy, 1 error, 2 degraded, 3 not running."""
    if not doc["running"]:
        return NOT_RUNNING
    levels = {p["level"] for p in doc["health"]}
    return ERROR if "error" in levels else DEGRADED if levels else HEALTHY


def text(doc: Document) -> str:
    """The whole status for a person."""
    lines = [_headline(doc)]
    for label, values in (
        ("hub", _hub(doc)), ("federation", _federations(doc)), ("training", _training(doc)),
        ("arm", _session(doc)), ("datasets", _datasets(doc)), ("transfers", _transfers(doc)),
        ("updates", _updates(doc)), ("receipt", _receipt(doc)),
    ):  # fmt: skip
        for number, value in enumerate(values):
            lines.append(f"  {paint((label if number == 0 else '').ljust(11), 'dim')} {value}")
    for problem in doc["health"]:
        mark = paint("error", "red", "bold") if problem["level"] == "error" else paint("problem", "yellow", "bold")
        lines.append(f"  {mark}: {safe(problem['message'])}")
        if problem["hint"]:
            lines.append(f"    {safe(problem['hint'])}")
    return "\n".join(lines)


def _headline(doc: Document) -> str:
    if not doc["running"]:
        since = f"state as of {clock(doc['as_of'])}" if doc["as_of"] else "it never ran here"
        return f"{paint('zk0d is not running', *_STYLE['not running'])} ({since})"
    session, word, sentence = doc["session"], doc["state"]["word"], doc["state"]["sentence"]
    if session is not None and session["kind"] == "recording":
        done = f"{session['saved']} of {session['goal']} episodes"
        who = f"{done} of {safe(session['dataset'])}, by {safe(session['by'])} since {clock(session['since'])}"
        return f"{paint('recording', *_STYLE['recording'])}: {who}; training resumes when it ends"
    rest = sentence.removeprefix(f"{word}: ")
    return f"{paint(word, *_STYLE.get(word, ('bold',)))}: {safe(rest)}"


def _hub(doc: Document) -> list[str]:
    hub, link = doc["hub"], doc["link"]
    if hub is None:
        return ["not enrolled; `zk0ctl enroll` with the maintainer's invitation"]
    line = f"{safe(hub['address'])} as {safe(hub['node_id'])}"
    if link is not None:
        line += f", {link['phase']} since {clock(link['since'])}"
        if link["phase"] != "connected":
            line += f" ({safe(link['reason'])})" if link["reason"] else ""
            if link["next_attempt"]:
                line += f", next attempt in {duration(link['next_attempt'] - time.time())}"
    return [f"{line}, {size(doc['bytes']['up'])} up, {size(doc['bytes']['down'])} down"]


def _federations(doc: Document) -> list[str]:
    lines = []
    for f in doc["federations"]:
        line = f"{safe(f['name'])}: {f['state']}"
        if f["version"] is not None:
            line += f", version {f['version']}"
            if f["here"] != f["version"]:
                line += f" (here: {'none' if f['here'] is None else f['here']})"
        if isinstance(f["metrics"].get("heldout_loss"), int | float):
            line += f", held-out loss {f['metrics']['heldout_loss']:.4g}"
        if f["receipts"]:
            line += f", {plural(f['receipts'], 'update')} of ours confirmed"
        if f["reason"]:
            line += f" ({safe(f['reason'])})"
        lines.append(line)
    return lines


def _training(doc: Document) -> list[str]:
    training = doc["training"]
    lines = []
    task, progress = training["task"], training["progress"]
    if task is not None:
        steps = f"step {progress.get('step', task['step'])} of {progress.get('steps') or task['steps']}"
        line = f"{safe(task['federation'])} version {task['version']}, {steps}"
        if isinstance(progress.get("loss"), int | float):
            line += f", loss {progress['loss']:.4g}"
        if isinstance(progress.get("samples_per_s"), int | float):
            line += f", {progress['samples_per_s']:.3g} samples/s"
        if training["trainer"] == "frozen":
            line += ", frozen"
        if task["deaths"]:
            line += f"; the trainer died {plural(task['deaths'], 'time')}: {safe(task['reason'])}"
        lines.append(line)
    override = training["override"]
    if override is not None:
        lines.append(f"told to {'train' if override['kind'] == 'now' else 'pause'} by {safe(override['by'])}"
                     f" until {clock(override['until'])}")  # fmt: skip
    return lines


def _session(doc: Document) -> list[str]:
    session = doc["session"]
    if session is None:
        return []
    line = f"{session['kind']} by {safe(session['by'])} since {clock(session['since'])}"
    progress = session["progress"]
    if "frames" in progress:
        line += f", episode {progress.get('episode')}: {progress['frames']} frames at {progress.get('hz')} Hz"
    care = progress.get("care") or {}
    if care.get("level", "ok") != "ok":
        line += f"; {safe(care['level'])}: {safe(care.get('reason'))}"
    return [line]


def _datasets(doc: Document) -> list[str]:
    return [
        f"{safe(d['name'])}: {plural(d['episodes'], 'episode')}, {plural(d['frames'], 'frame')}"
        + ("" if d["train"] else ", not trained on")
        for d in doc["datasets"]
    ]


def _transfers(doc: Document) -> list[str]:
    return [f"{t['direction']} {t['digest'].partition(':')[2][:8]}: {transfer(t)}" for t in doc["transfers"]]


def _updates(doc: Document) -> list[str]:
    return [
        f"{size(u['size'])} for {safe(u['federation'])} waits for the hub's receipt since {clock(u['since'])}"
        + (f" ({safe(u['reason'])})" if u["reason"] else "")
        for u in doc["updates_waiting"]
    ]


def _receipt(doc: Document) -> list[str]:
    r = doc["last_receipt"]
    if r is None:
        return []
    line = f"{clock(r['stored_at'])}, {safe(r['federation'])}: {r['samples']} samples on version {r['base_version']}"
    return [line + (f", merged into version {r['new_version']}" if r["new_version"] is not None else ", admitted")]


def show(context: Context, *, as_json: bool) -> int:
    """Print the document or its text; the exit code."""
    return show_document(document(context), as_json=as_json)


def show_document(doc: Document, *, as_json: bool) -> int:
    """Print a document or its text; the exit code."""
    if as_json:
        show_json(doc)
    else:
        print(text(doc))
    return exit_code(doc)
