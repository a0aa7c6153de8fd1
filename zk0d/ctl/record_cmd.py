"""`zk0ctl record`: record episodes into a dataset, with live progress; or steer the recording that runs.

The recording belongs to the daemon: it goes on when this command is killed or the ssh session drops. Ctrl-C stops it.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

from zk0d.arguments import MAX_EPISODES, MAX_SEED, Number, Whole
from zk0d.ctl.command import Args, Command, Context, arg
from zk0d.ctl.keys import HELP, keys_steer
from zk0d.ctl.preview import Block, picture
from zk0d.ctl.render import Progress, absolute, paint, plural, safe, show_json
from zk0d.errors import Zk0Error
from zk0d.moments import clock
from zk0d.watching import watch

DEGRADED, INTERRUPTED = 2, 130


def robot(args: Args) -> dict[str, str]:
    """The arms named on the command line; a relative path in `replay:FILE#EPISODE` is made absolute."""
    found = {k: v for k in ("follower", "leader") if (v := getattr(args, k, None))}
    leader = found.get("leader", "")
    if leader.startswith("replay:"):
        file, hash_, episode = leader.removeprefix("replay:").partition("#")
        found["leader"] = f"replay:{absolute(file)}{hash_}{episode}"
    return found


@contextlib.contextmanager
def interruptible(context: Context, progress: Progress) -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks the daemon to stop the session, whose result is then still shown; a second one leaves at once.

    Gives a function that tells whether there was one. What fails by it is told, and is an interruption."""
    happened = []

    def on_interrupt(number: int, frame: object) -> None:
        happened.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        progress.say("stopping (Ctrl-C again to leave at once)")
        with contextlib.suppress(Zk0Error):
            context.call("record_control", timeout=5.0, action="stop", own=True)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: bool(happened)
    except Zk0Error as error:
        if not happened:
            raise
        progress.say(str(error))
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)
        progress.clear()


def show(progress: Progress, event: dict[str, Any]) -> None:
    """One event of the recorder for a person."""
    kind, done = event["event"], f"{event.get('saved_total', 0)} of {event.get('goal', '?')}"
    if kind == "progress":
        progress.update(picture(event, f"{done} saved"))
    elif kind == "take":
        progress.update(f"{done} saved; take {event.get('take')} begins")
    elif kind == "saved":
        how = {"True": ", success", "False": ", no success"}.get(str(event.get("success")), "")
        progress.say(
            f"{paint('saved', 'green')} episode {event.get('episode')}"
            f" ({plural(int(event.get('frames', 0)), 'frame')}{how}); {done}"
        )
    elif kind == "superseded":
        progress.say(f"{paint('again', 'yellow')}: episode {event.get('episode')} is recorded anew; it stays on disk,"
                     " kept out of training")  # fmt: skip
    elif kind == "pausing":
        progress.say("pausing after this take")
    elif kind == "paused":
        progress.say("paused: `zk0ctl record next` begins a take, `resume` goes on")
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
        _say_recovered(progress, event.get("recovered") or {})


def _say_recovered(progress: Progress, found: dict[str, Any]) -> None:
    """What an earlier recorder that was killed had left in the dataset."""
    texts = {"adopted": "takes of an earlier recording saved as episode", "cut": "of which cut off",
             "removed": "too little of it to keep", "quarantined": "set aside in .zk0/quarantine",
             "waiting": "not saved, for want of room on the disk"}  # fmt: skip
    for key, text in texts.items():
        if found.get(key):
            progress.say(f"{paint('recovered', 'yellow')} {text}: {', '.join(safe(v) for v in found[key])}")


def _start(context: Context, args: Args) -> int:
    progress = Block()
    request = {
        "dataset": args.dataset, "task": args.task, "episodes": args.episodes, "until": args.until,
        "episode_s": args.episode_s, "seed": args.seed, "keep": args.keep, "robot": robot(args),
        "train": not args.no_train, "reset_s": args.reset_s, "paused": args.paused, "auto": not args.by_hand,
        "rerun": args.rerun,
    }  # fmt: skip

    def act(action: str) -> None:
        try:
            context.call("record_control", timeout=5.0, action=action, own=True)
        except Zk0Error as error:
            progress.say(f"{action}: {error.message}")

    if args.keys:
        progress.say(HELP)
    steering = keys_steer(act) if args.keys else contextlib.nullcontext()
    with interruptible(context, progress) as interrupted, steering:
        result = context.call("record", None if args.json else lambda e: show(progress, e), timeout=None, **request)
    if args.json:
        show_json(result)
    else:
        dropped = f", {plural(result['discarded'], 'take')} discarded" if result["discarded"] else ""
        print(f"{safe(result['dataset'])}: {plural(result['episodes'], 'episode')} ({result['added']} new{dropped})"
              + (f"; {safe(result['reason'])}" if result["reason"] else ""))  # fmt: skip
    return INTERRUPTED if interrupted() else 0 if result["complete"] else DEGRADED


def _watch(context: Context, args: Args) -> int:
    def shown() -> str:
        session = context.call("status")["session"]
        if session is None:
            return "nobody holds the arm"
        who = f"{session['kind']} by {safe(session['by'])} since {clock(session['since'])}"
        return f"{who}\n" + picture(session["progress"], f"{session['saved']} of {session['goal']} saved")

    if not args.once:
        watch(shown, screen=True)
    print(shown())
    return 0


def control(action: str, help: str) -> Command:
    """A command that steers the session that runs."""

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
                arg("--episodes", help="record N more", type=Whole(1, MAX_EPISODES), metavar="N"),
                arg(
                    "--until",
                    help="record until the dataset has N; safe to run again",
                    type=Whole(1, MAX_EPISODES),
                    metavar="N",
                ),
                arg("--episode-s", help="longest take in seconds", type=Number(0.2, 86400), metavar="S"),
                arg("--follower", help="the arm's port, or virtual:TASK", metavar="PORT"),
                arg("--leader", help="the leader's port; virtual: expert, replay:FILE#EPISODE, rest", metavar="PORT"),
                arg(
                    "--keep",
                    help="which takes to keep where success is known (default success)",
                    choices=("success", "all"),
                ),
                arg("--seed", help="seed of a virtual bench", type=Whole(0, MAX_SEED), default=0, metavar="N"),
                arg("--no-train", help="do not train on the dataset", action="store_true"),
                arg("--reset-s", help="pause between takes in seconds", type=Number(0, 86400), metavar="S"),
                arg("--paused", help="the first take waits for `next`", action="store_true"),
                arg("--by-hand", help="a take ends with `next` only, not after --episode-s", action="store_true"),
                arg("--keys", help="keys of this terminal steer: n r d p f q, arrows", action="store_true"),
                arg(
                    "--rerun",
                    help="show it in a Rerun viewer too (spawn: on the daemon's display)",
                    nargs="?",
                    const="spawn",
                    metavar="HOST:PORT",
                ),
                arg("--json", help="the result as JSON, no progress", action="store_true"),
            ),
            _start,
        ),
        Command(
            "watch",
            "rates, joints, cameras and servos of the session that runs",
            (arg("--once", help="one look", action="store_true"),),
            _watch,
        ),
        control("next", "end this take and keep it; when paused, begin one"),
        control("rerecord", "drop this take, or after it has ended the one kept last, and record it again"),
        control("pause", "wait after this take"),
        control("resume", "go on after a pause"),
        control("discard", "end this take and drop it"),
        control("finish", "end after this take"),
        control("stop", "end now"),
    ),
)
