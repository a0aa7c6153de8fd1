"""The control socket's `robot_*` operations: what is plugged in, the configuration, and tending an arm by a worker.

The dialogue of a step-wise job is answered by `record_control` (next, stop), as takes are. Not for recording.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from zk0d import devices
from zk0d.daemon import torque
from zk0d.daemon.arm import Arm, Live
from zk0d.daemon.robot_table import SIDES
from zk0d.errors import UsageError, Zk0Error

if TYPE_CHECKING:
    from zk0d.control_server import ControlConnection
    from zk0d.daemon.service import Service

TENDING = ("setup", "calibrate", "doctor", "teleop")
_OVERRIDES = ("follower", "leader")


async def op_robot_find(service: Service, request: dict[str, Any], connection: ControlConnection) -> Any:
    return [d.to_json() for d in devices.find()]


async def op_robot_show(service: Service, request: dict[str, Any], connection: ControlConnection) -> Any:
    """The `[robot]` table, and for each arm and camera where it is now, or why that cannot be told."""
    robot = service.config.robot
    bound: list[tuple[str, str, str]] = []
    for side, pair in [(f"{s} ", robot[s]) for s in SIDES if robot.get(s)] or [("", robot)]:
        bound += [(side + role, "port", pair.get(role, "")) for role in ("follower", "leader")]
        prefix = side.replace(" ", "_")
        cameras = pair.get("cameras", {}).items()
        bound += [(f"camera {prefix}{n}", "camera", str(c.get("source", ""))) for n, c in cameras]
    if any(robot.get(s) for s in SIDES):
        bound += [(f"camera {n}", "camera", str(c.get("source", ""))) for n, c in robot.get("cameras", {}).items()]
    places: dict[str, dict[str, str]] = {}
    for part, kind, name in bound:
        try:
            places[part] = {"bound": name, "at": devices.resolve(name, kind) if name else "", "problem": ""}
        except Zk0Error as error:
            places[part] = {"bound": name, "at": "", "problem": error.message}
    return {"robot": robot, "places": places, "files": list(service.config.files)}


async def op_robot_tend(service: Service, request: dict[str, Any], connection: ControlConnection) -> Any:
    """Run one job of robot.tending; it holds the arm and ends with its result. The caller may leave."""
    action = str(request.get("action"))
    if action not in TENDING:
        raise UsageError(f"robot {action!r} is not known", f"one of {', '.join(TENDING)}")
    asked = {k: str(v) for k, v in (request.get("robot") or {}).items() if k in _OVERRIDES and v}
    job = {
        "action": action, "role": str(request.get("role") or ""), "robot": service.arm.robot(asked),
        "fps": int(request.get("fps") or service.config["record", "fps"]),
        "seconds": float(request.get("seconds") or 0), "reads": int(request.get("reads") or 200),
        "folder": str(service.datasets_folder),
    }  # fmt: skip
    live = Live.asked(action, connection)
    with service.arm.waited_for(live):
        return await service.arm.independent(_tend(service.arm, live, job, connection))


async def op_robot_release(service: Service, request: dict[str, Any], connection: ControlConnection) -> Any:
    """Let the arm go, wherever it is: the session that moves it is told to, else a job of its own does it."""
    asked = {k: str(v) for k, v in (request.get("robot") or {}).items() if k in _OVERRIDES and v}
    await service.arm.settled()
    work = torque.release(service.arm, asked, connection.user, unpowered=bool(request.get("unpowered")))
    return await service.arm.independent(work)


async def _tend(arm: Arm, live: Live, job: dict[str, Any], connection: ControlConnection) -> dict[str, Any]:
    await arm.beforehand(live, arm.settled())
    live.since = time.time()
    arm.hold(live)
    try:
        return await arm.run(live, "tending", job, connection.emit)
    finally:
        arm.release()
