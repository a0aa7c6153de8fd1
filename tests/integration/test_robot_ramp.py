"""An arm begins and ends slowly and is let down, not dropped: from what is written to the registers of virtual servos."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from virtual_pair import Hand, Told, table

from robot import ramp, recorder, tending
from robot.virtual.servo import GOAL_POSITION, TORQUE_ENABLE, TORQUE_LIMIT

pytest.importorskip("lerobot")
pytest.importorskip("so101_nexus")
STEPS = 4096 / 360
"""Encoder steps of a degree."""


class Written:
    """What the follower's servos are told, with the time of it."""

    def __init__(self, station: Any) -> None:
        self.servos = station._follower.servos
        self.goals: list[tuple[float, list[int]]] = []
        self.limits: list[int] = []
        """Torque limits of a joint, and -1 where its torque was switched off."""
        bus, one = station._follower.line.bus, self.servos[1]
        moved, write = bus.moved, one.write

        def seen() -> None:
            self.goals.append((time.perf_counter(), [s.word(GOAL_POSITION) for s in self.servos]))
            moved()

        def written(address: int, data: bytes) -> bool:
            if address == TORQUE_LIMIT:
                self.limits.append(int.from_bytes(data, "little"))
            elif address == TORQUE_ENABLE and one.table[TORQUE_ENABLE] and not data[0]:
                self.limits.append(-1)
            return bool(write(address, data))

        station._do(lambda: (setattr(bus, "moved", seen), setattr(one, "write", written)))

    def check_slow(self) -> None:
        """No goal is further from the last than a period's worth of the speed, and periods are not hurried through.

        The gripper aside: its unit is percent.
        """
        times = np.array([t for t, _ in self.goals])
        degrees = np.array([g for _, g in self.goals], dtype=float)[:, :5] / STEPS
        assert np.abs(np.diff(degrees, axis=0)).max() <= ramp.SPEED / 30 + 1 / STEPS  # rounded to encoder steps
        for n in range(1, len(times)):  # between any two; a server of packets on a busy machine sees some late
            moved = np.abs(degrees[n:] - degrees[:-n]).max(axis=1)
            assert (moved <= ramp.SPEED * (times[n:] - times[:-n] + 0.25)).all()

    def torque(self) -> list[int]:
        return [s.table[TORQUE_ENABLE] for s in self.servos]


class Says(Told):
    """Says `word` at the first event of `name` that passes."""

    def __init__(self, word: str, name: str, when: Callable[[dict[str, Any]], bool] = lambda fields: True) -> None:
        super().__init__()
        self.word, self.name, self.when = word, name, when
        self.heard = False

    def poll(self, timeout_s: float = 0.0) -> dict[str, Any] | None:
        if not self.heard and any(self.when(fields) for fields in self.of(self.name)):
            self.heard = True
            return {"cmd": self.word}
        super().poll(timeout_s)
        return None


def away(station: Any) -> None:
    """The leader is held some 35 degrees from where the follower stands: two joints, which nothing bars."""
    station._do(station._leader.line.bus.sense)
    raw = [s.raw for s in station._leader.servos]
    raw[0] += 400
    raw[4] += 400
    Hand(station).put(*raw)


def test_teleop_goes_to_the_leader_and_back_to_rest_slowly_and_is_let_down(station: Any, tmp_path: Path) -> None:
    away(station)
    written, told = Written(station), Says("stop", "progress")
    tending.main({"action": "teleop", "robot": table(station, tmp_path)}, told)
    start, end = np.array(written.goals[0][1][:5]), np.array(written.goals[-1][1][:5])
    reached = np.abs(np.array([g[:5] for _, g in written.goals]) - start).max()
    assert reached > 25 * STEPS  # it has been at the leader's, and
    assert np.abs(end - start).max() < 6 * STEPS  # is back
    written.check_slow()
    assert written.limits[-6:] == [600, 400, 250, 120, -1, 1000] and written.torque() == [0] * 6
    assert [(e["on"], e["text"]) for e in told.of("torque")] == [(True, ""), (False, "")]


