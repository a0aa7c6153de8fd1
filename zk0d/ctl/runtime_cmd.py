"""`zk0ctl runtime`: the managed environment with torch and lerobot, which recording and training need.

Works without the daemon. What it does is in environment.py.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from zk0d.ctl.command import Args, Command, Context, arg
from zk0d.ctl.render import Progress, duration, show_json, size
from zk0d.errors import UsageError, Zk0Error
from zk0d.moments import clock
from zk0d.runtime import COMPLETE, base


def _install(context: Context, args: Args) -> int:
    from zk0d.ctl import environment, runtime_lists
    from zk0d.ctl.runtime_fetch import Rate

    folder = base()
    wheels = Path(args.wheels) if args.wheels else None
    if wheels and not wheels.is_dir():
        raise Zk0Error(f"{wheels} is not a folder", "name a folder with the wheels of the list")
    if (wheels and args.index_url) or (args.cpu and args.cuda):
        raise UsageError("these contradict each other", "--wheels or --index-url; --cpu or --cuda")
    build, why = runtime_lists.choose("cpu" if args.cpu else "cuda" if args.cuda else "")
    lists = runtime_lists.Lists.find(build)
    progress, began, rate = Progress(), time.monotonic(), Rate()
    progress.say(f"{lists.packages.name}: {why}")
    stage = ""

    def on_progress(now: str, done: int, count: int) -> None:
        nonlocal stage
        if now != stage:
            told = {"environment": f"making the environment in {folder}", "fetching": f"fetching {size(count)}",
                    "unpacking": f"unpacking {count} packages", "installing": "installing them"}  # fmt: skip
            progress.say(told[now])
            stage = now
        if now == "fetching":
            speed, left = rate.left(done, count)
            rest = "" if left is None else f", {duration(left)} left"
            progress.update(f"fetching: {size(done)} of {size(count)}, {size(speed)}/s{rest}")
        else:
            progress.update(f"{now}: {done} of {count} packages, {time.monotonic() - began:.0f} s")

    try:
        source = environment.Source(wheels, args.index_url or "")
        env = environment.install(folder, lists, source, on_progress, again=args.again)
    except KeyboardInterrupt:
        progress.say("interrupted; what was fetched is kept, and the same command goes on")
        raise
    finally:
        progress.clear()
    progress.say(_line("current", json.loads((env / COMPLETE).read_text())))
    progress.say("the daemon uses it for the next worker; nothing needs a restart")
    return 0


def _line(name: str, found: dict[str, Any]) -> str:
    where = found["device"] if found.get("cuda") else "cpu only"
    versions = f"torch {found['torch']}, lerobot {found['lerobot']}, Python {found['python']}"
    return f"{name}: {versions}, {where} ({clock(found['at'])})"


def _show(context: Context, args: Args) -> int:
    folder = base()
    found = {}
    for name in ("current", "previous"):
        if (folder / name / COMPLETE).exists():
            found[name] = json.loads((folder / name / COMPLETE).read_text())
    if args.json:
        show_json({"schema_version": 1, "folder": str(folder), **found})
    elif not found:
        print(f"there is no runtime in {folder}; `sudo zk0ctl runtime install` makes it")
    for name, value in () if args.json else found.items():
        print(_line(name, value))
    return 0 if "current" in found else 2


def _check(context: Context, args: Args) -> int:
    from zk0d.ctl import environment

    found = environment.check(base() / "current")
    if args.json:
        show_json({"schema_version": 1, **found})
    else:
        print(_line("works", {"at": time.time(), **found}))
    return 0


def _rollback(context: Context, args: Args) -> int:
    from zk0d.ctl import environment

    env = environment.rollback(base())
    print(_line("current", json.loads((env / COMPLETE).read_text())))
    return 0


def _remove(context: Context, args: Args) -> int:
    from zk0d.ctl import environment

    folder = base()
    with environment.locked(folder):
        freed = environment._size(folder)
        for name in ("current", "previous"):
            (folder / name).unlink(missing_ok=True)
        for name in ("envs", "cache"):
            shutil.rmtree(folder / name, ignore_errors=True)
    print(f"removed; {size(freed)} are free again")
    return 0


_JSON = arg("--json", help="as JSON", action="store_true")
COMMAND = Command(
    "runtime",
    "the packages that recording and training need (torch, lerobot)",
    subs=(
        Command("install", "make or update them from the list that came with this version; run it again to go on", (
            arg("--cpu", help="the CPU's list, also where there is a GPU", action="store_true"),
            arg("--cuda", help="the GPU's list, also where no driver is loaded yet", action="store_true"),
            arg("--index-url", help="take them from this index, such as a mirror", metavar="URL"),
            arg("--wheels", help="take them from this folder instead of an index", metavar="DIR"),
            arg("--again", help="make them anew even if they are there", action="store_true"),
        ), _install),
        Command("show", "what is installed", (_JSON,), _show),
        Command("check", "import them and compute once", (_JSON,), _check),
        Command("rollback", "go back to the environment before the last change", (), _rollback),
        Command("remove", "remove all of it", (), _remove),
    ),
    default="show",
)  # fmt: skip
