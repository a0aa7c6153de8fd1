"""The zk0-hub command line, declared once: help and the man page come from here. What commands do is in commands.py."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zk0d import __version__
from zk0d.arguments import Whole
from zk0d.errors import UsageError
from zk0d.hub import commands

DEFAULT_DIR = "/var/lib/zk0-hub"

Run = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:  # argparse would exit with 2, which here means degraded
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(UsageError.exit_code)


def parser() -> argparse.ArgumentParser:
    """All of it; `run` of the parsed options does the command."""
    top = Parser(prog="zk0-hub", description="The broker of a zk0 federation.")
    top.add_argument("--version", action="version", version=f"zk0-hub {__version__}")
    top.add_argument("--dir", type=Path, default=Path(os.environ.get("ZK0_HUB_DIR", DEFAULT_DIR)),
                     help=f"the hub's folder (default $ZK0_HUB_DIR or {DEFAULT_DIR})")  # fmt: skip
    found = top.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    _service(found)
    _invitations(_group(found, "invitations", "the one-time tokens that were given out"))
    _nodes(_group(found, "nodes", "who is enrolled"))
    _federations(_group(found, "federation", "models that are trained together"))
    _evidence(found)
    versions = _json(_add(found, "versions", commands.versions, "a federation's versions"))
    versions.add_argument("name")
    again = _json(_add(found, "evaluate", commands.evaluate, "evaluate versions again, and publish them anew"))
    again.add_argument("name", help="the federation")
    again.add_argument("version", type=Whole(0), nargs="?", help="which (default: all whose evaluation was given up)")
    push = _json(_add(found, "push", commands.push, "push a version to the Hugging Face Hub"))
    push.add_argument("name", help="the federation")
    push.add_argument("--version", type=Whole(0), metavar="N", help="which (default: the best, else the newest)")
    push.add_argument("--dry-run", action="store_true", help="only list exactly what would be pushed")
    return top


def _group(at: Any, name: str, text: str) -> Any:
    return at.add_parser(name, help=text).add_subparsers(required=True, metavar="COMMAND")


def _add(at: Any, name: str, run: Run, text: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = at.add_parser(name, help=text, description=text)
    made.set_defaults(run=run)
    return made


def _json(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("--json", action="store_true", help="as JSON")
    return command


def _service(at: Any) -> None:
    init = _add(at, "init", commands.init, "make a hub: settings, certificate authority, keys")
    init.add_argument("--listen", default="0.0.0.0:7730", metavar="HOST:PORT")
    init.add_argument("--name", default="zk0 hub")
    _add(at, "serve", commands.serve, "run the hub until SIGTERM")
    status = _json(_add(at, "status", commands.status, "what the hub is doing"))
    status.add_argument("--watch", action="store_true", help="again every second until interrupted")
    invite = _json(_add(at, "invite", commands.invite, "print a one-time token that enrols one node"))
    invite.add_argument("--label", default="", help="your name for the node; stays on the hub")
    _token(invite)


def _token(command: argparse.ArgumentParser) -> None:
    command.add_argument("--hours", type=float, default=72.0, help="how long it is good for (default 72)")
    command.add_argument("--address", default="", metavar="HOST:PORT", help="where nodes reach the hub")


def _invitations(at: Any) -> None:
    _json(_add(at, "list", commands.invitations, "all of them, never their secrets: open, used by whom, expired"))
    cancel = _json(_add(at, "cancel", commands.cancel_invitation, "nobody gets in with it any more, at once"))
    cancel.add_argument("invitation", help="its id, or its label")


def _nodes(at: Any) -> None:
    for name, state, text in (("list", "", "all nodes"), ("pending", "pending", "nodes that wait for approval")):
        _json(_add(at, name, commands.nodes, text)).set_defaults(state=state)
    for name, text in (("approve", "let a node in"), ("refuse", "turn a pending node away"),
                       ("revoke", "lock a node out and close its link")):  # fmt: skip
        one = _add(at, name, commands.decide, text)
        one.add_argument("node", help="its id, or its label")
        one.add_argument("--reason", default="")
        one.set_defaults(op=name, instead_of="")
        if name == "approve":
            told = "it lost its key: it becomes this node again, whose old certificate is revoked"
            one.add_argument("--as", dest="instead_of", default="", metavar="NODE", help=told)
    again = _json(_add(at, "reenrol", commands.reenrol, "print a one-time token for a node that lost its key"))
    again.add_argument("node", help="its id, or its label")
    _token(again)


def _federations(at: Any) -> None:
    create = _json(_add(at, "create", commands.create, "make a federation and its version 0"))
    create.add_argument("name")
    create.add_argument("--config", type=Path, required=True, metavar="FILE", help="the federation's TOML")
    create.add_argument("--from", dest="parts", type=Path, metavar="DIR",
                        help="take spec.json, base.safetensors and exchange.safetensors from DIR")  # fmt: skip
    _json(_add(at, "list", commands.federations, "all federations"))
    for name, text in (
        ("show", "one federation in detail"), ("finish", "end a federation, also one that still gathers"),
        ("freeze", "no tasks and no merges until thawed"), ("thaw", "go on after freeze or drain"),
        ("drain", "no new tasks; merge what is under way"),
    ):  # fmt: skip
        one = _json(_add(at, name, commands.federation, text))
        one.add_argument("name")
        one.set_defaults(op=f"federation_{name}")
    drop = _json(_add(at, "drop", commands.drop, "take an update out of the next merge and refuse it"))
    drop.add_argument("name")
    drop.add_argument("which", metavar="UPDATE|NODE", help="its digest or the beginning of it; a node: all its updates")
    drop.add_argument("--reason", default="", help="its node is told")
    drop.add_argument("--fault", action="store_true", help="the update was bad: keep it in quarantine, count it so")
    remove = _json(_add(at, "remove", commands.remove, "take away one that never had a version, made by mistake"))
    remove.add_argument("name")
    back = _json(_add(at, "rollback", commands.rollback, "publish an older version again as the newest"))
    back.add_argument("name")
    back.add_argument("version", type=Whole(0), help="the number to go back to")
    change = _json(_add(at, "set", commands.set_settings, "new settings: from the next version on, some at once"))
    change.add_argument("name")
    change.add_argument("--config", type=Path, required=True, metavar="FILE", help="the federation's TOML")


def _evidence(at: Any) -> None:
    audit = _json(_add(at, "audit", commands.audit, "who did what: every administrative act, append-only"))
    audit.add_argument("--count", type=Whole(1), default=50, help="the newest so many (default 50)")
    audit.add_argument("--all", action="store_true", help="also what nodes and the hub itself did")
    kept = _group(at, "quarantine", "refused updates, kept for a look")
    _json(_add(kept, "list", commands.quarantine, "what is kept, and why")).set_defaults(
        op="quarantine_list", update=""
    )
    for name, text in (("show", "one of them: reason and header, no data"), ("drop", "delete one")):
        one = _json(_add(kept, name, commands.quarantine, text))
        one.add_argument("update", help="its digest, or the beginning of it")
        one.set_defaults(op=f"quarantine_{name}")
    backup = _json(_add(at, "backup", commands.backup, "a consistent copy of the hub, also while it runs"))
    backup.add_argument("out", type=Path, metavar="DIR", help="a folder that does not exist yet")
    restore = _json(_add(at, "restore", commands.restore, "make the hub's folder from a backup"))
    restore.add_argument("backup", type=Path, metavar="DIR")
