"""The actions of `zk0ctl dataset` that check or reshape a whole dataset. Its list is in dataset_cmd.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zk0d.ctl.command import Args, Command, Context, arg
from zk0d.ctl.render import Progress, absolute, paint, plural, safe, show_json, size
from zk0d.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from zk0d.ctl.delivery import Delivery

_PROGRESS = Progress()


def numbers(words: list[str]) -> list[int]:
    """`["3", "7-9"]` → [3, 7, 8, 9]. Raises UsageError."""
    found: list[int] = []
    for word in words:
        first, dash, last = word.partition("-")
        if not first.isdigit() or (dash and (not last.isdigit() or int(last) < int(first))):
            raise UsageError(f"{word!r} names no episodes", "for example 3 7-9")
        found += range(int(first), int(last or first) + 1)
    return found


def _path(text: str) -> str:
    return str(absolute(text))


def _shown(event: dict[str, Any]) -> None:
    """How far a worker is, on a terminal."""
    done, of, what = event.get("done"), event.get("of"), str(event.get("file") or event["event"])
    _PROGRESS.update(f"{done} of {of}: {safe(what)}" if done is not None else f"{safe(what)} {safe(of or '')} …")


def _taken(coming: Delivery) -> Callable[[dict[str, Any]], None]:
    def on_event(event: dict[str, Any]) -> None:
        if coming.took(event):
            _PROGRESS.update(f"{size(coming.bytes)} written …")
        else:
            _shown(event)

    return on_event


def _ask(context: Context, op: str, **request: Any) -> Any:
    """A worker's job: for as long as it takes, its progress shown; Ctrl-C ends it."""
    try:
        return context.call(op, _shown, timeout=None, **request)
    except KeyboardInterrupt:
        from zk0d.ctl.carrying import cancel

        _PROGRESS.say(cancel(context))
        raise
    finally:
        _PROGRESS.clear()


def _verify(context: Context, args: Args) -> int:
    r = _ask(context, "dataset_verify", name=args.name)
    if args.json:
        show_json(r)
    else:
        verdict = paint("damaged", "red") if r["problems"] else paint("whole", "green")
        print(f"{plural(r['episodes'], 'episode')}, {plural(r['frames'], 'frame')}: {verdict}")
        print(f"  decoded {plural(r['videos'], 'video')}, compared the hashes of {plural(r['hashed'], 'file')}")
        for problem in r["problems"]:
            print(f"  {safe(problem)}")
    return 1 if r["problems"] else 0


def draw_sheet(context: Context, name: str, file: str, episodes: list[int]) -> dict[str, Any]:
    """Have a contact sheet drawn and write it to `file`; → what is on it, and `file`. Raises UsageError."""
    from zk0d.ctl.delivery import Delivery

    out = Path(_path(file))
    if out.suffix != ".png":
        raise UsageError(f"{out} is no .png", "a contact sheet is a PNG")
    with Delivery(out, single=True) as coming:
        r = context.call("dataset_sheet", _taken(coming), timeout=None, name=name, episodes=episodes)
        coming.finish(r)
    _PROGRESS.clear()
    return {**r, "file": str(out)}


def _sheet(context: Context, args: Args) -> int:
    r = draw_sheet(context, args.name, args.out, numbers(args.episodes))
    print(f"{safe(r['file'])}: {r['episodes']} of {plural(r['of'], 'episode')}")
    return 0


def _exclude(context: Context, args: Args, include: bool = False) -> int:
    r = context.call("dataset_exclude", name=args.name, episodes=numbers(args.episodes), include=include)
    out = ", ".join(map(str, r["excluded"])) or "none"
    print(f"{safe(r['name'])}: kept out of training: {out} (of {plural(r['episodes'], 'episode')})")
    return 0


def _include(context: Context, args: Args) -> int:
    return _exclude(context, args, include=True)


def _made(r: dict[str, Any]) -> str:
    return f"{safe(r.get('root') or r.get('name'))}: {plural(r['episodes'], 'episode')}, {plural(r['frames'], 'frame')}"


def _delete(context: Context, args: Args) -> int:
    r = _ask(context, "dataset_delete", name=args.name, episodes=numbers(args.episodes), confirmed=args.yes)
    print(f"{_made(r)}; as it was before: {safe(r['before'])}")
    return 0


def _split(context: Context, args: Args) -> int:
    for r in _ask(
        context, "dataset_split", name=args.name, episodes=numbers(args.episodes), into=args.into, rest=args.rest
    ):
        print(_made(r))
    return 0


