"""Asking journalctl for what zk0d and its workers' units said, as entries of a logbook; and whether one may.

Not for the daemon's own files (zk0d/logbook.py), which need no journal.
"""

from __future__ import annotations

import grp
import os
import shutil
import subprocess
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from zk0d.errors import Zk0Error
from zk0d.logbook import Entry, Filter, of_journal

UNITS = ("zk0d.service", "zk0d.socket", "zk0d-train@*", "zk0d-record@*", "zk0d-rollout@*")
READERS = ("systemd-journal", "adm", "wheel")
"""Groups whose members may read the system's journal (systemd-journald.service(8), "Access control")."""


def why_not() -> str:
    """Why this user cannot read the system's journal; empty when it can."""
    if shutil.which("journalctl") is None:
        return "there is no journalctl on this machine"
    if os.geteuid() == 0:
        return ""
    mine = {*os.getgroups(), os.getegid()}
    for name in READERS:
        try:
            if grp.getgrnam(name).gr_gid in mine:
                return ""
        except KeyError:
            continue
    return f"the journal is open to members of {' or '.join(READERS[:2])} only"


def mend() -> str:
    """The command that lets this user read it."""
    return "sudo usermod -aG systemd-journal $USER, then log in again; or use sudo"


def command(wanted: Filter, count: int, follow: bool) -> list[str]:
    """The journalctl call. It counts only where it alone decides what is wanted: patterns and levels are ours."""
    words = ["journalctl", "--quiet", "--no-pager", "--output=json"]
    for unit in UNITS:
        words += ["--unit", unit]
    exact = {"event": wanted.event, **wanted.fields}
    plain = {k: v for k, v in sorted(exact.items()) if v and k != "unit" and not set(v) & set("*?[")}
    matches = [f"ZK0_{k.upper()}={v}" for k, v in plain.items()]
    ours = wanted.level or "unit" in wanted.fields or len(matches) < sum(map(bool, exact.values()))
    if wanted.since:
        words.append(f"--since=@{wanted.since:.0f}")
    words.append("--lines=all" if ours else f"--lines={count}")
    return [*words, *(["--follow"] if follow else []), *matches]


@contextmanager
def _asked(words: list[str]) -> Iterator[Iterator[Entry]]:
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            yield (entry for line in process.stdout if (entry := of_journal(line)) is not None)
            said = process.stderr.read().strip()
            if process.wait() and said:
                raise Zk0Error(f"journalctl: {said.splitlines()[-1]}", mend())
        finally:
            process.terminate()


def entries(wanted: Filter, count: int, follow: bool) -> Iterator[Entry]:
    """The last `count` wanted entries, then, with `follow`, those that come. Raises Zk0Error."""
    with _asked(command(wanted, count, follow=False)) as found:
        last = deque((e for e in found if wanted.wants(e)), maxlen=count)
    yield from last
    if follow:
        newest = last[-1].at if last else 0.0
        with _asked(command(wanted, count, follow=True)) as found:
            yield from (e for e in found if e.at > newest and wanted.wants(e))