@pytest.mark.parametrize(("first", "second", "drops"), [
    ("person", "", False), ("person", "person", True), ("", "person", False),
])  # fmt: skip
def test_only_a_persons_second_stop_drops_the_arm_on_its_way(
    station: Any, tmp_path: Path, first: str, second: str, drops: bool
) -> None:
    """At a poweroff systemd's SIGTERM and zk0d each say one, which no person meant; and one may cross another end."""
    away(station)
    written = Written(station)

    class Stops(Says):
        again = False

        def poll(self, timeout_s: float = 0.0) -> dict[str, Any] | None:
            if self.heard and not self.again:  # at once, as the arm begins its way back
                self.again = True
                return {"cmd": "stop", "by": second}
            said = super().poll(timeout_s)
            return said and {**said, "by": first}

    told = Stops("stop", "progress", lambda fields: fields.get("seconds", 0) > 1)
    tending.main({"action": "teleop", "robot": table(station, tmp_path)}, told)
    goals = np.array([g[:5] for _, g in written.goals])
    left, text = np.abs(goals[-1] - goals[0]).max(), told.of("torque")[-1]["text"]
    assert written.torque() == [0] * 6
    if drops:
        assert left > 20 * STEPS and "where it stood: told to stop on its way to rest" in text
    else:
        assert left < 6 * STEPS and text == ""


def test_a_recording_that_is_told_to_release_lets_the_arm_down_where_it_is(station: Any, tmp_path: Path) -> None:
    away(station)
    written, told = Written(station), Says("release", "progress", lambda fields: fields.get("frames", 0) > 35)
    job = {"dataset": str(tmp_path / "set"), "task": "t", "episode_s": 60, "robot": table(station, tmp_path / "c")}
    assert recorder.main(job, told)["episodes"] == 1
    goals = np.array([g[:5] for _, g in written.goals])
    assert np.abs(goals[-1] - goals[0]).max() > 25 * STEPS
    written.check_slow()
    assert written.limits[-6:] == [600, 400, 250, 120, -1, 1000] and written.torque() == [0] * 6
    assert "where it stood: told to release it" in told.of("torque")[-1]["text"] and not told.of("torque")[-1]["on"]


def test_an_arm_that_cannot_be_told_is_said_to_keep_its_torque(station: Any, tmp_path: Path) -> None:
    told = Told(lambda event, fields: station.faults.follower.unplug() if event == "progress" else None)
    with pytest.raises(recorder.RobotError, match="follower"):
        tending.main({"action": "teleop", "robot": table(station, tmp_path)}, told)
    last = told.of("torque")[-1]
    assert last["on"] and "could not be told to let go" in last["text"] and len(told.of("torque")) == 2


def test_release_lets_down_what_another_program_left_and_says_what_it_cannot_reach(
    station: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    robot = table(station, tmp_path)
    station._do(lambda: [s.write(TORQUE_ENABLE, b"\1") for s in station._follower.servos])
    written = Written(station)
    told = Told()
    (arm,) = tending.main({"action": "release", "robot": robot}, told)["released"]
    assert [(e["port"], e["on"]) for e in told.of("torque")] == [(station.follower_port, False)]
    assert arm == f"the follower on {station.follower_port}" and written.torque() == [0] * 6
    assert written.limits == [600, 400, 250, 120, -1, 1000]
    with pytest.raises(recorder.RobotError, match="perhaps under torque: follower: there is no /dev/nowhere") as said:
        tending.main({"action": "release", "robot": {**robot, "follower": "/dev/nowhere"}}, Told())
    assert "cut its power" in said.value.hint
    for module in ("ports", "torque"):  # each costs half a second at a pseudo-terminal, where nothing answers
        monkeypatch.setattr(f"robot.{module}.RETRIES", 0)
    station.faults.follower.drop_next(10_000)  # the port is there, the servos are not: no power, or a loose cable
    with pytest.raises(recorder.RobotError, match="perhaps under torque"):
        tending.main({"action": "release", "robot": robot}, Told())


@pytest.mark.parametrize("worker", ["teleop", "recorder"])
def test_a_leader_that_is_lost_brings_the_arm_to_rest(station: Any, tmp_path: Path, worker: str) -> None:
    away(station)
    written = Written(station)

    class Loses(Told):
        def poll(self, timeout_s: float = 0.0) -> None:
            """While the arm is on its way to the leader, before any take."""
            went = [goals[0] for _, goals in written.goals]
            if worker == "recorder" and max(went, default=0) - min(went, default=0) > 15 * STEPS:
                station.faults.leader.unplug()
            super().poll(timeout_s)

    told = Loses(lambda event, fields: station.faults.leader.unplug() if event == "progress" else None)
    robot = table(station, tmp_path / "c")
    with pytest.raises(recorder.RobotError, match="leader"):
        if worker == "teleop":
            tending.main({"action": "teleop", "robot": robot}, told)
        else:
            recorder.main({"dataset": str(tmp_path / "set"), "task": "t", "episode_s": 60, "robot": robot}, told)
    assert not told.of("take")
    goals = np.array([g[:5] for _, g in written.goals])
    assert np.abs(goals[-1] - goals[0]).max() < 6 * STEPS and written.torque() == [0] * 6
    assert told.of("torque")[-1] | {"arm": "", "port": ""} == {"arm": "", "port": "", "on": False, "text": ""}
