"""The zk0-hub command: `init` and `serve` work in a folder; everything else asks the running hub over its admin socket.

Results go to stdout, logs and errors to stderr. Exit statuses are those of zk0d.errors.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zk0d import __version__
from zk0d.control import call
from zk0d.errors import ConfigError, UsageError, Zk0Error
from zk0d.hub import tables

DEFAULT_DIR = "/var/lib/zk0-hub"


def main(argv: list[str] | None = None) -> int:
    """Entry point → exit status."""
    options = parser().parse_args(argv)
    try:
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except Zk0Error as error:
        print(f"zk0-hub: {error.message}" + (f"\n  {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:  # argparse would exit with 2, which here means degraded
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(UsageError.exit_code)


def parser() -> argparse.ArgumentParser:
    top = _Parser(prog="zk0-hub", description="The broker of a zk0 federation.")
    top.add_argument("--version", action="version", version=f"zk0-hub {__version__}")
    top.add_argument("--dir", type=Path, default=Path(os.environ.get("ZK0_HUB_DIR", DEFAULT_DIR)),
                     help=f"the hub's folder (default $ZK0_HUB_DIR or {DEFAULT_DIR})")  # fmt: skip
    commands = top.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def add(at: Any, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = at.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        return made

    init = add(commands, "init", _init, "make a hub: settings, certificate authority, keys")
    init.add_argument("--listen", default="0.0.0.0:7730", metavar="HOST:PORT")
    init.add_argument("--name", default="zk0 hub")
    add(commands, "serve", _serve, "run the hub until SIGTERM")
    status = _json(add(commands, "status", _status, "what the hub is doing"))
    status.add_argument("--watch", action="store_true", help="again every second until interrupted")
    invite = _json(add(commands, "invite", _invite, "print a one-time token that enrols one node"))
    invite.add_argument("--label", default="", help="your name for the node; stays on the hub")
    invite.add_argument("--hours", type=float, default=72.0, help="how long it is good for (default 72)")
    invite.add_argument("--address", default="", metavar="HOST:PORT", help="where nodes reach the hub")

    nodes = commands.add_parser("nodes", help="who is enrolled").add_subparsers(required=True, metavar="COMMAND")
    for name, state, text in (("list", "", "all nodes"), ("pending", "pending", "nodes that wait for approval")):
        _json(add(nodes, name, _nodes, text)).set_defaults(state=state)
    for name, text in (("approve", "let a node in"), ("refuse", "turn a pending node away"),
                       ("revoke", "lock a node out and close its link")):  # fmt: skip
        one = add(nodes, name, _decide, text)
        one.add_argument("node", help="its id, or its label")
        one.add_argument("--reason", default="")
        one.set_defaults(op=name)

    federation = commands.add_parser("federation", help="models that are trained together").add_subparsers(
        required=True, metavar="COMMAND"
    )
    create = _json(add(federation, "create", _create, "make a federation and its version 0"))
    create.add_argument("name")
    create.add_argument("--config", type=Path, required=True, metavar="FILE", help="the federation's TOML")
    create.add_argument("--from", dest="parts", type=Path, metavar="DIR",
                        help="take spec.json, base.safetensors and exchange.safetensors from DIR")  # fmt: skip
    _json(add(federation, "list", _federations, "all federations"))
    for name, text in (
        ("show", "one federation in detail"), ("finish", "end a federation"),
        ("freeze", "no tasks and no merges until thawed"), ("thaw", "go on after freeze or drain"),
        ("drain", "no new tasks; merge what is under way"),
    ):  # fmt: skip
        one = _json(add(federation, name, _federation, text))
        one.add_argument("name")
        one.set_defaults(op=f"federation_{name}")
    back = _json(add(federation, "rollback", _rollback, "publish an older version again as the newest"))
    back.add_argument("name")
    back.add_argument("version", type=int, help="the number to go back to")
    change = _json(add(federation, "set", _set, "new settings, from the next version on"))
    change.add_argument("name")
    change.add_argument("--config", type=Path, required=True, metavar="FILE", help="the federation's TOML")
    audit = _json(add(commands, "audit", _audit, "who did what: every administrative act, append-only"))
    audit.add_argument("--count", type=int, default=50, help="the newest so many (default 50)")
    audit.add_argument("--all", action="store_true", help="also what nodes and the hub itself did")
    kept = commands.add_parser("quarantine", help="refused updates, kept for a look").add_subparsers(
        required=True, metavar="COMMAND"
    )
    _json(add(kept, "list", _quarantine, "what is kept, and why")).set_defaults(op="quarantine_list", update="")
    for name, text in (("show", "one of them: reason and header, no data"), ("drop", "delete one")):
        one = _json(add(kept, name, _quarantine, text))
        one.add_argument("update", help="its digest, or the beginning of it")
        one.set_defaults(op=f"quarantine_{name}")
    backup = _json(add(commands, "backup", _backup, "a consistent copy of the hub, also while it runs"))
    backup.add_argument("out", type=Path, metavar="DIR", help="a folder that does not exist yet")
    restore = _json(add(commands, "restore", _restore, "make the hub's folder from a backup"))
    restore.add_argument("backup", type=Path, metavar="DIR")
    versions = _json(add(commands, "versions", _versions, "a federation's versions"))
    versions.add_argument("name")
    return top


def _json(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("--json", action="store_true", help="as JSON")
    return command


def _ask(options: argparse.Namespace, op: str, **fields: Any) -> Any:
    return call(options.dir / "admin.sock", {"op": op, **fields})


def _show(options: argparse.Namespace, value: Any, text: str) -> int:
    print(json.dumps(value, indent=2, ensure_ascii=False) if options.json else text.rstrip("\n"))
    return 0


def _init(options: argparse.Namespace) -> int:
    from zk0d.hub.setup import initialise

    authority = initialise(options.dir, options.listen, options.name)
    print(f"hub made in {options.dir}\nauthority {authority}\nnext: zk0-hub --dir {options.dir} serve")
    return 0


def _serve(options: argparse.Namespace) -> int:
    from zk0d.hub.serve import serve

    return serve(options.dir)


def _status(options: argparse.Namespace) -> int:
    while True:
        value = _ask(options, "status")
        if options.watch and sys.stdout.isatty() and not options.json:
            print("\033[H\033[2J", end="")
        if options.json and options.watch:
            print(json.dumps(value, ensure_ascii=False), flush=True)
        else:
            _show(options, value, tables.status(value))
        if not options.watch:
            return 2 if value["health"] else 0
        time.sleep(1.0)


def _invite(options: argparse.Namespace) -> int:
    value = _ask(options, "invite", label=options.label, hours=options.hours, address=options.address)
    return _show(options, value, str(value["token"]))


def _nodes(options: argparse.Namespace) -> int:
    value = _ask(options, "nodes", state=options.state)
    return _show(options, value, tables.nodes(value))


def _decide(options: argparse.Namespace) -> int:
    value = _ask(options, options.op, node=options.node, reason=options.reason)
    print(f"{value['node']} {value['label']}: {value['state']}")
    return 0


def _audit(options: argparse.Namespace) -> int:
    value = _ask(options, "audit", count=options.count, all=options.all)
    return _show(options, value, tables.audit(value))


def _quarantine(options: argparse.Namespace) -> int:
    value = _ask(options, options.op, update=options.update)
    if options.op == "quarantine_list":
        return _show(options, value, tables.quarantine(value))
    if options.op == "quarantine_drop":
        return _show(options, value, f"dropped {value['update']}")
    return _show(options, value, tables.quarantined(value))


def _backup(options: argparse.Namespace) -> int:
    from zk0d.hub import backup

    value = backup.make(options.dir, options.out)
    text = f"{value['blobs']} blobs, {tables.size(value['bytes'])}, {value['receipts']} receipts in {options.out}"
    return _show(options, value, f"{text}\nit holds the hub's keys: keep it as safe as the hub")


def _restore(options: argparse.Namespace) -> int:
    from zk0d.hub import backup

    value = backup.restore(options.backup, options.dir)
    return _show(options, value, f"{options.dir}: restored with {value['blobs']} blobs; next: zk0-hub serve")


def _create(options: argparse.Namespace) -> int:
    toml = _read(options.config)
    from zk0d.hub.config import parse_federation

    parse_federation(toml, str(options.config))  # so that an error names the file that the maintainer edits
    request = {"op": "federation_create", "name": options.name, "toml": toml}
    if options.parts:
        request["parts"] = str(options.parts.resolve())
    value = call(options.dir / "admin.sock", request, timeout=None)
    return _show(
        options, value, f"federation {value['name']}: {value['parameters']:,} parameters in {value['tensors']} tensors "
        f"travel, {value['payload_bytes'] / 1e6:.1f} MB per update; it opens when enough nodes have joined"
    )  # fmt: skip


def _federations(options: argparse.Namespace) -> int:
    value = _ask(options, "federation_list")
    return _show(options, value, tables.federations(value))


def _federation(options: argparse.Namespace) -> int:
    value = _ask(options, options.op, name=options.name)
    return _show(options, value, tables.federation(value))


def _rollback(options: argparse.Namespace) -> int:
    value = _ask(options, "federation_rollback", name=options.name, version=options.version)
    return _show(options, value, tables.federation(value))


def _set(options: argparse.Namespace) -> int:
    toml = _read(options.config)
    value = _ask(options, "federation_set", name=options.name, toml=toml, where=str(options.config))
    lines = [f"{k}: {old!r} now, {new!r} from the next version on" for k, (old, new) in value["changed"].items()]
    return _show(options, value, "\n".join(lines) or "nothing changes")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _versions(options: argparse.Namespace) -> int:
    value = _ask(options, "versions", name=options.name)
    return _show(options, value, tables.versions(value))


if __name__ == "__main__":
    sys.exit(main())
