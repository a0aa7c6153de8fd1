"""Reads the servos' vitals along with their positions, and does for them what care.py wishes, without hurting the loop.

Every quarter of a second the sync read of positions asks for 31 bytes a servo instead of 2 (torque to current): no
request more, 1.7 ms more on the wire. Writes are sync writes, which no servo answers, one a period. Not for deciding.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Final

from robot.care import CURRENT_BIT, GRIPPER, OVERLOAD_BIT, RELEASE, Care, CareTable, Finding, Vital

EVERY_S: Final = 0.25
POSITION: Final = (56, 2)
_WHOLE: Final = (40, 31)  # registers 40 to 70
_TORQUE, _ACCELERATION = (40, 1), (41, 1)
_LOAD, _VOLTAGE, _TEMPERATURE, _STATUS, _CURRENT = (60, 2), (62, 1), (63, 1), (65, 1), (69, 2)
_GOAL_S: Final = 0.02
"""After this a servo has done what comes of a goal: some take torque by it, a moment later."""
_AMPS: Final = 0.0065
_LIMIT: Final = 1000
"""Torque_Limit in 0.1 % of stall torque."""


def clear_first(bus: Any) -> None:
    """An overload from before is cleared when `bus` is opened: until then a servo answers all with an error bit, which
    LeRobot takes for a missing servo."""
    greet = bus._handshake

    def handshake() -> None:
        _clear_overloads(bus)
        greet()

    bus._handshake = handshake


def _clear_overloads(bus: Any) -> None:
    """Torque off and on where the servo stands, then off; nothing when all is well or somebody does not answer."""
    read = type(bus)._sync_read  # not the patient one: a missing servo is told by the handshake
    status, outcome = read(bus, *_STATUS, bus.ids, num_retry=1, raise_on_error=False)
    tripped = [name for name, m in bus.motors.items() if status[m.id] & (OVERLOAD_BIT | CURRENT_BIT)]
    if not bus._is_comm_success(outcome) or not tripped:
        return
    at, outcome = read(bus, *POSITION, bus.ids, num_retry=3, raise_on_error=False)
    if bus._is_comm_success(outcome):
        bus.sync_write("Torque_Enable", dict.fromkeys(tripped, 0))
        bus.sync_write("Goal_Position", {name: at[bus.motors[name].id] for name in tripped}, normalize=False)
        bus.sync_write("Torque_Enable", dict.fromkeys(tripped, 1))
        time.sleep(_GOAL_S)
        bus.sync_write("Torque_Enable", dict.fromkeys(tripped, 0))


class LineCounter:
    """Counts the tries on a bus that brought nothing or nonsense, those that were made good included."""

    def __init__(self, bus: Any) -> None:
        self.errors = 0
        self.requests = 0
        for owner, name in ((bus.sync_reader, "txRxPacket"), (bus.packet_handler, "txRxPacket")):
            self._count(owner, name)

    def _count(self, owner: Any, name: str) -> None:
        ask = getattr(owner, name)

        def counted(*given: Any) -> Any:
            answer = ask(*given)
            self.requests += 1
            self.errors += (answer[1] if isinstance(answer, tuple) else answer) != 0
            return answer

        setattr(owner, name, counted)


class ServoWatch:
    """Watches the follower of LeRobot's `bus`. `step` once per control period, from the loop's own thread."""

    def __init__(self, bus: Any, table: CareTable, every_s: float = EVERY_S) -> None:
        self.care = Care(table, tuple(bus.motors))
        self.released = False
        """Let go for good: the bench asks nothing of it any more."""
        self._bus = bus
        self._every = every_s
        self._due = 0.0
        self._fresh: dict[str, Vital] = {}
        self._chores: deque[tuple[str, dict[str, int]]] = deque()
        self._grip = round(table.grip_torque * _LIMIT)
        self._hold = round(table.hold_torque * _LIMIT)
        self._gripping = 0
        self._begun: dict[str, int] = {}
        """Acceleration that each servo was given: one that has begun anew has forgotten it, whatever its torque is."""
        self._ask = bus._sync_read
        bus._sync_read = self._sync_read

    def begin(self) -> None:
        """The arm has been configured: note how, and limit the gripper now: LeRobot's Max_Torque_Limit counts from the
        next power-on only."""
        self._begun = dict(self._bus.sync_read("Acceleration", normalize=False))
        if GRIPPER in self._bus.motors:
            self._bus.sync_write("Torque_Limit", {GRIPPER: self._grip})
            self._gripping = self._grip

    def _sync_read(self, address: int, length: int, ids: list[int], **named: Any) -> Any:
        now = time.monotonic()
        if (address, length) != POSITION or now < self._due or len(ids) < len(self._bus.motors):
            return self._ask(address, length, ids, **named)
        self._due = now + self._every
        _, outcome = self._ask(*_WHOLE, ids, **named)
        get = self._bus.sync_reader.getData
        if self._bus._is_comm_success(outcome):
            now_is = {name: get(motor.id, *_ACCELERATION) for name, motor in self._bus.motors.items()}
            anew = {name for name, value in self._begun.items() if value != now_is[name]}
            self._fresh = {name: _vital(get, motor.id, name in anew) for name, motor in self._bus.motors.items()}
        return {i: get(i, *POSITION) for i in ids}, outcome

    def step(self, now: float) -> list[Finding]:
        """Judge a fresh reading, if there is one, and do at most one thing for the servos. Gives what has changed."""
        found: list[Finding] = []
        if self._fresh:
            fresh, self._fresh = self._fresh, {}
            found = self.care.observe(now, fresh)
            self._wish(now)
        if self._chores:
            what, values = self._chores.popleft()
            self._bus.sync_write(what, values)
        return found

    def _wish(self, now: float) -> None:
        if self.care.level == RELEASE:
            return
        for joint in self.care.to_clear(now):
            # Its goal is where it stands for as long as it is tripped (limits.py), so torque on does not make it jump.
            self.care.clearing(joint, now)
            self._chores += [("Torque_Enable", {joint: 0}), ("Torque_Enable", {joint: 1})]
        wanted = self._hold if self.care.holding else self._grip
        if self._gripping and wanted != self._gripping:
            self._gripping = wanted
            self._chores.append(("Torque_Limit", {GRIPPER: wanted}))


def _vital(get: Any, servo: int, anew: bool) -> Vital:
    load, current = get(servo, *_LOAD), get(servo, *_CURRENT)
    return Vital(
        celsius=float(get(servo, *_TEMPERATURE)),
        volts=get(servo, *_VOLTAGE) / 10,
        load=(load & 0x3FF) / 1000,  # bit 10 is the direction
        amps=(current & 0x7FFF) * _AMPS,
        status=get(servo, *_STATUS),
        at=get(servo, *POSITION) & 0x7FFF,
        torque=bool(get(servo, *_TORQUE)) and not anew,
    )
