"""What temperature, load, current, voltage and error bits lead to, reading by reading, without a servo."""

from __future__ import annotations

from dataclasses import replace

import pytest

from robot.care import OK, OVERLOAD_BIT, RELEASE, SLOW, WARN, Care, CareTable, Finding, Vital
from zk0d.errors import ConfigError

JOINTS = ("shoulder_lift", "gripper")
WELL = Vital(celsius=31, volts=7.4, load=0.1, amps=0.2)


class Arm:
    """Feeds a Care one reading each quarter of a second."""

    def __init__(self, **table: float) -> None:
        self.care = Care(CareTable.parse(table, "[robot]"), JOINTS)
        self.now = 100.0
        self.found: list[Finding] = []

    def read(self, times: int = 1, lift: Vital = WELL, gripper: Vital = WELL) -> list[Finding]:
        found: list[Finding] = []
        for _ in range(times):
            found += self.care.observe(self.now, {"shoulder_lift": lift, "gripper": gripper})
            self.now += 0.25
        self.found += found
        return found


def test_heat_warns_slows_and_releases_and_cools_with_a_margin() -> None:
    arm = Arm()
    assert arm.read() == [] and arm.care.level == OK and arm.care.reason == ""
    for celsius, level in ((55, WARN), (62, SLOW), (60, SLOW), (58, WARN), (53, WARN), (51, OK)):
        arm.read(lift=replace(WELL, celsius=celsius))
        assert arm.care.level == level, celsius
    assert [f.level for f in arm.found] == ["warn", "slow", "warn", "ok"]
    (last,) = arm.read(lift=replace(WELL, celsius=70))
    assert (last.level, last.joint, last.kind) == ("release", "shoulder_lift", "temperature") and "70 °C" in last.text
    arm.read()
    assert arm.care.level == RELEASE  # it stays, however cool


def test_a_movement_is_no_strain_and_a_lasting_load_is() -> None:
    arm = Arm()
    arm.read()
    for _ in range(5):
        arm.read(1, lift=replace(WELL, load=1.0, amps=2.4))
        arm.read(6)
    assert not [f for f in arm.found if f.kind == "load"]
    arm.read(20, lift=replace(WELL, load=0.95))
    assert arm.care.level == SLOW and "shoulder_lift bears 8" in arm.care.reason
    arm.read(20)
    assert arm.care.level == OK


def test_a_current_that_lasts() -> None:
    arm = Arm()
    arm.read(30, gripper=replace(WELL, amps=1.7))
    assert arm.care.level == WARN and "gripper draws 1.5 A" in arm.care.reason
    arm.read(30, gripper=replace(WELL, amps=2.3))
    assert arm.care.level == SLOW


def test_an_overload_is_cleared_after_a_rest_and_the_third_in_a_minute_ends_it() -> None:
    arm = Arm()
    tripped = replace(WELL, status=OVERLOAD_BIT)
    for time in range(2):
        arm.read(1, lift=tripped)
        assert arm.care.tripped == ("shoulder_lift",) and arm.care.level == SLOW
        assert arm.care.to_clear(arm.now - 0.25) == ()  # it rests
        arm.read(4, lift=tripped)
        assert arm.care.to_clear(arm.now) == ("shoulder_lift",)
        arm.care.clearing("shoulder_lift", arm.now)
        assert arm.care.to_clear(arm.now) == ()
        arm.read(4, lift=tripped)
        assert arm.care.to_clear(arm.now) == ("shoulder_lift",)  # the write was lost: once more
        arm.read(1)
        assert arm.care.tripped == () and arm.care.level == OK, time
    arm.read(1, lift=tripped)
    assert arm.care.level == RELEASE and "3 times within a minute" in arm.care.reason


def test_overloads_far_apart_do_not_add_up() -> None:
    arm = Arm()
    for _ in range(5):
        arm.read(1, lift=replace(WELL, status=OVERLOAD_BIT))
        arm.read(250)
    assert arm.care.level == OK


@pytest.mark.parametrize(("volts", "level"), [(6.9, OK), (6.2, WARN), (5.4, SLOW), (4.0, RELEASE)])
def test_the_supply_sags(volts: float, level: int) -> None:
    arm = Arm()
    arm.read(4)
    arm.read(2, lift=replace(WELL, volts=volts))
    assert arm.care.level == level
    arm.read(2)
    assert arm.care.level == (RELEASE if level == RELEASE else OK)


def test_one_damaged_reading_of_the_voltage_releases_nothing() -> None:
    arm = Arm()
    arm.read(4)
    arm.read(1, lift=replace(WELL, volts=0.0))
    assert arm.care.level == SLOW
    arm.read(2)
    assert arm.care.level == OK


@pytest.mark.parametrize(("bit", "level", "said"), [(4, RELEASE, "too hot"), (1, RELEASE, "supply"), (2, WARN, "sens")])
def test_a_servo_that_says_so_itself(bit: int, level: int, said: str) -> None:
    arm = Arm()
    (found,) = arm.read(lift=replace(WELL, status=bit))
    assert arm.care.level == level and said in found.text


def test_a_grip_is_held_gently_until_it_moves() -> None:
    arm = Arm()
    press = replace(WELL, load=0.5, at=2000)
    arm.read(4, gripper=replace(press, at=2500))
    arm.read(5, gripper=press)
    assert not arm.care.holding
    arm.read(6, gripper=press)
    assert arm.care.holding
    arm.read(10, gripper=replace(press, load=0.3))  # with less torque it presses less, and still holds
    assert arm.care.holding
    arm.read(1, gripper=replace(press, at=2200))
    assert not arm.care.holding


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"warn_c": 70.0}, "do not rise"),
        ({"hot": 70.0}, "care.hot"),
        ({"warn_c": "60"}, "number above zero"),
        ({"hold_torque": 0.8}, "hold_torque"),
    ],
)
def test_a_wrong_table_names_its_key(table: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CareTable.parse(table, "[robot]")
