"""Care for the servos: what their temperature, load, current, voltage and error bits mean, and what follows from it.

A machine without I/O: readings in, findings and wishes out (warn, slow, release; clear an overload, hold gently).
Not for reading registers or writing them (vitals.py).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from zk0d.errors import ConfigError

LEVELS: Final = ("ok", "warn", "slow", "release")
OK, WARN, SLOW, RELEASE = range(4)
GRIPPER: Final = "gripper"

VOLTAGE_BIT, SENSOR_BIT, HEAT_BIT, CURRENT_BIT, OVERLOAD_BIT = 0x01, 0x02, 0x04, 0x08, 0x20
"""Status register (65) of Feetech's STS series; for all but SENSOR the servo has cut its torque by itself."""

_SMOOTH_S = 2.0
"""Time constant of load and current: a movement is no lasting load."""
_COOLER_C = 3.0
"""A joint counts as cooler again only this far below a threshold."""
_REST_S = 1.0
"""How long an overloaded servo stays limp before its torque comes back."""
_OVERLOADS = 3
_OVERLOADS_WITHIN_S = 60.0
_SAG_WARN, _SAG_SLOW = 0.85, 0.75
"""Shares of the voltage that the arm had at the start."""
_REFERENCE_READINGS = 4
_STILL_STEPS = 80
"""A gripper that moves less than this many encoder steps (7°) stands still."""


@dataclass(frozen=True)
class Vital:
    """One servo's reading. `load`, `amps` unsigned: share of stall torque 0…1, A; `at`: position in encoder steps."""

    celsius: float
    volts: float
    load: float
    amps: float
    status: int = 0
    at: int = 0
    torque: bool = True
    """Torque_Enable, which nobody but us switches; off also for a servo that has begun anew, as after a lost supply:
    some take torque again by the next goal, from wherever they sank to."""


@dataclass(frozen=True)
class CareTable:
    """The `[robot.care]` table. Temperatures in °C, loads as shares of stall torque, current in A, voltage in V."""

    warn_c: float = 55.0
    slow_c: float = 62.0
    release_c: float = 68.0
    warn_load: float = 0.7
    slow_load: float = 0.85
    warn_a: float = 1.5
    slow_a: float = 2.0
    release_v: float = 4.2
    slow_speed: float = 45.0
    """Units per second that a goal may move while slow."""
    grip_load: float = 0.35
    """A gripper that presses harder than this and stands still holds something."""
    grip_after_s: float = 2.0
    grip_torque: float = 0.5
    """Most torque the gripper may use, and while it holds something: shares of stall torque."""
    hold_torque: float = 0.3

    @staticmethod
    def parse(table: Any, where: str) -> CareTable:
        """Read the table. Raises ConfigError naming the key, the value and what is accepted."""
        if not isinstance(table, Mapping):
            raise ConfigError(f"{where}: care = {table!r} cannot be used", f"use a table {where[:-1]}.care]")
        known = {f.name for f in fields(CareTable)}
        for key, value in table.items():
            if key not in known:
                raise ConfigError(f"{where}: care.{key} = {value!r} is not known", f"known are {', '.join(known)}")
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1000:
                raise ConfigError(f"{where}: care.{key} = {value!r} cannot be used", "use a number above zero")
        care = CareTable(**{k: float(v) for k, v in table.items()})
        if not care.warn_c <= care.slow_c <= care.release_c:
            raise ConfigError(f"{where}: care: warn_c, slow_c, release_c do not rise", "for example 55, 62, 68")
        if care.hold_torque > care.grip_torque or care.grip_torque > 1:
            raise ConfigError(f"{where}: care: hold_torque, grip_torque, 1 do not rise", "for example 0.3 and 0.5")
        return care


@dataclass(frozen=True)
class Finding:
    """A change for the better or worse: what a person is told. `level` is a word of LEVELS; `joint` "" is the arm."""

    level: str
    joint: str
    kind: str
    text: str

    def to_json(self) -> dict[str, str]:
        return {"level": self.level, "joint": self.joint, "kind": self.kind, "text": self.text}


