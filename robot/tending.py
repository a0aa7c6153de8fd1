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
from typing import Any

from robot.config import RobotTable
from robot.steps import Aborted, Steps
from zk0d.errors import RobotError, UsageError
from zk0d.worker import Message, WorkerChannel, run_worker

ROLES = ("follower", "leader")
_PROGRESS_S = 0.5


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
        table = RobotTable.parse(job["robot"])
        side, _, rest = role.rpartition("-")
        if action in ("calibrate", "setup"):
            arms = [f"{prefix.replace('_', '-')}{r}" for prefix in table.each() for r in ROLES]
            if role not in arms:
                raise UsageError(f"which arm? {role!r} is none of them", " or ".join(arms))
            table, role = (table.pairs[side], rest) if side else (table, role)
        return Tending(
            action, role, table, int(job.get("fps") or 30), float(job.get("seconds") or 0),
            Path(str(job.get("folder") or ".")), int(job.get("reads") or 200),
        )  # fmt: skip


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
    """The follower does what the leader does until `next` or `stop`; gives the rate that was held."""
    from robot.arms import open_bench

    period, done = 1.0 / work.fps, 0
    with open_bench(work.robot, fps=work.fps) as bench:
        steps.say("ready", ports=bench.ports, cameras=list(bench.cameras))
        began = said = time.perf_counter()
        due = began
        try:
            while not work.seconds or time.perf_counter() - began < work.seconds:
                bench.observe()
                sent = bench.command(bench.leader_pose())
                for found in bench.tend():
                    steps.say("care", **found)
                if bench.released:
                    raise RobotError(f"the arm was let go: {bench.health()['reason']}", "let it rest; robot doctor")
                done += 1
                now = time.perf_counter()
                if now - said >= _PROGRESS_S:
                    said = now
                    joints = {n: round(float(v), 1) for n, v in zip(bench.joints, sent, strict=True)}
                    steps.say("progress", hz=round(done / (now - began), 1), joints=joints, seconds=now - began)
                due = max(due + period, now)  # a late period is not made up for: the arm would race
                if steps.answered(max(0.0, due - now)):
                    break
        except Aborted:
            pass  # a person ends a teleoperation like this
        seconds = time.perf_counter() - began
    return {"seconds": round(seconds, 2), "hz": round(done / seconds, 2)}


ACTIONS = {"setup": _setup, "calibrate": _calibrate, "doctor": _doctor, "teleop": _teleop}


def _left(work: Tending, error: Aborted) -> str:
    """What an ended job has changed."""
    if work.action != "setup":
        return "the arm is as it was before"
    if not error.done:
        return "no servo was changed"
    return f"{', '.join(error.done)} have their new ids and keep them; the other servos are as they were"


def main(job: Message, channel: WorkerChannel) -> Message:
    """Do one job. Raises RobotError, ConfigError or UsageError."""
    work = Tending.parse(job)
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        return ACTIONS[work.action](work, Steps(channel))
    except Aborted as error:
        raise RobotError(f"{work.action} was ended ({error}); {_left(work, error)}", "begin again") from error


if __name__ == "__main__":
    sys.exit(run_worker(main))
