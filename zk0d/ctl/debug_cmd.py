"""`zk0ctl debug bundle`: one archive for a bug report, with nothing in it that says something about a home.

Takes versions, `doctor`, the status, the unit's state and the ends of the logs, never keys, data sets or settings.
Names, task texts, addresses and identifiers in them are replaced.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import pwd
import re
import socket
import sys
import tarfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zk0d import __version__
from zk0d.ctl.command import Args, Command, Context, arg
from zk0d.errors import Zk0Error

LINES = 400
# Keys of status and logs whose values say something about a person or a home.
PRIVATE = frozenset(
    [
        "task_text",
        "by",
        "dataset",
        "datasets",
        "name",
        "address",
        "node_id",
        "user",
        "label",
        "tasks",
        "root",
        "token",
        "secret",
        "host",
        "serial",
        "follower",
        "leader",
        "path",
        "folder",
        "federation",
    ]
)
_PATTERNS = (
    (re.compile(r"-----BEGIN [^-]+-----.*?(-----END [^-]+-----|\Z)", re.DOTALL), "<key or certificate>"),
    (re.compile(r"\bzk0-[A-Za-z0-9_-]{20,}"), "<invitation>"),
    (re.compile(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", re.IGNORECASE), "<hardware address>"),
    (re.compile(r"\b(?!127\.)(?:\d{1,3}\.){3}\d{1,3}\b"), "<address>"),
    (re.compile(r"(?<![\w:])(?:[0-9a-f]{1,4}:){3,7}[0-9a-f]{1,4}\b", re.IGNORECASE), "<address>"),
    (re.compile(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b", re.IGNORECASE), "<uuid>"),
    (re.compile(r"(/home/|/root/|/Users/)[^\s\"',;]*"), r"\1<path>"),
    (re.compile(r"(/datasets/)[^\s\"',;]+"), r"\1<dataset>"),
    (
        re.compile(
            r"(?<![\w<>.~-])/(?!(?:usr|etc|dev|proc|sys|run|lib|bin|tmp/zk0|var/(?:lib|log|cache)/zk0|home|root|Users)\b)"
            r"[^\s\"',;:)]+/[^\s\"',;:)]*"
        ),
        "/<path>",
    ),  # a mounted disk's name says whose it is
    (re.compile(r"/dev/zk0/arm-[^\s\"',;]+"), "/dev/zk0/arm-<serial>"),
    (re.compile(r"[\w.+-]+@[\w-]+\.[\w.]+"), "<mail>"),
)


_QUOTED = re.compile(r"'[^']*'")


class Redactor:
    """Replaces what is private: known words (data set names, tasks, users, the host) and patterns."""

    def __init__(self, words: set[str]) -> None:
        known = sorted((w for w in words if len(w) > 2), key=len, reverse=True)
        self._words = re.compile("|".join(map(re.escape, known))) if known else None

    def text(self, text: str) -> str:
        for pattern, instead in _PATTERNS:
            text = pattern.sub(instead, text)
        return self._words.sub("<private>", text) if self._words else text

    def value(self, value: Any, key: str = "") -> Any:
        """The same for JSON values: private keys' values go, numbers and truth values stay."""
        if isinstance(value, dict):
            return {k: self.value(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [self.value(v, key) for v in value]
        if isinstance(value, str):
            if key == "text":  # a sentence of the history: names in it are quoted, also of what is no longer there
                value = _QUOTED.sub("'<private>'", value)
            return "<private>" if key in PRIVATE and value else self.text(value)
        return value


def private_words(value: Any, key: str = "") -> set[str]:
    """The values of private keys, wherever they are in a status: they are then replaced in the logs too."""
    if isinstance(value, dict):
        return set().union(*(private_words(v, k) for k, v in value.items()))
    if isinstance(value, list):
        return set().union(*(private_words(v, key) for v in value))
    return {value} if isinstance(value, str) and key in PRIVATE else set()


def collect(context: Context) -> dict[str, str]:
    """The files of the bundle: name → text, redacted."""
    from zk0d.ctl import journal_reader
    from zk0d.ctl.checkup import CHECKS
    from zk0d.ctl.findings import ask, examine
    from zk0d.ctl.logs_cmd import WHICH
    from zk0d.logbook import Filter

    try:
        status: Any = context.call("status", timeout=10.0)
    except Zk0Error as error:
        status = {"not_running": error.message}
    words = private_words(status) | {socket.gethostname()}
    words |= {u.pw_name for u in pwd.getpwall() if u.pw_uid >= 1000 and u.pw_name != "nobody"}
    redact = Redactor(words)
    versions = {
        "zk0d": __version__,
        "python": sys.version,
        "system": platform.platform(),
        "at": time.strftime("%F %T %z"),
    }
    files = {
        "versions.json": json.dumps(versions, indent=2),
        "status.json": json.dumps(redact.value(status), indent=2, ensure_ascii=False),
        "doctor.json": json.dumps(
            redact.value([asdict(f) for f in examine(context, CHECKS)]), indent=2, ensure_ascii=False
        ),
    }
    units = ask(
        "systemctl", "show", "zk0d.service", "-p", "ActiveState,SubState,Result,NRestarts,ExecMainStatus,MemoryCurrent"
    )
    if units:
        files["unit.txt"] = units
    for name in WHICH:
        path = context.state / "log" / f"{name}.log"
        if os.access(path, os.R_OK):
            lines = path.read_text(errors="replace").splitlines()[-LINES:]
            files[f"log/{name}.log"] = "\n".join(_line(redact, line) for line in lines) + "\n"
    if not journal_reader.why_not():
        with contextlib.suppress(Zk0Error):
            rows = [redact.value(e.row()) for e in journal_reader.entries(Filter(), LINES, follow=False)]
            files["journal.jsonl"] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return files


def _line(redact: Redactor, line: str) -> str:
    try:
        return json.dumps(redact.value(json.loads(line)), ensure_ascii=False)
    except ValueError:
        return redact.text(line)


def _bundle(context: Context, args: Args) -> int:
    out = Path(args.out or f"zk0d-debug-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz")
    files = collect(context)
    fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as raw, tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for name, text in files.items():
            data = text.encode()
            member = tarfile.TarInfo(f"zk0d-debug/{name}")
            member.size, member.mtime, member.mode = len(data), int(time.time()), 0o644
            archive.addfile(member, io.BytesIO(data))
    print(f"{out}: {', '.join(files)}")
    print("names, task texts, addresses and identifiers are replaced; look through it before you send it")
    return 0


COMMAND = Command(
    "debug",
    "help with a bug report",
    subs=(
        Command("bundle", "an archive for a bug report, with private things replaced",
                (arg("--out", help="the file to write (default zk0d-debug-TIME.tar.gz)", metavar="FILE"),), _bundle),
    ),
    default="bundle",
)  # fmt: skip
