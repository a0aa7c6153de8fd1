"""An arm's ids, calibration and check-up by LeRobot's own drivers, on servos behind a pseudo-terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import virtual_pair
from virtual_pair import Hand

from robot.calibration import calibrate
from robot.checkup import check_arm, check_disk
from robot.config import RobotTable
from robot.servo_ids import give_ids
from robot.steps import Aborted
from robot.tending import arm

pytest.importorskip("lerobot")
pytest.importorskip("so101_nexus")


class Person:
    """Answers steps as a person at the arm does: `acts` maps a step to what is done before `next`."""

    def __init__(self, acts: Callable[[str, int], None]) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []
        self._acts = acts
        self._turn = 0
        self._waiting = 0

    def say(self, event: str, **fields: Any) -> None:
        self.said.append((event, fields))
        if event == "step" and fields["step"] == "ranges":
            self._turn, self._waiting = 0, 12

    def ask(self, name: str, text: str) -> None:
        self.say("step", step=name, text=text)
        self._acts(name, 0)

    def answered(self, wait_s: float = 0.0) -> bool:
        self._turn += 1
        self._acts("ranges", self._turn)
        return self._turn >= self._waiting

    def events(self, name: str) -> list[dict[str, Any]]:
        return [f for e, f in self.said if e == name]


def table(station: Any, folder: Path) -> RobotTable:
    return RobotTable.parse(virtual_pair.table(station, folder))


def test_calibrate_refuses_the_seam_and_writes_what_lerobot_reads(station: Any, tmp_path: Path) -> None:
    from lerobot.teleoperators.so_leader import SO101Leader, SOLeaderTeleopConfig

    hand, middles = Hand(station), [0]

    def acts(step: str, turn: int) -> None:
        if step == "middle":
            middles[0] += 1
            hand.put(*[3000] * 6)
        elif middles[0] == 1:  # first time: the shoulder goes too far to one side
            hand.put(3000, 3000 + turn * 500, 3000, 3000, 3000, 3000)
        else:
            reach = round(900 * np.sin(turn))
            hand.put(*[3000 + reach] * 6)

    robot = table(station, tmp_path)
    person = Person(acts)
    with arm(robot, "leader") as device:
        result = calibrate(device, person)  # type: ignore[arg-type]
    again = person.events("again")
    assert "shoulder_lift went over the encoder's seam" in again[0]["text"] and middles[0] == 2
    assert json.loads(Path(result["old"]).read_text()).keys() == result["ranges"].keys()
    theirs = SO101Leader(SOLeaderTeleopConfig(port=station.leader_port, id="leader", calibration_dir=tmp_path))
    assert theirs.calibration["wrist_roll"].range_max == 4095
    low, high = theirs.calibration["elbow_flex"].range_min, theirs.calibration["elbow_flex"].range_max
    assert 1100 < low < 1300 and 2800 < high < 3000
    virtual_pair.be_patient(theirs.bus)
    theirs.bus.connect()
    try:
        assert theirs.is_calibrated
    finally:
        theirs.bus.disconnect(False)


def test_an_aborted_calibration_changes_nothing(station: Any, tmp_path: Path) -> None:
    hand = Hand(station)

    def acts(step: str, turn: int) -> None:
        hand.put(*[2500 + turn] * 6)
        if step == "ranges" and turn == 3:
            raise Aborted("stop")

    robot = table(station, tmp_path)
    before = (tmp_path / "leader.json").read_bytes()
    with arm(robot, "leader") as device:
        there = device.bus.read_calibration()
        with pytest.raises(Aborted):
            calibrate(device, Person(acts))  # type: ignore[arg-type]
        assert device.bus.read_calibration() == there
    assert (tmp_path / "leader.json").read_bytes() == before and not (tmp_path / "old").exists()


def test_ids_one_servo_at_a_time(station: Any, tmp_path: Path) -> None:
    bus, everything = station._leader.line.bus, list(station._leader.servos)
    joints = list(station.calibration["leader"])
    tries: dict[str, int] = {}

    def plug(servos: list[Any]) -> None:
        station._do(lambda: setattr(bus, "servos", servos))

    def acts(step: str, turn: int) -> None:
        tries[step] = tries.get(step, 0) + 1
        one = everything[joints.index(step)]
        if step == "gripper" and tries[step] < 3:  # first all of them, then none
            plug([everything[0], everything[5]] if tries[step] == 1 else [])
            return
        one.table[5] = 1  # as delivered
        plug([one])

    robot = table(station, tmp_path)
    person = Person(acts)
    with arm(robot, "leader", handshake=False) as device:
        rates = {model: dict(list(each.items())[:2]) for model, each in device.bus.model_baudrate_table.items()}
        device.bus.model_baudrate_table = rates  # each costs LeRobot almost two seconds of waiting for silence
        given = give_ids(device.bus, person)  # type: ignore[arg-type]
    assert given == {j: n + 1 for n, j in enumerate(joints)}
    texts = [a["text"] for a in person.events("again")]
    assert len(texts) == 2 and "2 servos answer (ids 1, 6)" in texts[0] and "no servo answers" in texts[1]
    plug(everything)
    for servo in everything:
        servo.power_cycle()
    assert [s.id for s in everything] == [1, 2, 3, 4, 5, 6]  # kept in EEPROM


def test_the_check_up_finds_what_is_wrong(station: Any, tmp_path: Path) -> None:
    robot = table(station, tmp_path)
    whole = check_arm(robot, "follower", 30)
    # A pseudo-terminal on a busy machine may lose a reading, and this arm may hold itself up.
    assert all(f["level"] == "ok" or "readings failed" in f["what"] or "load" in f["what"] for f in whole), whole
    assert any(f["what"].startswith("firmware ") and "on all 6 servos" in f["what"] for f in whole), whole
    station.faults.follower.voltage("gripper", 4.1)
    station.faults.follower.temperature("elbow_flex", 68)
    bus = station._follower.line.bus
    answer, count = bus._damage, [0]

    def loose(reply: bytes) -> bytes:
        count[0] += 1
        return b"" if count[0] % 20 == 0 else bytes(answer(reply))

    found = {f["part"]: f for f in check_arm(robot, "follower", 10) if f["level"] != "ok"}
    assert found["follower gripper"]["what"] == "4.1 V" and found["follower elbow_flex"]["level"] == "bad"
    station._do(lambda: setattr(bus, "_damage", loose))
    shaky = check_arm(robot, "follower", 30)
    assert any("readings failed" in f["what"] for f in shaky), shaky
    (cable,) = [f for f in shaky if "readings failed" in f["what"]]
    assert cable["level"] == "bad" and "plug" in cable["do"]
    station.faults.follower.unplug()
    (gone,) = check_arm(robot, "follower", 10)
    assert gone["level"] == "bad" and "there is no" in gone["what"] and gone["do"]
    assert check_disk(tmp_path / "not" / "yet")[0]["part"] == "disk"


def test_an_ended_setup_says_which_servos_it_has_changed(station: Any, tmp_path: Path) -> None:
    from robot.tending import Tending, _left

    everything = list(station._leader.servos)
    bus = station._leader.line.bus

    def acts(step: str, turn: int) -> None:
        if step == "wrist_flex":
            raise Aborted("stop")
        one = everything[5 if step == "gripper" else 4]
        one.table[5] = 1
        station._do(lambda: setattr(bus, "servos", [one]))

    work = Tending("setup", "leader", table(station, tmp_path), 30, 0, tmp_path, 10)
    with arm(work.robot, "leader", handshake=False) as device, pytest.raises(Aborted) as ended:
        give_ids(device.bus, Person(acts))  # type: ignore[arg-type]
    said = _left(work, ended.value)
    assert said == "gripper, wrist_roll have their new ids and keep them; the other servos are as they were"
    assert _left(work, Aborted("stop")) == "no servo was changed"