def _merge(context: Context, args: Args) -> int:
    print(_made(_ask(context, "dataset_merge", names=args.names, into=args.into)))
    return 0


def sent(context: Context, op: str, folder: Path, within: Path | None = None, **request: Any) -> Any:
    """A worker's job on a folder of this person's, which goes to zk0d first."""
    from zk0d.ctl.carrying import Cargo

    try:
        return Cargo(folder, within).ask(context, op, _shown, **request)
    finally:
        _PROGRESS.clear()


def _import(context: Context, args: Args) -> int:
    from zk0d.ctl.carrying import cached
    from zk0d.ctl.dataset_cmd import settings

    if args.source.startswith("hf:"):
        name = args.source.removeprefix("hf:")
        folder, within = cached(name)
    else:
        folder = within = Path(_path(args.source.removeprefix("local:")))
        name = folder.name
    r = sent(context, "dataset_import", folder, within, name=args.name or name.rpartition("/")[2], **settings(args))
    print(
        _made(r)
        + ("" if r["train"] else ", not trained on")
        + ("" if r["was"].startswith("v3.") else f" (converted from {safe(r['was'])})")
    )
    return 0


def _export(context: Context, args: Args) -> int:
    from zk0d.ctl.delivery import Delivery

    folder = Path(_path(args.folder))
    with Delivery(folder, fresh=True) as coming:
        r = context.call("dataset_export", _taken(coming), timeout=None, name=args.name)
        coming.finish(r)
    # Only now is it known that there is a copy.
    context.call("dataset_exported", name=args.name, folder=str(folder), episodes=r["episodes"])
    _PROGRESS.clear()
    print(_made({**r, "root": str(folder)}))
    return 0


def _repair(context: Context, args: Args) -> int:
    r = sent(context, "dataset_repair", Path(_path(args.path)), into=args.into)
    print(f"saved {_made(r)} (not trained on until you say so)")
    for sentence in r["lost"]:
        print(f"  {paint('lost', 'yellow')}: {safe(sentence)}")
    return 2 if r["lost"] else 0


SETTINGS = (
    arg("--rename", help="this camera is the federation's THEIRS", action="append", metavar="OWN=THEIRS"),
    arg("--units", help="units of its joints", choices=("degrees", "range")),
    arg("--task", help="what is done in it"),
    arg("--train", help="train on it (the default)", action="store_true", default=None),
    arg("--no-train", help="do not train on it", action="store_false", dest="train"),
)
_NAME = arg("name", help="its name")
_EPISODES = arg("episodes", help="episodes, such as 3 7-9", nargs="+", metavar="N")
_INTO = arg("--into", help="name of the new dataset", required=True, metavar="NAME")
SUBS = (
    Command("verify", "decode every frame, compare rows, counts and hashes",
            (_NAME, arg("--json", help="as JSON", action="store_true")), _verify),
    Command("sheet", "a contact sheet with joint curves as PNG", (
        _NAME,
        arg("--out", help="the file", required=True, metavar="FILE.png"),
        arg("--episodes", help="only these (default: all, at most 40)", nargs="+", default=[], metavar="N"),
    ), _sheet),
    Command("exclude", "keep episodes out of training", (_NAME, _EPISODES), _exclude),
    Command("include", "train on them again", (_NAME, _EPISODES), _include),
    Command("delete", "remove episodes; the former folder is kept beside the new one", (
        _NAME, _EPISODES, arg("--yes", help="really", action="store_true"),
    ), _delete),
    Command("split", "copy some episodes into a new dataset", (
        _NAME, _EPISODES, _INTO, arg("--rest", help="the others into this one", metavar="NAME"),
    ), _split),
    Command("merge", "copy several datasets into a new one", (
        arg("names", help="their names", nargs="+", metavar="NAME"), _INTO,
    ), _merge),
    Command("import", "copy a dataset in; v2.1 becomes v3.0", (
        arg("source", help="a folder of yours, or one of your Hugging Face cache", metavar="local:PATH|hf:USER/NAME"),
        arg("--name", help="what to call it here (default: the folder's name)"),
        *SETTINGS,
    ), _import),
    Command("export", "copy a dataset to a folder", (
        _NAME, arg("folder", help="a new folder", metavar="DIR"),
    ), _export),
    Command("repair", "save what can be saved of a broken dataset, as a new one", (
        arg("path", help="the broken folder; it is not changed", metavar="DIR"), _INTO,
    ), _repair),
)  # fmt: skip
