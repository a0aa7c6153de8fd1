"""Gives the servos of a new arm their ids, one at a time. Not for calibration.

All servos are delivered with id 1, so only one may be on the bus while it gets its own.
"""

from __future__ import annotations

from typing import Any

from robot.ports import device_errors
from robot.steps import Aborted, Steps
from zk0d.errors import RobotError


def give_ids(bus: Any, steps: Steps) -> dict[str, int]:
    """Walk the person through all joints of a LeRobot FeetechMotorsBus, hand first; → the id of each.

    A step is repeated, with the reason, until exactly one servo is on the bus; a servo with its id already keeps it.
    Raises RobotError.
    """
    given: dict[str, int] = {}
    try:
        _each(bus, steps, given)
    except Aborted as error:
        error.done = tuple(given)
        raise
    return given


def _each(bus: Any, steps: Steps, given: dict[str, int]) -> None:
    for motor in reversed(list(bus.motors)):
        while True:
            steps.ask(motor, f"connect the controller board to the servo of {motor} and to no other; switch power on")
            with device_errors(f"the servo of {motor}", bus.port):
                baud, found = _on_the_bus(bus, motor)
                wanted = bus.motors[motor].id
                if len(found) == 1 and (only := next(iter(found))) in given.values():
                    steps.say("again", step=motor, text=f"this is servo {only}, named already: connect that of {motor}")
                    continue
                if len(found) == 1 and next(iter(found.values())) == bus.model_number_table[bus.motors[motor].model]:
                    bus.setup_motor(motor, initial_baudrate=baud, initial_id=next(iter(found)))
                    if bus.ping(motor, num_retry=2) is None:
                        raise RobotError(f"{motor} does not answer as servo {wanted}", "switch it off and on; again")
                    break
            steps.say("again", step=motor, text=_why(motor, found))
        given[motor] = wanted
        steps.say("named", step=motor, id=wanted, was=next(iter(found)))


def _on_the_bus(bus: Any, motor: str) -> tuple[int, dict[int, int]]:
    """Baud rate at which something answers, and {id: model} of what does; the usual rate first."""
    rates = [bus.default_baudrate, *bus.model_baudrate_table[bus.motors[motor].model]]
    for baud in dict.fromkeys(rates):
        bus.set_baudrate(baud)
        found = bus.broadcast_ping(num_retry=1)
        if found:
            return baud, dict(found)
    bus.set_baudrate(bus.default_baudrate)
    return bus.default_baudrate, {}


def _why(motor: str, found: dict[int, int]) -> str:
    if not found:
        return "no servo answers: check the power supply and the cable from the board to the servo"
    if len(found) > 1:
        return f"{len(found)} servos answer (ids {', '.join(map(str, sorted(found)))}): leave only that of {motor}"
    return f"the servo is of model {next(iter(found.values()))}, not an STS3215: is it the right one?"
