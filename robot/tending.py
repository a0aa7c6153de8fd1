"""Worker that looks after arms: servo ids, calibration step by step, teleoperation, a check-up. By LeRobot's drivers.

A person answers each step with `next` or `stop`, from any terminal; nothing asks on this one. Not for recording.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robot.config import SIDES, RobotTable
from robot.ear import Channel, Ended
from robot.steps import Aborted, Steps
from zk0d.errors import RobotError, UsageError
from zk0d.worker import Message, run_worker

if TYPE_CHECKING:
    from robot.bench import Bench

ROLES = ("follower", "leader")
_PROGRESS_S = 0.5
_NUMBERS = {"fps": (30, 5, 120), "seconds": (0, 0, 86_400), "reads": (200, 1, 100_000)}
"""Of a job: its usual value, the least and the most."""


@dataclass(frozen=True)
class Tending:
    """A checked job: `action` on the arm of `role` ("" where it concerns all)."""

    action: str
    role: str
    robot: RobotTable
    fps: int
    seconds: float
    folder: Path
    reads: int

    @staticmethod
    def parse(job: Message) -> Tending:
        """Read the job. Raises UsageError or ConfigError."""
        action, role = str(job.get("action")), str(job.get("role") or "")
        if action not in ACTIONS:
            raise UsageError(f"{action!r} is not known", f"one of {', '.join(ACTIONS)}")
        table = RobotTable.parse(_followers(job["robot"]) if action == "release" else job["robot"])
        side, _, rest = role.rpartition("-")
        if action in ("calibrate", "setup"):
            arms = [f"{prefix.replace('_', '-')}{r}" for prefix in table.each() for r in ROLES]
            if role not in arms:
                raise UsageError(f"which arm? {role!r} is none of them", " or ".join(arms))
            table, role = (table.pairs[side], rest) if side else (table, role)
        numbers = {key: job.get(key) or usual for key, (usual, _, _) in _NUMBERS.items()}
        for key, (_, low, high) in _NUMBERS.items():  # goals are as far apart as a period lasts: no leaps
            if not low <= numbers[key] <= high:
                raise UsageError(f"{key} = {numbers[key]} cannot be used", f"from {low} to {high}")
        return Tending(
            action, role, table, int(numbers["fps"]), float(numbers["seconds"]), Path(str(job.get("folder") or ".")),
            int(numbers["reads"]),
        )  # fmt: skip


def _followers(robot: Message) -> Message:
    """What of a `[robot]` table says where followers are: nothing else that is wrong in it keeps them under torque."""
    sides = {side: {"follower": robot[side].get("follower", "")} for side in SIDES if robot.get(side)}
    return {key: robot[key] for key in ("type", "follower") if robot.get(key)} | sides


@contextmanager
def arm(table: RobotTable, role: str, handshake: bool = True) -> Iterator[Any]:
    """LeRobot's device of a role with its bus open, calibrated or not; torque stays as it is. Raises RobotError."""
    from robot.bare import bare_arm

    with ExitStack() as stack:
        yield bare_arm(stack, table, role, handshake=handshake)


def _setup(work: Tending, steps: Steps) -> dict[str, Any]:
    from robot.servo_ids import give_ids

    with arm(work.robot, work.role, handshake=False) as device:
        return {"ids": give_ids(device.bus, steps)}


def _calibrate(work: Tending, steps: Steps) -> dict[str, Any]:
    from robot.calibration import calibrate

    with arm(work.robot, work.role) as device:
        return calibrate(device, steps)


def _doctor(work: Tending, steps: Steps) -> dict[str, Any]:
    from robot.checkup import check_all

    return {"findings": check_all(work.robot, work.folder, work.fps, work.reads, steps.say)}


