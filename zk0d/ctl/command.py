"""How a command of zk0ctl is declared: its name, help, arguments and what runs. One declaration and file per command.

Drives the parser, the help and the reference page. Standard library only, and little of it: zk0ctl must start fast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zk0d.ctl.context import Context

__all__ = ["Arg", "Args", "Command", "Context", "arg"]

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
