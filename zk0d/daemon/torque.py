"""No arm stays under torque: what workers say of it, what is done when one dies, and letting go on a person's word.

Kept in the store, so that the next daemon knows. Not for how an arm is let down (robot/torque.py, robot/tending.py).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import structlog

from zk0d.daemon.robot_table import is_virtual
from zk0d.daemon.store import Store
from zk0d.errors import RobotError, Zk0Error

if TYPE_CHECKING:
    from zk0d.daemon.arm import Arm, Live
    from zk0d.supervise import Worker

log = structlog.get_logger("torque")

KEY = "arm_torque"
"""The store's key: the `[robot]` table of the session whose arms are, or may be, under torque, and which (port → why
it could not be let go, or ""). None when all are limp."""
MOVES = ("recording", "rollout", "teleop")
"""Sessions that bring an arm under torque."""
_HINT = "hold it; then `zk0ctl robot release`, or cut its power"
_LET_GO_S = 5.0
"""How long a session that is asked to let go may take, which needs one; then it is killed, and we do it."""
_OVER_S = 60.0


class Torque:
    """What is known of it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def ports(self) -> dict[str, str]:
        """Ports of arms under torque → why they could not be let go, or ""."""
        return dict((self._store.get(KEY) or {}).get("on", {}))

    @property
    def robot(self) -> dict[str, Any] | None:
        """The table that these arms are opened with."""
        kept = self._store.get(KEY)
        return kept["robot"] if kept else None

    def heard(self, event: dict[str, Any], robot: dict[str, Any]) -> None:
        """A worker's `torque` event."""
        on, port, text = self.ports, str(event.get("port")), str(event.get("text") or "")
        if event.get("on"):
            on[port] = text
        else:
            on.pop(port, None)
        self._store.put(KEY, {"robot": robot, "on": on, "at": time.time()} if on else None)
        if text:
            log.warning("torque", port=port, on=bool(event.get("on")), reason=text)
            self._store.event("care", text)

    def over(self) -> None:
        """All are limp."""
        self._store.put(KEY, None)


def problem(store: Store, session: bool) -> tuple[str, str] | None:
    """What status says of an arm that may be under torque with nobody at it: message and hint."""
    kept = store.get(KEY)
    if not kept or (session and not any(kept["on"].values())):
        return None
    at = time.strftime("%H:%M", time.localtime(kept["at"]))
    why = "; ".join(filter(None, kept["on"].values()))
    said = f"the arm on {', '.join(kept['on'])} may be under torque since {at}" + (f": {why}" if why else "")
    return said, _HINT


async def after_death(arm: Arm, live: Live, how: str) -> str:
    """A worker of `live` has ended and left arms under torque: a job of its own lets them down → how that went.

    Raises nothing.
    """
    robot = arm.torque.robot
    if robot is None:
        return ""
    log.warning("an arm was left under torque", kind=live.kind, how=how)
    try:
        released = await _job(arm, live, robot)
        said = f"{how}: {' and '.join(released)} was let down, and is limp"
    except Zk0Error as error:
        said = f"{how}, and the arm could not be let go: {error.message}"
    arm.store.event("care", said)
    return said


async def left_behind(arm: Arm) -> None:
    """At the daemon's start: let go what an earlier one, or its worker, could not."""
    live = _live("zk0d")
    arm.hold(live)
    try:
        await after_death(arm, live, "zk0d ended with the arm under torque")
    finally:
        arm.release()


async def release(arm: Arm, overrides: dict[str, Any], by: str) -> dict[str, Any]:
    """Let the arm go on a person's word: by the session that moves it, else by a job of its own.

    Gives which arms are limp now, and which session was ended for it. Raises RobotError when there is no arm, or
    another session has it.
    """
    live = arm.live
    if live is not None and live.kind in MOVES:
        return await _asked(arm, live, by)
    kept = None if any(overrides.values()) else arm.torque.robot
    robot = kept or arm.robot(overrides)
    if is_virtual(robot):
        raise RobotError("the arm is virtual: there is nothing to let go", "--follower PORT names a real one")
    live = _live(by)
    arm.hold(live)
    try:
        released = await _job(arm, live, robot)
    finally:
        arm.release()
    arm.store.event("care", f"{' and '.join(released)} was let down on the word of {by}")
    return {"released": released, "ended": ""}


async def _asked(arm: Arm, live: Live, by: str) -> dict[str, Any]:
    """The session's own worker lets go: it has the port. One that does not is killed, and `Arm.run` does the rest."""
    if live.robot and is_virtual(live.robot):
        raise RobotError(
            f"the arm of this {live.kind} is virtual: there is nothing to let go", "`zk0ctl record stop` ends it"
        )
    ports = list(arm.torque.ports)
    live.stopping, live.why = True, f"told to let the arm go by {by}"
    worker = live.worker
    if worker is not None:
        worker.send("release")
        if not await _limp(arm, worker, ports, _LET_GO_S):
            log.warning("a session does not let go and is killed", kind=live.kind)
            await worker.kill()
    deadline = time.monotonic() + _OVER_S
    while (arm.live is live and (not ports or arm.torque.ports)) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    if left := arm.torque.ports:
        why = "; ".join(filter(None, left.values())) or f"the arm on {', '.join(left)} does not answer"
        raise RobotError(why, "hold the arm, and cut its power")
    return {"released": [f"the follower on {port}" for port in ports], "ended": live.kind}


async def _limp(arm: Arm, worker: Worker, ports: list[str], seconds: float) -> bool:
    """Whether within `seconds` the arms are limp, or, where none was under torque yet, the worker has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not worker.running or (ports and not arm.torque.ports):
            return True
        await asyncio.sleep(0.02)
    return False


def _live(by: str) -> Live:
    from zk0d.daemon.arm import Live

    return Live("release", by, time.time())


async def _job(arm: Arm, live: Live, robot: dict[str, Any]) -> list[str]:
    """Run robot.tending's `release`. Raises WorkerError saying which arms may still be under torque."""
    job = {"action": "release", "robot": robot}
    worker = await arm.workers.start("tending", f"{live.worker_name}r", job, lambda event: None)
    result = await worker.wait()
    arm.torque.over()
    return [str(name) for name in result["released"]]
