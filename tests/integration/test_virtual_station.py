"""The virtual bench under LeRobot's own drivers: SO101Follower and SO101Leader over pseudo-terminals."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from virtual_pair import be_patient

pytest.importorskip("so101_nexus", reason="the extra zk0d[virtual] is not installed")
pytest.importorskip("lerobot", reason="the extra zk0d[ml] is not installed")

from robot.virtual import StationSpec, VirtualStation
from robot.virtual.joints import JOINTS, factory_calibration
from zk0d.errors import DatasetError, RobotError

KEYS = [f"{joint}.pos" for joint in JOINTS]


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise AssertionError("a driver prompted: the arms were not calibrated")

    monkeypatch.setattr(builtins, "input", refuse)


@contextmanager
def bench(
    spec: StationSpec, folder: Path, calibration_dir: Path | None = None, degrees: bool = True, patient: bool = True
) -> Iterator[tuple[VirtualStation, Any, Any]]:
    """A station with both of LeRobot's arms connected. `patient`: no answer of the follower's is lost."""
    from lerobot.robots.so_follower import SO101Follower, SOFollowerRobotConfig
    from lerobot.teleoperators.so_leader import SO101Leader, SO101LeaderConfig

    with VirtualStation(spec, calibration_dir) as station:
        station.write_calibration(folder, "follower", "leader")
        follower = SO101Follower(
            SOFollowerRobotConfig(
                port=station.follower_port,
                id="follower",
                calibration_dir=folder,
                cameras=station.camera_configs(),
                use_degrees=degrees,
                num_read_retries=50,  # the bench shares this process, and perhaps its processor: an answer may be late
            )
        )
        leader = SO101Leader(
            SO101LeaderConfig(port=station.leader_port, id="leader", calibration_dir=folder, use_degrees=degrees)
        )
        be_patient(leader.bus)
        hurry = be_patient(follower.bus)
        follower.connect()
        leader.connect()
        if not patient:
            hurry()
        try:
            yield station, follower, leader
        finally:
            for arm in (follower, leader):
                if arm.bus.is_connected:
                    arm.disconnect()


def take(station: VirtualStation, follower: Any, leader: Any, seed: int, limit: int = 900) -> tuple[Any, Any]:
    """One teleoperated take: observed joints (n, 6) and actions (n, 6)."""
    station.begin_take(seed)
    seen, done = [], []
    while not station.leader_done() and len(seen) < limit:
        seen.append(follower.get_observation())
        done.append(leader.get_action())
        follower.send_action(done[-1])
    return np.array([[o[k] for k in KEYS] for o in seen]), np.array([[a[k] for k in KEYS] for a in done])


def write_recording(path: Path, episodes: dict[int, np.ndarray]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = [e for e, rows in episodes.items() for _ in rows]
    frames = [i for rows in episodes.values() for i in range(len(rows))]
    actions = [row.tolist() for rows in episodes.values() for row in rows]
    table = pa.table(
        {
            "episode_index": pa.array(numbers, pa.int32()),
            "frame_index": pa.array(frames, pa.int32()),
            "action": pa.array(actions, pa.list_(pa.float32(), 6)),
        }
    )
    pq.write_table(table, path)
    return path


def sway(rows: int, seed: int) -> np.ndarray:
    """A smooth movement in LeRobot's range units."""
    t = np.arange(rows)[:, None] / 30
    phase = np.random.default_rng(seed).uniform(0, 6, 6)
    return (np.array([20, -60, 60, 30, 10, 40]) + np.array([15, 8, 8, 15, 20, 30]) * np.sin(t + phase)).astype(
        np.float32
    )


@pytest.mark.parametrize(("task", "seed"), [("Touch", 1), ("PickLift", 2)])
def test_the_expert_solves_its_task_through_the_real_drivers(tmp_path: Path, task: str, seed: int) -> None:
    with bench(StationSpec(task), tmp_path) as (station, follower, leader):
        assert follower.is_calibrated and leader.is_calibrated
        assert station.success() is False
        seen, done = take(station, follower, leader, seed)
        assert station.success() is True and station.succeeding() is True
        assert 60 < len(seen) < 300, "a take of a few seconds"
        assert np.abs(seen[0] - done[0])[:5].max() < 3, "leader and follower agree at the start (degrees)"
        assert np.abs(np.diff(done, axis=0)).max() < 15, "no jumps: a hand moves the leader"


def test_the_same_seed_gives_the_same_take_whatever_happened_before(tmp_path: Path) -> None:
    with bench(StationSpec("PickLift"), tmp_path) as (station, follower, leader):
        first = take(station, follower, leader, 5)
        other = take(station, follower, leader, 6)
        again = take(station, follower, leader, 5)
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert first[1].shape != other[1].shape or not np.array_equal(first[1], other[1])


