"""What can go wrong on the wire, on request: lost and damaged packets, a pulled cable, a servo in trouble.

Every call runs in the station's thread, between packets. Not for the physics.
"""

from __future__ import annotations

from collections.abc import Callable

from robot.virtual.bus import BusCounters
from robot.virtual.joints import JOINTS
from robot.virtual.line import PtyLine
from robot.virtual.servo import OVERHEAT_ERROR, OVERLOAD_ERROR, PRESENT_TEMPERATURE, PRESENT_VOLTAGE, Servo


class LineFaults:
    """Faults of one arm's bus."""

    def __init__(self, line: PtyLine, call: Callable[[Callable[[], None]], None]) -> None:
        self._line = line
        self._call = call

    @property
    def counters(self) -> BusCounters:
        """What went over the bus so far."""
        return self._line.bus.counters

    def drop_next(self, n: int = 1) -> None:
        """The servos do not hear the next n requests."""
        self._call(lambda: setattr(self._line.bus, "drop", n))

    def corrupt_next(self, n: int = 1) -> None:
        """The next n replies arrive with a wrong checksum."""
        self._call(lambda: setattr(self._line.bus, "corrupt", n))

    def delay_next(self, seconds: float, n: int = 1) -> None:
        """The next n replies come so much later; what is asked meanwhile is answered at once."""

        def set_delay() -> None:
            self._line.late, self._line.late_s = n, seconds

        self._call(set_delay)

    @property
    def owing(self) -> bool:
        """Whether a late reply is still to come."""
        return self._line.owing

    def bad_line(self, corrupt: float = 0.0, drop: float = 0.0) -> None:
        """From now on this share of the replies is damaged, and this share of the requests is not heard."""

        def set_shares() -> None:
            self._line.bus.corrupt_share, self._line.bus.drop_share = corrupt, drop

        self._call(set_shares)

    def unplug(self) -> None:
        """Pull the USB cable: the port vanishes, open ports fail."""
        self._call(self._line.unplug)

    def plug(self) -> None:
        """Plug it in again: the port is back under its name, the servos kept their state."""
        self._call(self._line.plug)

    def power_cycle(self) -> None:
        """Take the servos' supply away for a moment."""

        def cycle() -> None:
            for servo in self._line.bus.servos:
                servo.power_cycle()

        self._call(cycle)

    def overload(self, joint: str) -> None:
        """The servo trips: error bit in every reply, no torque until torque is switched on again."""
        self._call(lambda: setattr(self._servo(joint), "error", OVERLOAD_ERROR))

    def overheat(self, joint: str) -> None:
        """The servo has cut its torque for heat: its error bit is in every reply until its power comes back."""
        self._call(lambda: setattr(self._servo(joint), "error", OVERHEAT_ERROR))

    def temperature(self, joint: str, celsius: int) -> None:
        """The servo reports this temperature from now on."""
        self._call(lambda: self._servo(joint).pinned.__setitem__(PRESENT_TEMPERATURE, bytes([celsius])))

    def voltage(self, joint: str, volts: float) -> None:
        """The servo reports this supply voltage from now on."""
        self._call(lambda: self._servo(joint).pinned.__setitem__(PRESENT_VOLTAGE, bytes([round(volts * 10)])))

    def _servo(self, joint: str) -> Servo:
        return self._line.bus.servos[JOINTS.index(joint)]


class Faults:
    """`follower` and `leader`; the methods here are the follower's, the arm that usually suffers."""

    def __init__(self, follower: LineFaults, leader: LineFaults) -> None:
        self.follower = follower
        self.leader = leader
        self.drop_next = follower.drop_next
        self.corrupt_next = follower.corrupt_next
        self.unplug = follower.unplug
        self.plug = follower.plug
