"""`zk0ctl robot`: find, set up, calibrate and check the arms. Enter answers a step, and so does any terminal.

What touches an arm runs in a worker of the daemon and goes on when this command is killed or the ssh session drops.
"""

from __future__ import annotations

import contextlib
import select
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from zk0d.arguments import Number, Whole
from zk0d.ctl.command import Args, Command, Context, arg
from zk0d.ctl.record_cmd import interruptible, robot
from zk0d.ctl.render import Progress, paint, safe, show_json, table
from zk0d.errors import RobotError, Zk0Error

_LEVELS = {"ok": "green", "warn": "yellow", "bad": "red"}
_LOOK_S = 0.3


def _find(context: Context, args: Args) -> int:
    from zk0d import devices

    found = devices.find()
    if args.unplugged:
        return _unplugged(found, args.wait_s, args.json)
    if args.json:
        show_json([d.to_json() for d in found])
    elif not found:
        print('no serial port and no camera is plugged in (virtual arms need none: follower = "virtual:PickLift")')
    else:
        rows = [[d.kind, d.port, safe(d.binding), safe(d.name), d.usb, f"{d.speed:g}" if d.speed else ""]
                for d in found]  # fmt: skip
        print(table(["KIND", "PORT", "IN ZK0D.TOML", "NAME", "SOCKET", "MBIT/S"], rows))
    return 0 if found else 2


def _unplugged(before: list[Any], wait_s: float, as_json: bool) -> int:
    """Wait until something is unplugged, and name it. Raises RobotError when nothing was."""
    from zk0d import devices

    if not before:
        raise RobotError("nothing is plugged in", "plug the arm in first, then run this and unplug it")
    print(f"unplug the one you mean now ({len(before)} are plugged in; waiting {wait_s:.0f} s)", file=sys.stderr)
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        missing = devices.gone(before, devices.find())
        if missing:
            if as_json:
                show_json([d.to_json() for d in missing])
            else:
                print("\n".join(f"{d.kind} {d.port}: write {safe(d.binding)!r}" for d in missing))
            return 0
        time.sleep(_LOOK_S)
    raise RobotError(f"nothing was unplugged in {wait_s:.0f} s", "run it again, with --wait-s for more time")


def _show(context: Context, args: Args) -> int:
    found = context.call("robot_show")
    if args.json:
        show_json(found)
        return 0
    r = found["robot"]
    print(f"{r['type']} {paint(safe(r.get('id', '')), 'bold')}, joints in {r['units']}"
          f" (from {', '.join(map(safe, found['files'])) or 'the defaults'})")  # fmt: skip
    problems = 0
    for part, place in found["places"].items():
        where = place["bound"] + (f" at {place['at']}" if place["at"] != place["bound"] else "")
        if part.startswith("camera "):
            size = _camera(r, part.removeprefix("camera "))
            where += f", {size.get('width', 640)}×{size.get('height', 480)}"
        problems += bool(place["problem"])
        print(f"  {part:<16} {safe(where) if place['bound'] else 'not set'}"
              + (f"  {paint(safe(place['problem']), 'red')}" if place["problem"] else ""))  # fmt: skip
    return 2 if problems or not (r.get("follower") or r.get("left")) else 0


def _camera(robot: dict[str, Any], name: str) -> dict[str, Any]:
    """The table of a camera by its name in a dataset."""
    side, _, own = name.partition("_")
    found: dict[str, Any] = robot["cameras"].get(name) or robot.get(side, {}).get("cameras", {}).get(own) or {}
    return found


@contextlib.contextmanager
def _enter_means_next(context: Context) -> Iterator[None]:
    """While a job runs, Enter on this terminal answers its step."""
    over = threading.Event()

    def listen() -> None:
        while not over.is_set():
            if select.select([sys.stdin], [], [], 0.2)[0]:
                if not sys.stdin.readline():
                    return
                with contextlib.suppress(Zk0Error):
                    context.call("record_control", timeout=5.0, action="next", own=True)

    listener = threading.Thread(target=listen, name="enter", daemon=True)
    if sys.stdin.isatty():
        listener.start()
    try:
        yield
    finally:
        over.set()
        if listener.is_alive():
            listener.join(1.0)


def _told(progress: Progress, event: dict[str, Any]) -> None:
    kind = event["event"]
    if kind == "step":
        progress.say(f"{paint(safe(event['step']), 'bold')}: {safe(event['text'])}")
        progress.say("  then Enter here, or `zk0ctl robot next` anywhere; `zk0ctl robot abort` ends it")
    elif kind == "again":
        progress.say(f"{paint('again', 'yellow')}: {safe(event['text'])}")
    elif kind == "named":
        progress.say(f"{paint('done', 'green')}: {safe(event['step'])} is servo {event['id']} (was {event['was']})")
    elif kind == "care":
        progress.say(f"{paint('care: ' + safe(event['level']), 'yellow')} {safe(event['text'])}")
    elif kind == "finding":
        word = paint(f"{event['level']:<4}", _LEVELS.get(event["level"], "dim"))
        progress.say(f"{word} {safe(event['part'])}: {safe(event['what'])}"
                     + (f"\n       {safe(event['do'])}" if event["do"] else ""))  # fmt: skip
    elif kind == "progress" and "at" in event:
        progress.update("  ".join(f"{j} {event['low'][j]}<{v}<{event['high'][j]}" for j, v in event["at"].items()))
    elif kind == "progress":
        joints = "  ".join(f"{j.removesuffix('.pos')} {v}" for j, v in event["joints"].items())
        progress.update(f"{event['hz']} Hz  {joints}")


