"""`zk0ctl rollout`: run a version of the policy on the arm, and say how often it succeeded."""

from __future__ import annotations

from typing import Any

from zk0d.arguments import MAX_SEED, Number, Whole
from zk0d.ctl.command import Args, Command, Context, arg
from zk0d.ctl.dataset_cmd import renames
from zk0d.ctl.record_cmd import DEGRADED, INTERRUPTED, control, interruptible, robot
from zk0d.ctl.render import Progress, absolute, plural, safe, show_json


def run(context: Context, args: Args) -> int:
    from zk0d.ctl.delivery import Delivery

    progress = Progress()
    out = absolute(args.out)

    def on_event(event: dict[str, Any]) -> None:
        if coming.took(event):
            return
        kind = event["event"]
        if kind == "episode":
            how = {"True": "success", "False": "no success"}.get(str(event.get("success")), "done")
            ended = f" ({safe(event['ended_by'])})" if event.get("ended_by") in ("watchdog", "care", "next") else ""
            progress.say(f"episode {event.get('episode')}: {how} after {event.get('seconds', 0):.1f} s{ended}")
        elif kind == "progress":
            held = ", held: no action yet" if event.get("held") else ""
            if event.get("phase") == "reset":
                left = f"{event.get('left_s', 0):.0f} s"
                progress.update(f"the arm is at rest for {left}: put things back (`zk0ctl rollout next` goes on)")
                return
            progress.update(f"episode {event.get('episode')}: {event.get('seconds', 0):.1f} s{held}")
        elif kind in ("care", "watchdog"):
            progress.say(f"{kind}: {safe(event.get('text'))}")
        else:
            progress.update(f"{kind} …")

    with Delivery(out) as coming, interruptible(context, progress) as interrupted:
        result = context.call(
            "rollout", on_event, timeout=None, model=args.model, episodes=args.episodes, max_s=args.max_s,
            seed=args.seed, task=args.task, robot=robot(args), rename=renames(args.rename), reset_s=args.reset_s,
        )  # fmt: skip
        coming.finish(result)
    result["video"] = str(out / "rollout.mp4") if result.get("video") else ""
    status = INTERRUPTED if interrupted() else DEGRADED if result.get("ended") else 0
    if args.json:
        show_json(result)
        return status
    done = f"{result.get('successes')} of {plural(result.get('episodes', 0), 'episode')} succeeded"
    film = f"; video: {safe(result['video'])}" if result["video"] else ""
    progress.say(f"version {result['version']}: {done}{film}")
    if result.get("ended"):
        progress.say(f"ended early: {safe(result['ended'])}")
    return status


def _fetch(context: Context, args: Args) -> int:
    from zk0d.ctl.delivery import Delivery

    out = absolute(args.out)

    def on_event(event: dict[str, Any]) -> None:
        coming.took(event)

    with Delivery(out) as coming:
        r = context.call("rollout_fetch", on_event, timeout=None)
        coming.finish(r)
    print(f"{safe(out / 'rollout.mp4')}: the rollout of {safe(r['begun'])}; {r['waiting']} more to fetch")
    return 0


def _said(action: str, help: str) -> Command:
    def say(context: Context, args: Args) -> int:
        r = context.call("record_control", action=action, note=args.note)
        print(f"{action}: {r['kind']} by {safe(r['by'])}, {r['saved']} of {r['goal']} done")
        return 0

    return Command(action, help, (arg("--note", help="a remark for rollout.json", metavar="TEXT"),), say)


COMMAND = Command(
    "rollout",
    "run a version of the policy on the arm",
    default="start",
    subs=(
        Command(
            "start",
            "run it (the default action)",
            (
                arg("--model", help='version to run (default "latest")', default="latest", metavar="VERSION"),
                arg("--episodes", help="how many times (default 3)", type=Whole(1, 10_000), default=3, metavar="N"),
                arg(
                    "--max-s",
                    help="longest episode in seconds (default 15)",
                    type=Number(0.2, 3600),
                    default=15.0,
                    metavar="S",
                ),
                arg(
                    "--reset-s",
                    help="how long a real arm is at rest between episodes (default 10)",
                    type=Number(0, 3600),
                    metavar="S",
                ),
                arg("--out", help="folder for the video and rollout.json", required=True, metavar="DIR"),
                arg("--task", help="task text (default: that of the last recording)", metavar="TEXT"),
                arg("--follower", help="the arm's port, or virtual:TASK", metavar="PORT"),
                arg("--seed", help="seed of a virtual bench", type=Whole(0, MAX_SEED), default=0, metavar="N"),
                arg("--rename", help="this camera is the policy's THEIRS", action="append", metavar="OWN=THEIRS"),
                arg("--json", help="the result as JSON", action="store_true"),
            ),
            run,
        ),
        _said("success", "the episode that runs has succeeded: end it and note that"),
        _said("failure", "it has failed: end it and note that"),
        Command(
            "fetch",
            "the video of a rollout whose terminal was closed before it ended",
            (arg("--out", help="folder for the video and rollout.json", required=True, metavar="DIR"),),
            _fetch,
        ),
        control("next", "end this episode, without a word on success; between two, begin the next one"),
        control("finish", "end after this episode"),
        control("stop", "end now; the arm goes to rest"),
    ),
)
