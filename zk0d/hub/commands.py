"""What each zk0-hub command does: asks the running hub over its admin socket, or works in its folder; then prints.

The command line itself is parser.py's, how results look is in tables.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from zk0d.control import call
from zk0d.errors import ConfigError, NotRunningError, from_os
from zk0d.hub import tables
from zk0d.watching import watch


def ask(options: argparse.Namespace, op: str, **fields: Any) -> Any:
    return call(_socket(options), {"op": op, **fields})


def _socket(options: argparse.Namespace) -> Path:
    folder: Path = options.dir
    if not (folder / "hub.toml").exists():
        raise NotRunningError(f"there is no hub in {folder}", f"`zk0-hub --dir {folder} init` makes one")
    return folder / "admin.sock"


def show(options: argparse.Namespace, value: Any, text: str) -> int:
    print(json.dumps(value, indent=2, ensure_ascii=False) if options.json else text.rstrip("\n"))
    return 0


def init(options: argparse.Namespace) -> int:
    from zk0d.hub.setup import initialise

    authority = initialise(options.dir, options.listen, options.name)
    print(f"hub made in {options.dir}\nauthority {authority}\nnext: zk0-hub --dir {options.dir} serve")
    return 0


def serve(options: argparse.Namespace) -> int:
    from zk0d.hub import serve as serving

    return serving.serve(options.dir)


def status(options: argparse.Namespace) -> int:
    def picture() -> str:
        now = ask(options, "status")
        return json.dumps(now, ensure_ascii=False) if options.json else tables.status(now).rstrip("\n")

    if options.watch:
        watch(picture, screen=not options.json)
    value = ask(options, "status")
    show(options, value, tables.status(value))
    return 2 if value["health"] else 0


def invite(options: argparse.Namespace) -> int:
    value = ask(options, "invite", label=options.label, hours=options.hours, address=options.address)
    return show(options, value, str(value["token"]))


def invitations(options: argparse.Namespace) -> int:
    value = ask(options, "invitation_list")
    return show(options, value, tables.invitations(value))


def cancel_invitation(options: argparse.Namespace) -> int:
    value = ask(options, "invitation_cancel", invitation=options.invitation)
    return show(options, value, f"{value['invitation']} {value['label']}".rstrip() + ": cancelled")


def reenrol(options: argparse.Namespace) -> int:
    value = ask(options, "reenrol", node=options.node, hours=options.hours, address=options.address)
    return show(options, value, str(value["token"]))


def nodes(options: argparse.Namespace) -> int:
    value = ask(options, "nodes", state=options.state)
    return show(options, value, tables.nodes(value))


def decide(options: argparse.Namespace) -> int:
    more = {"instead_of": options.instead_of} if options.op == "approve" else {}
    value = ask(options, options.op, node=options.node, reason=options.reason, **more)
    print(f"{value['node']} {value['label']}: {value['state']}")
    return 0


def audit(options: argparse.Namespace) -> int:
    value = ask(options, "audit", count=options.count, all=options.all)
    return show(options, value, tables.audit(value))


def quarantine(options: argparse.Namespace) -> int:
    value = ask(options, options.op, update=options.update)
    if options.op == "quarantine_list":
        return show(options, value, tables.quarantine(value))
    if options.op == "quarantine_drop":
        return show(options, value, f"dropped {value['update']}")
    return show(options, value, tables.quarantined(value))


def backup(options: argparse.Namespace) -> int:
    from zk0d.hub import backup

    value = backup.make(options.dir, options.out)
    text = f"{value['blobs']} blobs, {tables.size(value['bytes'])}, {value['receipts']} receipts in {options.out}"
    if value["lost"]:
        can = (
            "no hub can be made of it" if any(o["vital"] for o in value["lost"]) else "a hub made of it lacks them too"
        )
        text += f"\nincomplete, the hub's disk has lost or spoilt what it needs; {can}:\n{tables.lost(value['lost'])}"
    show(options, value, f"{text}\nit holds the hub's keys: keep it as safe as the hub")
    return 2 if value["missing"] else 0


def restore(options: argparse.Namespace) -> int:
    from zk0d.hub import backup

    value = backup.restore(options.backup, options.dir)
    text = f"{value['folder']}: restored with {value['blobs']} blobs\n"
    if value["user"] == "root":
        text += f"it is root's: if the hub runs as another user, as zk0-hub, `chown -R zk0-hub: {value['folder']}`\n"
    if value["lost"]:
        text += f"it lacks what was lost when the backup was made:\n{tables.lost(value['lost'])}\n"
    show(options, value, f"{text}nodes revoked or re-enrolled since this backup are again as they were: look at"
         f" `nodes list`, revoke anew\nnext: zk0-hub --dir {value['folder']} serve")  # fmt: skip
    return 2 if value["lost"] else 0


def create(options: argparse.Namespace) -> int:
    toml = _read(options.config)
    from zk0d.hub.config import parse_federation

    parse_federation(toml, str(options.config))  # so that an error names the file that the maintainer edits
    request = {"op": "federation_create", "name": options.name, "toml": toml, "where": str(options.config)}
    if options.parts:
        for part in ("spec.json", "base.safetensors", "exchange.safetensors"):
            if not (options.parts / part).is_file():
                raise ConfigError(
                    f"--from {options.parts}: there is no {part} in it", "name a folder that holds all three parts"
                )
        request["parts"] = str(options.parts.resolve())
    value = call(_socket(options), request, timeout=None)
    _warn(value)
    return show(
        options, value, f"federation {value['name']}: {value['parameters']:,} parameters in {value['tensors']} tensors "
        f"travel, {value['payload_bytes'] / 1e6:.1f} MB per update; it opens when enough nodes have joined"
    )  # fmt: skip


def _warn(value: dict[str, Any]) -> None:
    if value.get("warning"):  # which a hub that runs since before an upgrade does not say
        print(f"zk0-hub: {value['warning']}", file=sys.stderr)


def federations(options: argparse.Namespace) -> int:
    value = ask(options, "federation_list")
    return show(options, value, tables.federations(value))


def federation(options: argparse.Namespace) -> int:
    value = ask(options, options.op, name=options.name)
    return show(options, value, tables.federation(value))


def drop(options: argparse.Namespace) -> int:
    more = {"which": options.which, "reason": options.reason, "fault": options.fault}
    value = ask(options, "federation_drop", name=options.name, **more)
    lines = [f"dropped {d['update'][7:19]} of {d['node']}" for d in value["dropped"]]
    return show(options, value, "\n".join([*lines, tables.federation(value)]))


def remove(options: argparse.Namespace) -> int:
    value = ask(options, "federation_remove", name=options.name)
    return show(options, value, f"{value['name']}: removed")


def rollback(options: argparse.Namespace) -> int:
    value = ask(options, "federation_rollback", name=options.name, version=options.version)
    return show(options, value, tables.federation(value))


def set_settings(options: argparse.Namespace) -> int:
    toml = _read(options.config)
    request = {"op": "federation_set", "name": options.name, "toml": toml, "where": str(options.config)}
    value = call(_socket(options), request, timeout=None)  # a worker may have to look at the strategy
    _warn(value)
    lines = [
        f"{k}: {old!r} before, {new!r} at once" if k in value["at_once"] else f"{k}: {old!r} now, {new!r} from the"
        " next version on" for k, (old, new) in value["changed"].items()
    ]  # fmt: skip
    return show(options, value, "\n".join(lines) or "nothing changes")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        why = from_os(error, "cannot read the settings")
        raise ConfigError(why.message, why.hint) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text", "give a TOML file: docs/hub-settings.md") from error


def versions(options: argparse.Namespace) -> int:
    value = ask(options, "versions", name=options.name)
    return show(options, value, tables.versions(value))


def evaluate(options: argparse.Namespace) -> int:
    value = ask(options, "evaluate", name=options.name, version=options.version)
    which = ", ".join(str(v) for v in value["versions"])
    text = f"to be evaluated again: {which}" if which else "the folders that could not be made are tried again"
    return show(options, value, f"{text}; `zk0-hub versions {options.name}` says when it is done")


def push(options: argparse.Namespace) -> int:
    request = {"op": "push", "name": options.name, "version": options.version, "dry_run": options.dry_run}
    value = call(_socket(options), request, timeout=None)
    if options.dry_run:
        return show(options, value, tables.push_plan(value))
    return show(options, value, f"version {value['version']} is at {value['url']} ({value['files']} files)")
