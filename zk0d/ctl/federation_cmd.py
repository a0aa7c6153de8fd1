"""`zk0ctl federation`: which federations the hub offers, and which this node is a member of."""

from __future__ import annotations

import sys

from zk0d.ctl.command import Args, Command, Context, arg
from zk0d.ctl.render import plural, safe, show_json, table


def _list(context: Context, args: Args) -> int:
    found = context.call("federation_list")
    if args.json:
        show_json(found)
        return 0
    joined = {f["name"]: f for f in found["joined"]}
    offered = {f["name"]: f for f in found["offered"]}
    rows = []
    for name in sorted(joined | offered):
        own, theirs = joined.get(name), offered.get(name, {})
        state = own["state"] if own else theirs.get("state", "")
        version = own["version"] if own else theirs.get("version")
        rows.append([safe(name), safe(state), "" if version is None else str(version), "yes" if own else "no"])
    print(table(["NAME", "STATE", "VERSION", "MEMBER"], rows) if rows else "the hub has told of no federation yet")
    return 0


def _join(context: Context, args: Args) -> int:
    f = context.call("federation_join", federation=args.name)
    why = f" ({safe(f['reason'])})" if f["reason"] else ""
    print(f"{safe(f['name'])}: {f['state']}{why}")
    if not f["reason"].startswith("the hub refuses"):
        return 0
    print(f"  it is asked again; `zk0ctl federation leave {safe(f['name'])}` takes that back", file=sys.stderr)
    return 1


def _leave(context: Context, args: Args) -> int:
    left = context.call("federation_leave", federation=args.name)
    waiting = f"; {plural(left['waiting'], 'update')} still to go to the hub" if left["waiting"] else ""
    print(f"left {safe(left['federation'])}{waiting}")
    return 0


COMMAND = Command(
    "federation",
    "list, join and leave federations",
    default="list",
    subs=(
        Command("list", "federations of the hub", (arg("--json", help="as JSON", action="store_true"),), _list),
        Command(
            "join", "become a member: train for it on this node's datasets", (arg("name", help="its name"),), _join
        ),
        Command("leave", "train for it no more", (arg("name", help="its name"),), _leave),
    ),
)
