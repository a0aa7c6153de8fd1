"""`zk0ctl record`: record episodes into a dataset, with live progress; or steer the recording that runs.

The recording belongs to the daemon: it goes on when this command is killed or the ssh session drops. Ctrl-C stops it.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zk0d.ctl.command import Args, Command, Context, arg
from zk0d.ctl.render import Progress, paint, plural, safe, show_json
from zk0d.errors import Zk0Error

DEGRADED = 2


def robot(args: Args) -> dict[str, str]:
    """The arms named on the command line; a relative path in `replay:FILE#EPISODE` is made absolute."""
    found = {k: v for k in ("follower", "leader") if (v := getattr(args, k, None))}
    leader = found.get("leader", "")
    if leader.startswith("replay:"):
        file, hash_, episode = leader.removeprefix("replay:").partition("#")
        found["leader"] = f"replay:{Path(file).expanduser().absolute()}{hash_}{episode}"
    return found


@contextlib.contextmanager
def interruptible(context: Context, progress: Progress) -> Iterator[None]:
    """Ctrl-C asks the daemon to stop the session, whose result is then still shown; a second one leaves at once."""

    def on_interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        progress.say("stopping (Ctrl-C again to leave at once)")
        with contextlib.suppress(Zk0Error):
            context.call("record_control", timeout=5.0, action="stop")

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        progress.clear()


def show(progress: Progress, event: dict[str, Any]) -> None:
    """One event of the recorder for a person."""
    kind, done = event["event"], f"{event.get('saved_total', 0)} of {event.get('goal', '?')}"
    if kind == "progress":
        rate = f", {event['hz']:.1f} Hz" if isinstance(event.get("hz"), int | float) else ""
        progress.update(f"{done} saved; taking episode {event.get('episode')}: {event.get('frames')} frames{rate}")
    elif kind == "take":
        progress.update(f"{done} saved; take {event.get('take')} begins")
    elif kind == "saved":
        how = {"True": ", success", "False": ", no success"}.get(str(event.get("success")), "")
        progress.say(
            f"{paint('saved', 'green')} episode {event.get('episode')}"
            f" ({plural(int(event.get('frames', 0)), 'frame')}{how}); {done}"
        )
    elif kind == "discarded":
        progress.say(f"{paint('discarded', 'yellow')} take {event.get('take')}: {safe(event.get('reason'))}")
    elif kind == "care":
        colour = {"ok": "green", "warn": "yellow"}.get(str(event.get("level")), "red")
        progress.say(f"{paint('care: ' + safe(event.get('level')), colour)} {safe(event.get('text'))}")
    elif kind == "restarted":
        progress.say(f"{paint('recorder died', 'red')} and is started again: {safe(event.get('reason'))}")
    elif kind == "ready":
        ports = event.get("ports")
        names = ports.values() if isinstance(ports, dict) else ports or []
        progress.say(f"ready: {', '.join(safe(p) for p in names) or 'arms connected'}")


def _start(context: Context, args: Args) -> int:
    progress = Progress()
    request = {
        "dataset": args.dataset, "task": args.task, "episodes": args.episodes, "until": args.until,
        "episode_s": args.episode_s, "seed": args.seed, "keep": args.keep, "robot": robot(args),
        "train": not args.no_train,
    }  # fmt: skip
    with interruptible(context, progress):
        result = context.call("record", None if args.json else lambda e: show(progress, e), timeout=None, **request)
    if args.json:
        show_json(result)
    else:
        dropped = f", {plural(result['discarded'], 'take')} discarded" if result["discarded"] else ""
        print(f"{safe(result['dataset'])}: {plural(result['episodes'], 'episode')} ({result['added']} new{dropped})"
              + (f"; {safe(result['reason'])}" if result["reason"] else ""))  # fmt: skip
    return 0 if result["complete"] else DEGRADED


def _control(action: str, help: str) -> Command:
    def run(context: Context, args: Args) -> int:
        r = context.call("record_control", action=action)
        print(f"{action}: {r['kind']} by {safe(r['by'])}, {r['saved']} of {r['goal']} saved")
        return 0

    return Command(action, help, (), run)


COMMAND = Command(
    "record",
    "record episodes by teleoperation",
    default="start",
    subs=(
        Command(
            "start",
            "record into a dataset (the default action)",
            (
                arg("--dataset", help="name of the dataset, new or existing", required=True, metavar="NAME"),
                arg("--task", help="what is done (default: the dataset's last one)", metavar="TEXT"),
                arg("--episodes", help="record N more", type=int, metavar="N"),
                arg("--until", help="record until the dataset has N; safe to run again", type=int, metavar="N"),
                arg("--episode-s", help="longest take in seconds", type=float, metavar="S"),
                arg("--follower", help="the arm's port, or virtual:TASK", metavar="PORT"),
                arg("--leader", help="the leader's port; virtual: expert, replay:FILE#EPISODE, rest", metavar="PORT"),
                arg(
                    "--keep",
                    help="which takes to keep where success is known (default success)",
                    choices=("success", "all"),
                ),
                arg("--seed", help="seed of a virtual bench", type=int, default=0, metavar="N"),
                arg("--no-train", help="do not train on the dataset", action="store_true"),
                arg("--json", help="the result as JSON, no progress", action="store_true"),
            ),
            _start,
        ),
        _control("next", "end this take and keep it"),
        _control("discard", "end this take and drop it"),
        _control("finish", "end after this take"),
        _control("stop", "end now"),
    ),
)