@dataclass
class _Joint:
    load: float = 0.0
    amps: float = 0.0
    seen_at: float = -math.inf
    overloads: tuple[float, ...] = ()
    tripped_at: float | None = None
    cleared_at: float = -math.inf
    still_since: float = math.inf
    at: int = 0
    limp: int = 0
    """Readings in a row without torque."""


class Care:
    """One arm's health. `observe` at each reading; the properties say what the loop is to do."""

    def __init__(self, table: CareTable, joints: tuple[str, ...]) -> None:
        self.table = table
        self._joints = {name: _Joint() for name in joints}
        self._levels: dict[tuple[str, str], int] = {}
        self._texts: dict[tuple[str, str], str] = {}
        self._reference: list[float] = []
        self._low_v = 0
        self.hottest = 0.0
        self.lowest_v = 0.0
        self.holding = False
        """The gripper holds something: `hold_torque` is enough."""

    @property
    def level(self) -> int:
        """OK, WARN, SLOW or RELEASE, the worst of all joints. RELEASE stays."""
        return max(self._levels.values(), default=OK)

    @property
    def reason(self) -> str:
        """What is worst now, in a sentence; "" when all is well."""
        if self.level == OK:
            return ""
        return "; ".join(self._texts[key] for key, level in self._levels.items() if level == self.level)

    @property
    def tripped(self) -> tuple[str, ...]:
        """Joints that are overloaded: limp or weak, to follow nothing."""
        return tuple(name for name, joint in self._joints.items() if joint.tripped_at is not None)

    def to_clear(self, now: float) -> tuple[str, ...]:
        """Overloaded joints that have rested: switch their torque off and on. Asked again until the bit is gone."""
        return tuple(
            name
            for name, joint in self._joints.items()
            if joint.tripped_at is not None and now - joint.tripped_at >= _REST_S and now - joint.cleared_at >= _REST_S
        )

    def clearing(self, joint: str, now: float) -> None:
        """Its torque is being switched off and on."""
        self._joints[joint].cleared_at = now

    def observe(self, now: float, vitals: Mapping[str, Vital]) -> list[Finding]:
        """Take in a reading of the arm (`now`: monotonic s); gives what has changed since the last one."""
        found: list[Finding] = []
        self.hottest = max(v.celsius for v in vitals.values())
        self.lowest_v = min(v.volts for v in vitals.values())
        for name, vital in vitals.items():
            joint = self._joints[name]
            share = 1.0 if joint.seen_at == -math.inf else 1 - math.exp(-(now - joint.seen_at) / _SMOOTH_S)
            start = 0.0 if joint.seen_at == -math.inf else share
            joint.load += start * (vital.load - joint.load)
            joint.amps += start * (vital.amps - joint.amps)
            joint.seen_at = now
            found += self._heat(name, vital)
            found += self._strain(name, joint)
            found += self._bits(name, joint, vital.status, now)
            found += self._power(name, joint, vital.torque)
            if name == GRIPPER:
                self._grip(joint, vital, now)
        return found + self._supply([v.volts for v in vitals.values()])

    def _set(self, joint: str, kind: str, level: int, text: str) -> list[Finding]:
        key = (joint, kind)
        before = self._levels.get(key, OK)
        if before == RELEASE or level == before:
            return []
        self._levels[key], self._texts[key] = level, text
        said = text if level > before or level > OK else f"{joint or 'the supply'} is well again ({text})"
        return [Finding(LEVELS[level], joint, kind, said)]

    def _graded(
        self, joint: str, kind: str, value: float, steps: tuple[float, ...], back: float, text: str
    ) -> list[Finding]:
        """The level of `value` against rising thresholds; down again only `back` below one."""
        before = self._levels.get((joint, kind), OK)
        level = sum(value >= step for step in steps)
        if level < before:
            level = max(level, sum(value >= step - back for step in steps[:before]))
        return self._set(joint, kind, level, text)

    def _heat(self, name: str, vital: Vital) -> list[Finding]:
        t = self.table
        steps = (t.warn_c, t.slow_c, t.release_c)
        text = f"{name} is {vital.celsius:.0f} °C hot"
        return self._graded(name, "temperature", vital.celsius, steps, _COOLER_C, text)

    def _strain(self, name: str, joint: _Joint) -> list[Finding]:
        t = self.table
        found: list[Finding] = []
        if name != GRIPPER:  # which is limited by itself, and meant to press
            text = f"{name} bears {joint.load:.0%} of its stall torque"
            found += self._graded(name, "load", joint.load, (t.warn_load, t.slow_load), 0.1, text)
        text = f"{name} draws {joint.amps:.1f} A"
        return found + self._graded(name, "current", joint.amps, (t.warn_a, t.slow_a), 0.2, text)

    def _bits(self, name: str, joint: _Joint, status: int, now: float) -> list[Finding]:
        found: list[Finding] = []
        if status & HEAT_BIT:
            found += self._set(name, "heat bit", RELEASE, f"{name} has switched itself off: too hot")
        if status & VOLTAGE_BIT:
            found += self._set(name, "voltage bit", RELEASE, f"{name} has switched itself off: its supply is wrong")
        if status & SENSOR_BIT:
            found += self._set(name, "sensor bit", WARN, f"{name} reports an error of its position sensor")
        if status & (OVERLOAD_BIT | CURRENT_BIT):
            if joint.tripped_at is None:
                joint.tripped_at, joint.cleared_at = now, -math.inf
                joint.overloads = (*(t for t in joint.overloads if now - t <= _OVERLOADS_WITHIN_S), now)
                count = len(joint.overloads)
                if count >= _OVERLOADS:
                    text = f"{name} was overloaded {count} times within a minute"
                    return found + self._set(name, "overload", RELEASE, text)
                what = "overloaded" if status & OVERLOAD_BIT else "over its current"
                found += self._set(name, "overload", SLOW, f"{name} is {what}: free it; its torque comes back")
        elif joint.tripped_at is not None:
            joint.tripped_at = None
            found += self._set(name, "overload", OK, "its overload is cleared")
        return found

    def _power(self, name: str, joint: _Joint, torque: bool) -> list[Finding]:
        """A servo whose power was interrupted is limp, and knows no goal: the arm is not what the others think."""
        joint.limp = 0 if torque or joint.tripped_at is not None else joint.limp + 1
        if joint.limp < 2:  # while an overload is cleared it is off for a period
            return []
        return self._set(name, "torque", RELEASE, f"{name} has lost its torque: was its power interrupted?")

    def _supply(self, volts: list[float]) -> list[Finding]:
        low = min(volts)
        if len(self._reference) < _REFERENCE_READINGS:
            self._reference.append(statistics.median(volts))
        reference = statistics.median(self._reference)
        self._low_v = self._low_v + 1 if low < self.table.release_v else 0
        text = f"the supply is down to {low:.1f} V"
        if self._low_v >= 2:  # one reading may be damaged
            return self._set("", "voltage", RELEASE, text)
        level = SLOW if low < _SAG_SLOW * reference else WARN if low < _SAG_WARN * reference else OK
        if level < self._levels.get(("", "voltage"), OK) and low < (_SAG_WARN + 0.03) * reference:
            return []
        return self._set("", "voltage", level, text if level else f"{low:.1f} V")

    def _grip(self, joint: _Joint, vital: Vital, now: float) -> None:
        """Holding: presses and stands still for a while, until it moves."""
        moved = abs(vital.at - joint.at) > _STILL_STEPS
        if moved or (vital.load < self.table.grip_load and not self.holding):
            joint.at, joint.still_since, self.holding = vital.at, now, False
        elif now - joint.still_since >= self.table.grip_after_s:
            self.holding = True