def test_a_replay_is_shown_row_by_row_and_recorded_exactly(tmp_path: Path) -> None:
    source = {3: sway(40, 1), 4: sway(25, 2)}
    path = write_recording(tmp_path / "rows.parquet", source)
    spec = StationSpec("", leader=f"replay:{path}")
    step = (
        200 / 2200
    )  # the narrowest joint of the factory calibration has more than 2200 steps; the gripper 1250 of 100
    with bench(spec, tmp_path, degrees=False) as (station, follower, leader):
        assert station.success() is None
        for number in (3, 4):
            seen, done = take(station, follower, leader, seed=0)
            assert done.shape == source[number].shape
            assert np.abs(done - source[number]).max() <= step
            assert np.abs(seen[0] - source[number][0]).max() < 3, "the follower stands where the leader is"
            assert np.abs(seen[1:] - done[:-1])[5:, :5].max() < 12, "and follows"
        with pytest.raises(DatasetError, match="no episode left"):
            station.begin_take(0)


def test_the_leader_never_lags_an_action_that_was_sent(tmp_path: Path) -> None:
    """Goals go down one pseudo-terminal and the leader is read from another, with nothing read in between."""
    rows = sway(400, 3)
    path = write_recording(tmp_path / "rows.parquet", {0: rows})
    with bench(StationSpec("", leader=f"replay:{path}"), tmp_path, degrees=False) as (station, follower, leader):
        station.begin_take(0)
        for row in rows:
            action = leader.get_action()
            assert np.abs(np.array([action[k] for k in KEYS]) - row).max() < 0.1
            assert not station.leader_done()
            follower.send_action(action)
        assert station.leader_done(), "known at once after the last action"


def test_real_teleoperation_is_recorded_within_one_encoder_step(tmp_path: Path, shared_teleop: Path) -> None:
    import pyarrow.parquet as pq

    path = shared_teleop / "episodes_000-039.parquet"
    table = pq.read_table(path, columns=["episode_index", "frame_index", "action"])
    numbers, actions = table["episode_index"].to_numpy(), np.array(table["action"].to_pylist())
    spec = StationSpec("", leader=f"replay:{path}#7")
    with bench(spec, tmp_path, shared_teleop / "calibration", degrees=False) as (station, follower, leader):
        steps = np.array([c.range_max - c.range_min for c in leader.calibration.values()])
        one_step = np.array([200] * 5 + [100]) / steps
        for episode in (7, 8):
            source = actions[numbers == episode]
            seen, done = take(station, follower, leader, seed=episode, limit=5000)
            assert done.shape == source.shape
            assert (np.abs(done - source) <= one_step + 1e-3).all()
            lag = np.abs(seen[1:, :5] - done[:-1, :5])
            assert np.median(lag) < 2, "the follower is moved by physics, close behind"


def test_cameras_are_built_by_lerobot_and_show_the_present_state(tmp_path: Path) -> None:
    sizes = {"front": (96, 128), "wrist": (64, 64), "top": (96, 96)}
    with bench(StationSpec("PickLift", cameras=sizes), tmp_path) as (station, follower, leader):
        station.begin_take(0)
        first = follower.get_observation()
        for name, (height, width) in sizes.items():
            assert first[name].shape == (height, width, 3) and first[name].dtype == np.uint8
            assert first[name].std() > 5, f"{name} shows something"
        camera = follower.cameras["front"]
        assert np.array_equal(camera.read(), first["front"]), "nothing moved, the same picture"
        frame = camera.async_read()
        frame[:] = 0
        assert camera.read_latest().any(), "a caller's frame is its own"
        for _ in range(40):
            follower.get_observation()
            follower.send_action(leader.get_action())
        moved = follower.get_observation()
        assert all((moved[n] != first[n]).mean() > 0.01 for n in sizes)
        station.begin_take(0)
        assert np.array_equal(follower.get_observation()["front"], first["front"]), "the scene is back"


def test_lerobots_calibration_flow_works_on_the_servos(tmp_path: Path) -> None:
    with bench(StationSpec("", leader="rest"), tmp_path) as (station, follower, _):
        bus, given = follower.bus, dict(follower.calibration)
        before = bus.sync_read("Present_Position", normalize=False)
        bus.disable_torque()
        offsets = bus.set_half_turn_homings()
        assert all(abs(v - 2047) <= 1 for v in bus.sync_read("Present_Position", normalize=False).values())
        for joint, offset in offsets.items():
            expected = (before[joint] + given[joint].homing_offset) % 4096 - 2047
            assert abs(offset - expected) <= 1, "what the encoder itself reads has not moved"
        assert not follower.is_calibrated
        bus.write_calibration(given)
        assert follower.is_calibrated
        assert bus.sync_read("Present_Position", normalize=False) == before
        assert station.calibration["follower"] == given


