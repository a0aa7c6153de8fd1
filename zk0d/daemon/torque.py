"""No arm stays under torque: what workers say of it, what is done when one dies, and letting go on a person's word.

Kept in the store, so that the next daemon knows. Not for how an arm is let down (robot/torque.py, robot/tending.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

import structlog

from zk0d.daemon.robot_table import is_virtual, pairs
from zk0d.daemon.store import Store
from zk0d.devices import resolve
from zk0d.errors import RobotError, WorkerError, Zk0Error
from zk0d.moments import clock

if TYPE_CHECKING:
    from zk0d.daemon.arm import Arm, Live
    from zk0d.supervise import Worker

log = structlog.get_logger("torque")

KEY = "arm_torque"
"""The store's key: `{"on": {port: note}}` of the arms that are, or may be, under torque; None when all are limp.
A note is `why` it could not be let go, or "", `robot`: the `[robot]` table that opened it, and `at`, seconds."""
MOVES = ("recording", "rollout", "teleop")
"""Sessions that bring an arm under torque."""
_HINT = "hold it; then `zk0ctl robot release`, or cut its power and say so: `zk0ctl robot release --unpowered`"
_LET_GO_S = 5.0
"""How long a session that is asked to let go may take, which needs one; then it is killed, and we do it."""
_OVER_S = 60.0
_JOB_S = 30.0
"""How long a release job may take, which needs some five; one that hangs on a bus must not keep the arm for ever."""
_KILL_S = 5.0
"""How long one is waited for that was killed: a driver may hold it beyond SIGKILL."""
SETTLE_S = _JOB_S + _KILL_S + 10.0
"""How long whoever wants the arm waits for what an earlier daemon left."""


class Torque:
    """What is known of it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def ports(self) -> dict[str, str]:
        """Ports of arms under torque → why they could not be let go, or ""."""
        return {port: str(note["why"]) for port, note in _notes(self._store).items()}

    def of(self, robot: dict[str, Any]) -> dict[str, str]:
        """The same of those that were opened with this table."""
        return {port: str(note["why"]) for port, note in _notes(self._store).items() if note["robot"] == robot}

    @property
    def robots(self) -> list[dict[str, Any]]:
        """The tables that arms under torque were opened with, each once."""
        found: list[dict[str, Any]] = []
        for note in _notes(self._store).values():
            if note["robot"] not in found:
                found.append(note["robot"])
        return found

    def heard(self, event: dict[str, Any], robot: dict[str, Any]) -> None:
        """A worker's `torque` event; `robot` is the table that the worker opens."""
        on, port, text = _notes(self._store), str(event.get("port")), str(event.get("text") or "")
        if event.get("on"):
            on[port] = {"why": text, "robot": robot, "at": time.time()}
        else:
            on.pop(port, None)
        self._put(on)
        if text:
            log.warning("torque", port=port, on=bool(event.get("on")), reason=text)
            self._store.event("care", text)

    def over(self, robot: dict[str, Any]) -> None:
        """All that were opened with this table are limp, also one that had another port then."""
        self._put({port: note for port, note in _notes(self._store).items() if note["robot"] != robot})

    def failed(self, robot: dict[str, Any], why: str) -> None:
        """They could not be let go: said of those of which no reason is known."""
        on = _notes(self._store)
        for note in on.values():
            if note["robot"] == robot:
                note["why"] = note["why"] or why
        self._put(on)

    def _put(self, on: dict[str, dict[str, Any]]) -> None:
        self._store.put(KEY, {"on": on} if on else None)


def _notes(store: Store) -> dict[str, dict[str, Any]]:
    """Port → note. One that an earlier version wrote has the reason alone, and one table and time for all."""
    kept = store.get(KEY) or {}
    return {
        port: note if isinstance(note, dict) else {"why": note, "robot": kept["robot"], "at": kept["at"]}
        for port, note in kept.get("on", {}).items()
    }


def problem(store: Store, session: bool) -> tuple[str, str] | None:
    """What status says of an arm that may be under torque with nobody at it: message and hint."""
    on = {port: note for port, note in _notes(store).items() if note["why"] or not session}
    if not on:
        return None
    at = clock(min(note["at"] for note in on.values()))
    why = "; ".join(dict.fromkeys(note["why"] for note in on.values() if note["why"]))
    said = f"the arm on {', '.join(on)} may be under torque since {at}" + (f": {why}" if why else "")
    return said, _HINT


async def after_death(arm: Arm, live: Live, how: str, robot: dict[str, Any]) -> str:
    """A worker has ended and left arms of `robot` under torque: a job of its own lets them down → how that went.

    Raises nothing.
    """
    log.warning("an arm was left under torque", kind=live.kind, how=how)
    try:
        released = await _job(arm, live, robot)
        said = f"{how}: {' and '.join(released)} was let down, and is limp"
    except Zk0Error as error:
        arm.torque.failed(robot, error.message)
        said = f"{how}, and the arm could not be let go: {error.message}"
    arm.store.event("care", said)
    return said


async def left_behind(arm: Arm) -> None:
    """At the daemon's start: let go what an earlier one, or its worker, could not."""
    live = _live("zk0d")
    arm.hold(live)
    try:
        for robot in arm.torque.robots:
            await after_death(arm, live, "zk0d ended with the arm under torque", robot)
    finally:
        arm.release()


