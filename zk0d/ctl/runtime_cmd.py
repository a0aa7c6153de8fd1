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
from zk0d.ctl.render import Progress, clock, show_json, size
from zk0d.errors import Zk0Error
from zk0d.runtime import COMPLETE, base


def _install(context: Context, args: Args) -> int:
    from zk0d.ctl import environment

    folder, lists = base(), environment.Lists.find()
    wheels = Path(args.wheels) if args.wheels else None
    if wheels and not wheels.is_dir():
        raise Zk0Error(f"{wheels} is not a folder", "name a folder with the wheels of the list")
    progress, began = Progress(), time.monotonic()
    stage = ""

    def on_progress(now: str, done: int, count: int) -> None:
        nonlocal stage
        if now != stage:
            said = {"environment": f"making the environment in {folder}", "fetching": f"fetching {count} packages"}
            progress.say(said.get(now, "installing them"))
            stage = now
        progress.update(f"{now}: {done} of {count} packages, {time.monotonic() - began:.0f} s")

    try:
        env = environment.install(folder, lists, wheels, on_progress, again=args.again)
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
