"""`zk0ctl dataset`: which recordings this node has and trains on. Nothing of them leaves the machine."""

from __future__ import annotations

from typing import Any

from zk0d.ctl.command import Args, Command, Context, arg
from zk0d.ctl.dataset_edit import SETTINGS, SUBS
from zk0d.ctl.render import absolute, paint, plural, safe, show_json, table
from zk0d.errors import UnseenError, UsageError
from zk0d.moments import clock

_JSON = arg("--json", help="as JSON", action="store_true")


def _list(context: Context, args: Args) -> int:
    found = context.call("dataset_list")
    if args.json:
        show_json(found)
    elif not found:
        print("no datasets yet; `zk0ctl record` makes one, `zk0ctl dataset add` takes one in")
    else:
        rows = [
            [
                safe(d["name"]),
                str(d["episodes"]),
                str(d["frames"]),
                str(d["fps"]),
                "yes" if d["train"] else "no",
                safe(d["root"]),
            ]
            for d in found
        ]
        print(table(["NAME", "EPISODES", "FRAMES", "FPS", "TRAIN", "FOLDER"], rows))
    return 0


def _show(context: Context, args: Args) -> int:
    d = context.call("dataset_show", name=args.name)
    if args.sheet:
        from zk0d.ctl.dataset_edit import draw_sheet

        d["sheet"] = draw_sheet(context, args.name, args.sheet, [])["file"]
    if args.json:
        show_json(d)
        return 0
    print(
        f"{paint(safe(d['name']), 'bold')}: {plural(d['episodes'], 'episode')}, {plural(d['frames'], 'frame')}"
        f" at {d['fps']} Hz"
    )
    print(f"  folder   {safe(d['root'])}")
    print(f"  training {'yes' if d['train'] else 'no'}, joints in {safe(d['units'])}")
    if d["copy"]:
        kept = min(d["copy"]["episodes"], d["episodes"])
        print(f"  backup   {kept} of {d['episodes']}, {clock(d['copy']['at'])}, in {safe(d['copy']['folder'])}")
    else:
        print("  backup   none that zk0d made (`zk0ctl dataset export`)")
    for task in d["tasks"]:
        print(f"  task     {safe(task)}")
    if args.sheet:
        print(f"  sheet    {safe(d['sheet'])}")
    for name, feature in d["features"].items():
        renamed = f" (as {safe(d['rename'][name])})" if name in d["rename"] else ""
        print(f"  {paint('feature', 'dim')}  {safe(name)} {feature['dtype']} {feature['shape']}{renamed}")
    _episodes(d["quality"], args.episodes)
    for federation, reasons in d["misfits"].items():
        print(f"  {safe(federation)}: {'fits' if not reasons else 'does not fit: ' + '; '.join(map(safe, reasons))}")
    return 2 if any(d["misfits"].values()) else 0


def _episodes(quality: list[dict[str, Any]], all_of_them: bool) -> None:
    """How the episodes are: in one line, and a table of all or of those that are not trained on."""
    out = [e for e in quality if not e["trained"]]
    told = f", {len(out)} not trained on" if out else ", all trained on"
    if not all_of_them and quality:
        told += " (--episodes shows the quality of each)"
    print(f"  {len(quality)} episodes{told}")
    rows = []
    for e in quality if all_of_them else out:
        measured = "rows" in e
        stale = max((e.get("stale") or {"": 0}).values(), default=0)
        rows.append([
            str(e["episode"]), f"{e['seconds']:.1f}" if "seconds" in e else "", f"{e['hz']:.1f}" if "hz" in e else "",
            str(e.get("late", "")), f"{e['gaps']['longest_s']:.2f}" if measured else "", str(stale) if measured else "",
            str(e.get("clipped", "")), str(sum(e["bus_errors"].values())) if measured else "", e.get("care", ""),
            "yes" if e["trained"] and not e["taken_in"] else "yes, by your word" if e["trained"]
            else f"no: {safe(e['why_not'])}",
        ])  # fmt: skip
    if rows:
        print(table(["EPISODE", "S", "HZ", "LATE", "GAP S", "STALE", "CLIPPED", "BUS", "CARE", "TRAINED"], rows))


def renames(pairs: list[str] | None) -> dict[str, str]:
    """`--rename OWN=THEIRS`, any number of times, as a map. Raises UsageError."""
    found: dict[str, str] = {}
    for pair in pairs or []:
        own, equals, theirs = pair.partition("=")
        if not own or not equals or not theirs:
            raise UsageError(f"--rename {pair!r} is not OWN=THEIRS", "for example --rename wristcam=front")
        found[own] = theirs
    return found


def settings(args: Args) -> dict[str, Any]:
    """What the arguments say of a dataset that is taken in (dataset_edit.SETTINGS). Raises UsageError."""
    return {"rename": renames(args.rename) or None, "units": args.units, "task": args.task, "train": args.train}


def _add(context: Context, args: Args) -> int:
    told = settings(args)
    if args.path.startswith("hf:"):
        name = args.path.removeprefix("hf:")
        raise UsageError(
            f"{args.path}: this node fetches no datasets by itself",
            f"hf download {name} --repo-type dataset, then zk0ctl dataset import hf:{name}",
        )
    path = absolute(args.path.removeprefix("local:"))
    name, copied = args.name or path.name, ""
    try:
        d = context.call("dataset_add", name=name, path=str(path), **told)
    except UnseenError:
        from zk0d.ctl.dataset_edit import sent

        d = sent(context, "dataset_import", path, name=name, **told)
        copied = f"; a copy, in {safe(d['root'])}: zk0d cannot read {safe(path)}"
    print(f"{safe(d['name'])}: {plural(d['episodes'], 'episode')}, {plural(d['frames'], 'frame')}"
          f"{'' if d['train'] else ', not trained on'}{copied}")  # fmt: skip
    return 0


COMMAND = Command(
    "dataset",
    "list, add, look at, check and edit datasets",
    default="list",
    subs=(
        Command("list", "all datasets of this node", (_JSON,), _list),
        Command(
            "add",
            "take in a LeRobotDataset folder, or change its settings; one that zk0d cannot read is copied",
            (
                arg("path", help="its folder", metavar="[local:]PATH"),
                arg("--name", help="what to call it here (it stays here; default: the folder's name)"),
                *SETTINGS,
            ),
            _add,
        ),
        Command(
            "show",
            "one dataset, and whether it fits the federations",
            (
                arg("name", help="its name"),
                arg("--episodes", help="the quality of every episode", action="store_true"),
                arg("--sheet", help="a contact sheet with joint curves too, as PNG", metavar="FILE.png"),
                _JSON,
            ),
            _show,
        ),
        *SUBS,
    ),
)