def test_lost_and_damaged_packets_are_survived_or_reported(tmp_path: Path) -> None:
    with bench(StationSpec("Touch"), tmp_path, patient=False) as (station, follower, leader):
        station.begin_take(0)
        station.faults.drop_next(1)
        assert follower.get_observation(), "LeRobot asks again"
        station.faults.leader.corrupt_next(1)
        assert leader.get_action()
        station.faults.drop_next(100)
        with pytest.raises(ConnectionError):
            follower.get_observation()
        station.faults.drop_next(0)
        assert follower.get_observation()
        assert station.faults.follower.counters.dropped == 1 + 51, "no more than it was told to"
        be_patient(follower.bus)  # nothing is lost from here on
        station.faults.follower.temperature("elbow_flex", 71)
        assert follower.bus.read("Present_Temperature", "elbow_flex") == 71
        station.faults.follower.overload("gripper")
        with pytest.raises(RuntimeError, match=r"[Oo]verload"):
            follower.bus.read("Present_Load", "gripper")
        follower.bus.sync_write("Torque_Enable", 1)  # what clears it; unlike a single write it asks for no answer
        assert follower.bus.read("Present_Load", "gripper") is not None


def test_an_unplugged_arm_fails_and_can_come_back(tmp_path: Path) -> None:
    with bench(StationSpec("Touch"), tmp_path, patient=False) as (station, follower, _):
        station.faults.unplug()
        assert not Path(station.follower_port).exists()
        with pytest.raises((OSError, termios.error)):  # pyserial lets termios.error through, which is no OSError
            follower.get_observation()
        follower.bus.port_handler.closePort()
        follower.bus.port_handler.is_using = False  # the SDK forgets to, when it fails
        station.faults.plug()
        follower.connect()
        assert follower.get_observation()


def test_the_wall_clock_moves_the_leader_and_the_arm(tmp_path: Path) -> None:
    with bench(StationSpec("Touch", clock="wall"), tmp_path) as (station, follower, leader):
        station.begin_take(2)
        started, seen = time.monotonic(), []
        # To its end, and to what the arm does a little later, or much later on a machine that stood still meanwhile.
        while not (station.leader_done() and station.success()) and time.monotonic() - started < 60:
            follower.send_action(leader.get_action())
            seen.append(follower.get_observation()["shoulder_lift.pos"])
        assert station.success() is True
        assert time.monotonic() - started > 1.5
        assert np.ptp(seen) > 10


def test_a_follower_without_torque_is_not_driven(tmp_path: Path) -> None:
    with bench(StationSpec("", leader="rest"), tmp_path) as (_, follower, _leader):
        home = follower.get_observation()
        follower.bus.disable_torque()
        for _ in range(20):
            follower.bus.sync_write("Goal_Position", {"shoulder_pan": 60.0})
        assert abs(follower.get_observation()["shoulder_pan.pos"] - home["shoulder_pan.pos"]) < 5
        follower.bus.enable_torque()
        for _ in range(60):
            follower.bus.sync_write("Goal_Position", {"shoulder_pan": 60.0})
        assert abs(follower.get_observation()["shoulder_pan.pos"] - 60) < 3


def test_an_so100_speaks_the_same(tmp_path: Path) -> None:
    from lerobot.robots.so_follower import SO100Follower, SOFollowerRobotConfig

    with VirtualStation(StationSpec("Touch", arm="so100")) as station:
        station.write_calibration(tmp_path, "f", "l")
        arm = SO100Follower(SOFollowerRobotConfig(port=station.follower_port, id="f", calibration_dir=tmp_path))
        be_patient(arm.bus)
        arm.connect()
        assert set(KEYS) == set(arm.get_observation())
        arm.disconnect()


def test_closing_leaves_nothing_and_a_closed_station_says_so() -> None:
    threads, folder = threading.active_count(), None
    for _ in range(2):
        with VirtualStation(StationSpec("Touch", cameras={"front": (32, 32)})) as station:
            folder = Path(station.follower_port).parent
            assert station.frame("front", 32, 32).shape == (32, 32, 3)
            assert station.frame("wrist", 48, 80).shape == (48, 80, 3), "larger than any camera of the station"
            assert os.path.realpath(station.leader_port).startswith("/dev/pts/")
        station.close()
        assert not folder.exists()
    assert threading.active_count() == threads
    with pytest.raises(RobotError, match="closed"):
        station.begin_take(0)


def test_what_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be replayed"):
        VirtualStation(StationSpec("", leader=f"replay:{tmp_path}/none.parquet"))
    path = write_recording(tmp_path / "rows.parquet", {0: sway(5, 0)})
    with pytest.raises(DatasetError, match="no episode '9'"):
        VirtualStation(StationSpec("", leader=f"replay:{path}#9"))
    with pytest.raises(RobotError, match=r"follower\.json"):
        VirtualStation(StationSpec("Touch"), calibration_dir=tmp_path)
    with (
        pytest.raises(RobotError, match="which view"),
        VirtualStation(StationSpec("Touch", cameras={"cam0": (32, 32)})) as s,
    ):
        s.camera_configs()


def test_an_interpreter_that_forgets_to_close_ends_quietly() -> None:
    code = (
        "from robot.virtual import StationSpec, VirtualStation\n"
        "s = VirtualStation(StationSpec('Touch', cameras={'front': (32, 32)}))\n"
        "s.frame('front', 32, 32); print(s.follower_port)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not Path(done.stdout.strip()).parent.exists()


def test_factory_calibrations_of_the_two_arms_differ() -> None:
    assert factory_calibration("follower") != factory_calibration("leader")