async def release(arm: Arm, overrides: dict[str, Any], by: str, *, unpowered: bool = False) -> dict[str, Any]:
    """Let the arm go on a person's word: by the session that moves it, else by a job of its own.

    `unpowered`: the power of those that are known and cannot be reached has been cut, says the person. Gives which arms
    are limp now, which have no power, and which session was ended for it. Raises RobotError when there is no arm,
    another session has it, or the one that runs moves another arm than the one that is named; WorkerError when one
    cannot be let go.
    """
    live = arm.live
    if live is not None and live.kind in MOVES:
        _check_its_own(live, str(overrides.get("follower") or ""))
        arm.call_off(f"told to let the arm go by {by}")
        return await _asked(arm, live, by)
    kept = [] if any(overrides.values()) else arm.torque.robots
    robots = kept or [arm.robot(overrides)]
    if is_virtual(robots[0]):
        raise RobotError("the arm is virtual: there is nothing to let go", "--follower PORT names a real one")
    live = _live(by)
    arm.hold(live)
    arm.call_off(f"told to let the arm go by {by}")  # else it would come under torque again in a moment
    released, dark = list[str](), list[str]()
    failed: list[WorkerError] = []
    try:
        for robot in robots:  # one that cannot be reached does not keep the others under torque
            try:
                released += await _job(arm, live, robot)
            except WorkerError as error:
                if not unpowered or robot not in kept:
                    failed.append(error)
                    continue
                dark += [f"the arm on {port}" for port in arm.torque.of(robot)]
                arm.torque.over(robot)
                arm.store.event("care", f"{' and '.join(dark)} cannot be reached, and has no power, says {by}")
    finally:
        arm.release()
    if released:
        arm.store.event("care", f"{' and '.join(released)} was let down on the word of {by}")
    if failed:
        done = f" ({' and '.join(released)}: limp now)" if released else ""
        raise WorkerError("; ".join(error.message for error in failed) + done, failed[0].hint)
    return {"released": released, "unpowered": dark, "ended": ""}


def _check_its_own(live: Live, named: str) -> None:
    """Raises RobotError when a follower is `named` and is none of the session's."""
    theirs = [str(pair.get("follower", "")) for pair in pairs(live.robot)]
    if named and live.robot and _device(named) not in map(_device, theirs):
        raise RobotError(
            f"the {live.kind} by {live.by} moves the arm on {' and '.join(theirs)}, not the one on {named}; nothing was"
            " let go",
            f"`zk0ctl robot release` alone lets {' and '.join(theirs)} go; for {named} end the {live.kind} first, or"
            " cut its power",
        )


def _device(name: str) -> str:
    """The device file, where it can be told: an arm is named by its port, by a link to that, or by serial number."""
    with contextlib.suppress(RobotError):
        return os.path.realpath(resolve(name))
    return name


async def _asked(arm: Arm, live: Live, by: str) -> dict[str, Any]:
    """The session's own worker lets go: it has the port. One that does not is killed, and `Arm.run` does the rest."""
    if live.robot and is_virtual(live.robot):
        raise RobotError(
            f"the arm of this {live.kind} is virtual: there is nothing to let go", "`zk0ctl record stop` ends it"
        )
    ports = list(arm.torque.of(live.robot))
    live.stopping, live.why = True, f"told to let the arm go by {by}"
    worker = live.worker
    if worker is not None:
        worker.send("release")
        if not await _limp(arm, live, worker, ports):
            log.warning("a session does not let go and is killed", kind=live.kind)
            await worker.kill()
    deadline = time.monotonic() + _OVER_S
    while (arm.live is live and (not ports or arm.torque.of(live.robot))) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    if left := arm.torque.of(live.robot):
        why = "; ".join(filter(None, left.values())) or f"the arm on {', '.join(left)} does not answer"
        raise RobotError(why, "hold the arm, and cut its power")
    return {"released": [f"the follower on {port}" for port in ports], "unpowered": [], "ended": live.kind}


async def _limp(arm: Arm, live: Live, worker: Worker, ports: list[str]) -> bool:
    """Whether within _LET_GO_S the session's arms are limp, or, where none was under torque yet, the worker has ended.

    An arm that another session left under torque is no matter here.
    """
    deadline = time.monotonic() + _LET_GO_S
    while time.monotonic() < deadline:
        if not worker.running or (ports and not arm.torque.of(live.robot)):
            return True
        await asyncio.sleep(0.02)
    return False


def _live(by: str) -> Live:
    from zk0d.daemon.arm import Live

    return Live("release", by, time.time())


async def _job(arm: Arm, live: Live, robot: dict[str, Any]) -> list[str]:
    """Run robot.tending's `release`. Raises WorkerError saying which arms may still be under torque."""

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "torque":  # of each arm: some may be limp where others do not answer
            arm.torque.heard(event, robot)

    job = {"action": "release", "robot": robot}
    worker = await arm.workers.start("tending", f"{live.worker_name}r", job, on_event)
    if live.kind == "release":  # else the session's own worker is what it is asked about
        live.worker = worker
    try:
        async with asyncio.timeout(_JOB_S):
            result = await worker.wait()
    except TimeoutError:
        log.warning("a release hangs and is killed", pid=worker.pid)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(worker.kill(), _KILL_S)
        names = " and ".join(str(pair.get("follower")) for pair in pairs(robot))
        raise WorkerError(
            f"the arm on {names} was not let go within {_JOB_S:.0f} s, and is perhaps under torque",
            "hold the arm, and cut its power",
        ) from None
    arm.torque.over(robot)
    return [str(name) for name in result["released"]]
