"""`zk0ctl model`: the versions of the global policy this node knows, and getting them out as LeRobot folders."""

from __future__ import annotations

from typing import Any

from zk0d.ctl.command import Args, Command, Context, arg
from zk0d.ctl.render import Progress, absolute, paint, safe, show_json, table, transfer
from zk0d.moments import clock

_JSON = arg("--json", help="as JSON", action="store_true")
_VERSION = arg("version", help='"3", "latest", or with several federations "NAME/3"', metavar="VERSION")


def _loss(row: dict[str, Any]) -> str:
    loss = row["metrics"].get("heldout_loss")
    return f"{loss:.4g}" if isinstance(loss, int | float) else ""


def _list(context: Context, args: Args) -> int:
    rows = context.call("model_list")
    if args.json:
        show_json(rows)
    elif not rows:
        print("no versions yet; they come from the hub once this node is a member of a federation")
    else:
        cells = [
            [
                safe(r["federation"]),
                str(r["version"]),
                _loss(r),
                "yes" if r["fetched"] else "no",
                clock(r["at"]),
                r["digest"].partition(":")[2][:12],
            ]
            for r in rows
        ]
        print(table(["FEDERATION", "VERSION", "LOSS", "HERE", "SINCE", "DIGEST"], cells))
    return 0


def _show(context: Context, args: Args) -> int:
    r = context.call("model_show", version=args.version)
    if args.json:
        show_json(r)
        return 0
    print(paint(f"{safe(r['federation'])} version {r['version']}", "bold"))
    for key, value in (("digest", r["digest"]), ("spec", r["spec_digest"]), ("known since", clock(r["at"])),
                       ("here", "yes" if r["fetched"] else "no"),
                       ("folder", r["folder"] or "made by `model export`")):  # fmt: skip
        print(f"  {key.ljust(12)} {safe(value)}")
    for key, value in r["metrics"].items():
        print(f"  {paint('metric', 'dim').ljust(12)} {safe(key)}: {safe(value)}")
    return 0


def _pull(context: Context, args: Args) -> int:
    progress = Progress()
    r = context.call(
        "model_pull", lambda e: progress.update(f"version {args.version}: {transfer(e)}"), timeout=None,
        version=args.version,
    )  # fmt: skip
    progress.say(f"version {r['version']} of {safe(r['federation'])} is here")
    return 0


def _export(context: Context, args: Args) -> int:
    from zk0d.ctl.delivery import Delivery

    progress = Progress()

    def show(event: dict[str, Any]) -> None:
        if coming.took(event):
            return
        what = transfer(event) if event["event"] == "transfer" else f"{event['event']} version {event['version']} …"
        progress.update(what)

    target = absolute(args.folder)
    with Delivery(target, fresh=True, empty=True) as coming:
        r = context.call("model_export", show, timeout=None, version=args.version, folder=str(target))
        coming.finish(r)
    progress.say(f"version {r['version']} of {safe(r['federation'])}: {safe(r['folder'])}")
    return 0


COMMAND = Command(
    "model",
    "list, look at and export versions of the policy",
    default="list",
    subs=(
        Command("list", "all versions this node knows", (_JSON,), _list),
        Command("show", "one version", (_VERSION, _JSON), _show),
        Command("pull", "fetch a version and all it needs", (_VERSION,), _pull),
        Command("export", "write a version as a folder that LeRobot loads",
                (_VERSION, arg("folder", help="a new or empty folder", metavar="DIR")), _export),
    ),
)  # fmt: skip