def _tend(context: Context, args: Args, action: str, **request: Any) -> Any:
    progress = Progress()
    with interruptible(context, progress), _enter_means_next(context):
        result = context.call("robot_tend", None if args.json else lambda e: _told(progress, e), timeout=None,
                              action=action, robot=robot(args), **request)  # fmt: skip
    if args.json:
        show_json(result)
    return result


def _setup(context: Context, args: Args) -> int:
    result = _tend(context, args, "setup", role=args.arm)
    if not args.json:
        print(f"all {len(result['ids'])} servos have their ids; put the chain together, then"
              f" `zk0ctl robot calibrate {args.arm}`")  # fmt: skip
    return 0


def _calibrate(context: Context, args: Args) -> int:
    result = _tend(context, args, "calibrate", role=args.arm)
    if not args.json:
        print(table(["JOINT", "FROM", "TO"], [[j, str(a), str(b)] for j, (a, b) in result["ranges"].items()]))
        print(
            f"calibrated: {safe(result['file'])}" + (f" (the old one: {safe(result['old'])})" if result["old"] else "")
        )
    return 0


def _teleop(context: Context, args: Args) -> int:
    result = _tend(context, args, "teleop", seconds=args.seconds, fps=args.fps)
    if not args.json:
        rate = f" at {result['hz']} Hz" if result["seconds"] >= 1 else ""
        print(f"teleoperated for {result['seconds']} s{rate}")
    return 0


def _doctor(context: Context, args: Args) -> int:
    findings = _tend(context, args, "doctor", reads=args.reads)["findings"]
    levels = {f["level"] for f in findings}
    return 1 if "bad" in levels else 2 if "warn" in levels else 0


def _release(context: Context, args: Args) -> int:
    result = context.call("robot_release", timeout=None, robot={"follower": args.follower or ""},
                          unpowered=args.unpowered)  # fmt: skip
    if args.json:
        show_json(result)
        return 0
    told = f" ({safe(result['ended'])} was told to, and ends)" if result["ended"] else ""
    if result["released"] or not result["unpowered"]:
        print(f"limp: {safe(', '.join(result['released']) or 'it was not under torque')}{told}")
    if result["unpowered"]:
        print(f"without power, by your word: {safe(', '.join(result['unpowered']))}")
    return 0


def _control(name: str, action: str, help: str) -> Command:
    def run(context: Context, args: Args) -> int:
        r = context.call("record_control", action=action)
        print(f"{name}: {r['kind']} by {safe(r['by'])}")
        return 0

    return Command(name, help, (), run)


_JSON = arg("--json", help="as JSON", action="store_true")
_ROLES = ("follower", "leader")
_ARM = arg("arm", help="which arm; left-… and right-… of two pairs",
           choices=(*_ROLES, *(f"{side}-{r}" for side in ("left", "right") for r in _ROLES)))  # fmt: skip
_PORTS = (
    arg("--follower", help="the arm's port, serial:NUMBER or virtual:TASK (default: zk0d.toml)", metavar="PORT"),
    arg("--leader", help="the leader's, likewise", metavar="PORT"),
)
COMMAND = Command(
    "robot",
    "find, set up, calibrate and check the arms and cameras",
    default="show",
    subs=(
        Command("find", "ports and cameras by their USB serial numbers", (
            arg("--unplugged", help="wait until you unplug one, and name it", action="store_true"),
            arg("--wait-s", help="how long (default 60)", type=Number(0), default=60.0, metavar="S"),
            _JSON,
        ), _find),
        Command("show", "the arms and cameras of zk0d.toml, and where they are now", (_JSON,), _show),
        Command("setup", "give the servos of a new arm their ids, one at a time", (_ARM, *_PORTS, _JSON), _setup),
        Command("calibrate", "calibrate an arm, step by step", (_ARM, *_PORTS, _JSON), _calibrate),
        Command("teleop", "the follower does what the leader does; nothing is recorded", (
            arg("--seconds", help="end after S", type=Number(0, 86400), metavar="S"),
            arg("--fps", help="steps per second (default: that of recordings)", type=Whole(5, 120), metavar="N"),
            *_PORTS, _JSON,
        ), _teleop),
        Command("doctor", "check servos, cables, cameras, USB and disk; nothing moves", (
            arg("--reads", help="readings to judge the cable by (default 200)", type=Whole(1, 100_000), default=200,
                metavar="N"),
            *_PORTS, _JSON,
        ), _doctor),
        Command("release", "let the arm go, gently, whatever has it: its session ends", (
            _PORTS[0],
            arg("--unpowered", help="of arms that status names and that cannot be reached, you have cut the power",
                action="store_true"),
            _JSON,
        ), _release),
        _control("next", "next", "answer the step that is asked"),
        _control("abort", "stop", "end the job; the arm is as it was before"),
    ),
)  # fmt: skip
