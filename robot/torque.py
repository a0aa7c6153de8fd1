"""The torque of an arm: let down gently, verified to be gone, and told to whoever supervises, who acts where we cannot.

Not for when it is time (care.py, ramp.py), nor for what a supervisor does about a worker that died (zk0d/daemon).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from robot.care import GRIPPER
from robot.ear import Ear
from robot.ports import RETRIES, first_line

_LIMIT: Final = 1000
"""Torque_Limit in 0.1 % of stall torque, as servos have it at power-on."""
_GRIPPER_LIMIT: Final = 500
"""What LeRobot sets as the gripper's Max_Torque_Limit: its Torque_Limit from the next power-on."""
_SINK: Final = (600, 400, 250, 120)
_SINK_STEP_S: Final = 0.25


@dataclass
class Torque:
    """The torque of one follower. `gently` is false in a simulation, where nothing drops and nobody is told."""

    bus: Any
    arm: str
    port: str
    ear: Ear
    gently: bool = True
    on: bool = False
    """Perhaps under torque: from before it is switched on until it is seen to be off."""
    tried: bool = False

    def taken(self) -> None:
        """It is being switched on."""
        self.on = True
        self._tell("")

    def gone(self, error: Exception | None, why: str) -> None:
        """The arm was let down (`why` not at rest), or could not be."""
        self.on, self.tried = error is not None, True
        if error is not None:
            self._tell(f"the {self.arm} on {self.port} could not be told to let go: {first_line(error)}")
        else:
            self._tell(f"the {self.arm} was let down where it stood: {why}" if why else "")

    def _tell(self, text: str) -> None:
        if self.gently:
            self.ear.emit("torque", arm=self.arm, port=self.port, on=self.on, text=text)
            if text:
                print(text)


def hold_still(bus: Any) -> None:
    """Before torque: where the servos stand becomes their goal, so that none leaps to the one of an earlier session.

    Call it when the arm is said to be under torque: some servos take it as soon as a goal is written.
    """
    bus.sync_write("Goal_Position", bus.sync_read("Present_Position", normalize=False), normalize=False)


def let_down(arms: Sequence[Torque], why: str = "") -> None:
    """Let down those that are under torque, together; tells how it went and raises nothing. Takes about a second."""
    held = [arm for arm in arms if arm.on]
    failed = sink([arm.bus for arm in held])
    for number, arm in enumerate(held):
        arm.gone(failed.get(number), why)


def sink(buses: Sequence[Any]) -> dict[int, Exception]:
    """Less and less torque within a second, then none, on all of LeRobot's `buses` together; and see that it is gone.

    Gives index → what went wrong with that bus, of which nothing more was asked. Torque_Limit is afterwards as servos
    have it at power-on.
    """
    failed: dict[int, Exception] = {}

    def write(register: str, value: int, gripper: int | None = None) -> None:
        for number, bus in enumerate(buses):
            if number not in failed:
                values = {m: value if gripper is None or m != GRIPPER else gripper for m in bus.motors}
                try:
                    bus.port_handler.is_using = False  # an error in the midst of a request leaves it so, for good
                    bus.sync_write(register, values)
                except Exception as error:
                    failed[number] = error

    for limit in _SINK:
        write("Torque_Limit", limit)
        if len(failed) < len(buses):
            time.sleep(_SINK_STEP_S)
    for _ in range(3):  # nobody answers a sync write
        write("Torque_Enable", 0)
    write("Torque_Limit", _LIMIT, gripper=_GRIPPER_LIMIT)
    for number, bus in enumerate(buses):
        if number not in failed:
            try:
                bus.port_handler.is_using = False
                held = bus.sync_read("Torque_Enable", normalize=False, num_retry=RETRIES)
                if kept := [joint for joint, on in held.items() if on]:
                    raise ConnectionError(f"{', '.join(kept)} keep their torque")
            except Exception as error:
                failed[number] = error
    return failed
