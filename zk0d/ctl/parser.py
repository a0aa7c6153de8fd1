"""Builds zk0ctl's parser from the commands' declarations, loading only the command asked for.

Not for running them (main.py).
"""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import Any, NoReturn

from zk0d.ctl.command import Command
from zk0d.ctl.context import DEFAULT_SOCKET, DEFAULT_STATE
from zk0d.errors import UsageError

COMMANDS = ("status", "why", "signals", "enroll", "federation", "robot", "record", "dataset", "train", "receipts",
            "model", "rollout", "logs", "runtime", "doctor", "debug")  # fmt: skip
USAGE = 64
_VALUE_OPTIONS = ("--socket", "--state")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def load(name: str) -> Command:
    """The declaration in `NAME_cmd.py`."""
    command: Command = importlib.import_module(f"zk0d.ctl.{name}_cmd").COMMAND
    return command


def wanted(argv: list[str]) -> str:
    """The command word, if there is one: the first that is neither an option nor an option's value."""
    skip = False
    for word in argv:
        if skip:
            skip = False
        elif word in _VALUE_OPTIONS:
            skip = True
        elif not word.startswith("-"):
            return word
    return ""


def _globals(parser: argparse.ArgumentParser, default: Any) -> None:
    parser.add_argument("--socket", metavar="PATH", default=default,
                        help=f"control socket (or ZK0_SOCKET; default {DEFAULT_SOCKET})")  # fmt: skip
    parser.add_argument("--state", metavar="DIR", default=default,
                        help=f"the daemon's folder (or ZK0_STATE; default {DEFAULT_STATE})")  # fmt: skip


def _add(subparsers: Any, command: Command) -> None:
    path = subparsers._prog_prefix  # of the command with those above it
    default = f"Without an ACTION: {command.default}. `{path} {command.name} {command.default} --help` has its options."
    parser = subparsers.add_parser(
        command.name, help=command.help, description=command.help, epilog=default if command.default else None
    )
    _globals(parser, argparse.SUPPRESS)
    for a in command.args:
        parser.add_argument(*a.names, help=a.help, **a.options)
    if command.subs:
        below = parser.add_subparsers(metavar="ACTION", required=True)
        for sub in command.subs:
            _add(below, sub)
    parser.set_defaults(run=command.run)


def build(names: tuple[str, ...]) -> argparse.ArgumentParser:
    """The parser for the named commands."""
    from zk0d import __version__
    from zk0d.errors import EXIT_CODES

    parser = _Parser(
        prog="zk0ctl",
        description="Controls zk0d, the daemon that records, trains and exchanges updates.",
        epilog=f"Exit codes: {', '.join(f'{code} {said}' for code, said in EXIT_CODES)}.",
    )
    _globals(parser, None)
    parser.add_argument("--version", action="version", version=f"zk0ctl {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in names:
        _add(subparsers, load(name))
    return parser


def with_default(argv: list[str], name: str) -> list[str]:
    """Insert a command's default action where the person left it out (`record --task …` is `record start --task …`).

    Raises UsageError for an action that the command has not.
    """
    command = load(name)
    if not command.default:
        return argv
    at = argv.index(name) + 1
    rest = argv[at:]
    if "-h" in rest or "--help" in rest or wanted(rest) in {s.name for s in command.subs}:
        return argv
    default = next(s for s in command.subs if s.name == command.default)
    if rest and not rest[0].startswith("-") and all(a.names[0].startswith("-") for a in default.args):
        known = ", ".join(s.name for s in command.subs)
        raise UsageError(f"zk0ctl {name} knows no action {rest[0]!r}", f"one of {known}")
    return [*argv[:at], command.default, *rest]
