"""Care on real drivers: registers of the virtual servos are driven, and the arm warns, slows, recovers or lets go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from virtual_pair import be_patient

from robot.arms import open_bench
from robot.bench import Bench
from robot.checkup import check_arm
from robot.config import RobotTable
from robot.virtual.servo import GOAL_POSITION, PRESENT_POSITION, TORQUE_ENABLE, TORQUE_LIMIT, Servo

pytest.importorskip("lerobot")
pytest.importorskip("so101_nexus")


@pytest.fixture(scope="module")
def station() -> Iterator[Any]:
    from robot.virtual.spec import StationSpec
    from robot.virtual.station import VirtualStation

    with VirtualStation(StationSpec("Touch", leader="rest", clock="wall")) as bench:
        yield bench


@pytest.fixture
def bench(station: Any, tmp_path: Path) -> Iterator[Bench]:
    station.write_calibration(tmp_path, "follower", "leader")
    for servo in station._follower.servos:
        servo.pinned.clear()
    station.faults.follower.power_cycle()
    station.begin_take(0)
    table = {"follower": station.follower_port, "leader": station.leader_port, "calibration_dir": str(tmp_path)}
    with open_bench(RobotTable.parse(table), fps=30) as opened:
        for side in opened._sides:
            side.watch._every = 0.0  # every reading brings the vitals
        yield opened


def until(bench: Bench, done: Callable[[], bool], what: str) -> list[dict[str, Any]]:
    """Run the control loop until `done`; gives the findings on the way."""
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline, (what, found, bench.health())
        bench.observe()
        bench.command(bench.leader_pose())
        found += bench.tend()
        time.sleep(0.01)
    return found


def said(found: list[dict[str, Any]], text: str) -> dict[str, Any]:
    """The finding of that text: by chance another joint may bear a load worth telling just then."""
    return next(f for f in found if text in f["text"])


def servo(station: Any, joint: str) -> Any:
    return station._follower.servos[list(station.calibration["follower"]).index(joint)]


def test_nothing_is_the_matter_and_vitals_cost_no_request(station: Any, bench: Bench) -> None:
    station._do(lambda: None)  # what was written when it was opened is served
    be_patient(bench._sides[0].follower.bus)  # else a late answer is asked for twice
    before = station.faults.follower.counters.requests
    for _ in range(10):
        bench.observe()
        bench.command(bench.leader_pose())
        assert bench.tend() == [] or bench.health()["level"] == "warn"
    station._do(lambda: None)  # the last write is served
    assert station.faults.follower.counters.requests - before == 20  # a read and a write each, with vitals or without
    assert bench.health()["celsius"] == 31 and bench.health()["volts"] == pytest.approx(7.4)
    limits = {s.id: s.word(TORQUE_LIMIT) for s in station._follower.servos}
    assert limits[6] == 500 and limits[1] == 1000  # the gripper is limited at once, not from the next power-on


def test_a_hot_joint_slows_the_arm_and_a_hotter_one_lets_it_go(station: Any, bench: Bench) -> None:
    station.faults.follower.temperature("elbow_flex", 63)
    found = until(bench, lambda: bench.health()["level"] == "slow", "slow")
    assert said(found, "elbow_flex is 63 °C hot")
    start, _ = bench.observe()
    bench.command(start)
    sent = bench.command((start + np.float32(30)).astype(np.float32))
    assert np.abs(sent - start).max() <= 45 / 30 * 2 + 0.2
    assert bench.tally()["clipped"] >= 1
    station.faults.follower.temperature("elbow_flex", 69)
    found = until(bench, lambda: bench.released, "released")
    assert said(found, "69 °C")["level"] == "release" and "69 °C" in bench.health()["reason"]
    goals = station.faults.follower.counters.goals
    bench.command(start)
    station._do(lambda: None)
    assert not any(s.table[TORQUE_ENABLE] for s in station._follower.servos)
    assert station.faults.follower.counters.goals == goals  # a released arm is sent nothing


def test_an_overloaded_joint_gets_its_torque_back(station: Any, bench: Bench) -> None:
    joint = servo(station, "wrist_flex")
    until(bench, lambda: joint.torque, "torque")
    station.faults.follower.overload("wrist_flex")
    found = until(bench, lambda: bool(bench._tripped()), "tripped")
    assert said(found, "wrist_flex is overloaded") and not joint.torque
    seen, _ = bench.observe()
    sent = bench.command(seen + np.float32(20))
    at = bench.joints.index("wrist_flex.pos")
    assert sent[at] == pytest.approx(seen[at], abs=0.5)  # it is asked for nothing
    found = until(bench, lambda: not bench._tripped(), "cleared")
    assert joint.torque and bench.health()["level"] != "slow" and said(found, "cleared")


def test_a_servo_that_says_it_is_too_hot_lets_the_arm_go(station: Any, bench: Bench) -> None:
    until(bench, lambda: all(s.torque for s in station._follower.servos), "torque")
    station.faults.follower.overheat("elbow_flex")
    found = until(bench, lambda: bench.released, "released")
    assert said(found, "too hot")["level"] == "release" and "elbow_flex" in said(found, "too hot")["text"]
    assert not any(s.table[TORQUE_ENABLE] for s in station._follower.servos)


def test_a_sagging_supply_slows_and_then_lets_go(station: Any, bench: Bench) -> None:
    until(bench, lambda: len(bench._sides[0].watch.care._reference) == 4, "reference")
    station.faults.follower.voltage("shoulder_pan", 5.4)
    until(bench, lambda: bench.health()["level"] == "slow", "slow")
    station.faults.follower.voltage("shoulder_pan", 4.0)
    found = until(bench, lambda: bench.released, "released")
    assert said(found, "the supply is down to 4.0 V")["level"] == "release"


@pytest.mark.parametrize("wakes", [False, True])
def test_a_servo_whose_power_was_interrupted_lets_the_arm_go(
    station: Any, bench: Bench, wakes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    joint = servo(station, "elbow_flex")
    monkeypatch.setattr(Servo, "goal_wakes", wakes)  # the next goal, a period later, brings it under torque again
    until(bench, lambda: all(s.torque for s in station._follower.servos), "torque")
    station._do(joint.power_cycle)
    found = until(bench, lambda: bench.released, "released")
    assert said(found, "elbow_flex has lost its torque: was its power interrupted?")["level"] == "release"
    assert not any(s.table[TORQUE_ENABLE] for s in station._follower.servos)


def test_a_grip_is_held_with_less(station: Any, bench: Bench) -> None:
    bench._sides[0].watch.care.table = RobotTable.parse(
        {"follower": "virtual:Touch", "care": {"grip_after_s": 0.2}}
    ).care
    gripper = servo(station, "gripper")
    gripper.pinned[60] = (450).to_bytes(2, "little")
    until(bench, lambda: gripper.word(TORQUE_LIMIT) == 300, "held")
    del gripper.pinned[60]
    gripper.pinned[56] = (3000).to_bytes(2, "little")
    until(bench, lambda: gripper.word(TORQUE_LIMIT) == 500, "let go")


def test_an_overloaded_arm_is_limp_when_it_is_closed(station: Any, tmp_path: Path) -> None:
    station.faults.follower.power_cycle()
    station.write_calibration(tmp_path, "follower", "leader")
    table = {"follower": station.follower_port, "leader": station.leader_port, "calibration_dir": str(tmp_path)}
    for _ in range(2):  # the port is free again, and the overload is cleared when the arm is opened
        with open_bench(RobotTable.parse(table), fps=30) as opened:
            assert all(s.torque for s in station._follower.servos)
            opened.observe()
            station.faults.follower.overload("shoulder_pan")
            opened._sides[0].follower.bus.port_handler.is_using = True  # as an error in a request leaves it
        assert not any(s.table[TORQUE_ENABLE] for s in station._follower.servos)
    assert "error bits 0x20" in str(check_arm(RobotTable.parse(table), "follower", 1))


def test_an_arm_that_comes_under_torque_stands_still(
    station: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also servos that keep the goal of the last session, from where somebody has moved them since."""
    station.faults.follower.power_cycle()
    station.write_calibration(tmp_path, "follower", "leader")
    monkeypatch.setattr(Servo, "keeps_goal", True)
    servos = station._follower.servos
    station._do(lambda: [s.put_word(GOAL_POSITION, 1000) for s in servos])
    table = {"follower": station.follower_port, "leader": station.leader_port, "calibration_dir": str(tmp_path)}
    with open_bench(RobotTable.parse(table), fps=30):
        for s in servos:
            assert s.torque and abs(s.word(GOAL_POSITION) - s.word(PRESENT_POSITION)) < 60, s.id
