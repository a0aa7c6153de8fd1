"""What a check of `zk0ctl doctor` gives, and running the checks, which are in checkup.py and checkup_machine.py."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zk0d.ctl.context import Context
from zk0d.errors import Zk0Error


@dataclass(frozen=True)
class Finding:
    """One result. `level`: ok, note (cannot be told, or merely good to know), warning, error; `mend`: what to do."""

    check: str
    level: str
    message: str
    mend: str = ""


@dataclass
class Case:
    """What the checks share: where the daemon is, and its status when it answers."""

    context: Context
    status: dict[str, Any] | None = None
    why_not: str = ""


Check = Callable[[Case], list[Finding]]


def examine(context: Context, checks: tuple[Check, ...]) -> list[Finding]:
    """Run all checks. One that fails itself is a note: the others still tell what they found."""
    case = Case(context)
    try:
        case.status = dict(context.call("status", timeout=10.0))
    except Zk0Error as error:
        case.why_not = error.message
    found: list[Finding] = []
    for check in checks:
        try:
            found += check(case)
        except Exception as error:
            found.append(Finding(check.__name__, "note", f"could not be checked: {type(error).__name__}: {error}"))
    return found


def ask(*command: str, timeout: float = 10.0) -> str | None:
    """What a command prints; None when it is not there, fails or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
