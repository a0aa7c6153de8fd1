"""How a command of zk0ctl is declared: its name, help, arguments and what runs. One declaration and file per command.

Drives the parser, the help and the reference page. Standard library only, and little of it: zk0ctl must start fast.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zk0d.control import call
from zk0d.errors import NotRunningError

DEFAULT_SOCKET = Path("/run/zk0d/control.sock")
DEFAULT_STATE = Path("/var/lib/zk0d")

Args = Any
"""The parsed arguments (argparse.Namespace)."""


@dataclass(frozen=True)
class Arg:
    """One argument: its `names` ("--task" or "name") and what argparse needs for it."""

    names: tuple[str, ...]
    help: str
    options: dict[str, Any] = field(default_factory=dict)


def arg(*names: str, help: str, **options: Any) -> Arg:
    return Arg(names, help, options)


@dataclass(frozen=True)
class Command:
    """A command: with `run` (gives the exit code), or with `subs`, of which `default` is meant when none is named."""

    name: str
    help: str
    args: tuple[Arg, ...] = ()
    run: Callable[[Context, Args], int] | None = None
    subs: tuple[Command, ...] = ()
    default: str = ""


@dataclass(frozen=True)
class Context:
    """Where the daemon is. `state` is its folder as far as it can be told, for when the daemon is down."""

    socket: Path
    state: Path

    @classmethod
    def make(cls, socket: str | None, state: str | None) -> Context:
        """From --socket and --state, else ZK0_SOCKET and ZK0_STATE, else where the installed daemon is."""
        given_state = state or os.environ.get("ZK0_STATE")
        given_socket = socket or (None if state else os.environ.get("ZK0_SOCKET"))
        if given_socket:
            path = Path(given_socket)
            beside = path.parent if os.access(path.parent / "zk0d.db", os.F_OK) else DEFAULT_STATE
            return cls(path, Path(given_state) if given_state else beside)
        if given_state:
            return cls(Path(given_state) / "control.sock", Path(given_state))
        return cls(DEFAULT_SOCKET, DEFAULT_STATE)

    def call(
        self,
        op: str,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        timeout: float | None = 30.0,
        **request: Any,
    ) -> Any:
        """Ask the daemon. Raises NotRunningError with what to do, or the daemon's own error."""
        try:
            return call(self.socket, {"op": op, **request}, on_event, timeout)
        except NotRunningError as error:
            hint = error.hint
            if "nothing listens" in error.message:
                hint = "start it with `systemctl start zk0d` (or `zk0d --foreground --state DIR`)"
            raise NotRunningError(f"zk0d is not running: {error.message}", hint) from error