def _teleop(work: Tending, steps: Steps) -> dict[str, Any]:
    """The follower does what the leader does until `next` or `stop`, from a slow beginning to rest at the end.

    Gives the rate that was held.
    """
    from robot.arms import open_bench
    from robot.ramp import put_down, ramp

    with open_bench(work.robot, fps=work.fps, ear=steps.ear) as bench:
        home, done, word = bench.positions(), 0, ""
        began = time.perf_counter()
        try:
            if not bench.virtual:  # no leap to the leader
                word = ramp(bench, bench.leader_pose, steps.ear)
            began = time.perf_counter()
            if not word:
                steps.say("ready", ports=bench.ports, cameras=list(bench.cameras))
                done, word = _follow(bench, work, steps, began)
            seconds = time.perf_counter() - began
        finally:
            put_down(bench, home, steps.ear, limp=word == "release")
        if bench.released:
            raise RobotError(f"the arm was let go: {bench.health()['reason']}", "let it rest; robot doctor")
    return {"seconds": round(seconds, 2), "hz": round(done / max(seconds, 1e-3), 2)}


def _follow(bench: Bench, work: Tending, steps: Steps, began: float) -> tuple[int, str]:
    """Until `next` or an end comes, the time is over or the arm was let go → periods done, the word that ended it."""
    period, said, due, done = 1.0 / work.fps, began, began, 0
    while not work.seconds or time.perf_counter() - began < work.seconds:
        bench.observe()
        sent = bench.command(bench.leader_pose())
        for found in bench.tend():
            steps.say("care", **found)
        if bench.released:
            return done, "care"
        done += 1
        now = time.perf_counter()
        if now - said >= _PROGRESS_S:
            said = now
            joints = {n: round(float(v), 1) for n, v in zip(bench.joints, sent, strict=True)}
            steps.say("progress", hz=round(done / (now - began), 1), joints=joints, seconds=now - began)
        due = max(due + period, now)  # a late period is not made up for: the arm would race
        try:
            if steps.answered(max(0.0, due - now)):
                return done, "next"
        except Aborted as ended:  # a person ends a teleoperation like this
            return done, str(ended)
    return done, "time"


def _release(work: Tending, steps: Steps) -> dict[str, Any]:
    """Every follower is let down and loses its torque, calibrated or not; gives their ports.

    Raises RobotError for those that do not answer, when the others are limp.
    """
    from robot.bare import bare_arm
    from robot.ports import ask_again, first_line
    from robot.torque import sink

    failed: list[str] = []
    with ExitStack() as stack:
        arms: dict[str, Any] = {}
        for prefix, pair in work.robot.each().items():
            try:
                device = bare_arm(stack, pair, "follower", handshake=False)
            except RobotError as error:
                failed.append(f"{prefix.replace('_', ' ')}{error.message}")
                continue
            ask_again(device.bus)
            arms[f"the {prefix.replace('_', ' ')}follower on {pair.follower}"] = device  # dropped, it would let go
        wrong = sink([device.bus for device in arms.values()])
        failed += [f"{arm}: {first_line(wrong[n])}" for n, arm in enumerate(arms) if n in wrong]
        released = [arm for n, arm in enumerate(arms) if n not in wrong]
        for name in released:
            steps.say("torque", arm=name, port=arms[name].config.port, on=False, text="")
    if failed:
        done = f" ({', '.join(released)}: limp now)" if released else ""
        raise RobotError(
            f"not let go, and perhaps under torque: {'; '.join(failed)}{done}", "hold the arm, and cut its power"
        )
    return {"released": released}


ACTIONS = {"setup": _setup, "calibrate": _calibrate, "doctor": _doctor, "teleop": _teleop, "release": _release}


def _left(work: Tending, error: Aborted) -> str:
    """What an ended job has changed."""
    if work.action != "setup":
        return "the arm is as it was before"
    if not error.done:
        return "no servo was changed"
    return f"{', '.join(error.done)} have their new ids and keep them; the other servos are as they were"


def main(job: Message, channel: Channel) -> Message:
    """Do one job. Raises RobotError, ConfigError or UsageError."""
    work, steps = Tending.parse(job), Steps(channel)
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        return ACTIONS[work.action](work, steps)
    except Ended as error:
        raise RobotError(f"{work.action} was ended ({error}) before the arm was opened", "begin again") from error
    except Aborted as error:
        raise RobotError(f"{work.action} was ended ({error}); {_left(work, error)}", "begin again") from error


if __name__ == "__main__":
    sys.exit(run_worker(main))
