"""What the daemon makes of a worker's words on the arm: history, status, episodes kept out; and who may be told what."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zk0d.daemon import room, torque
from zk0d.daemon.arm import LET_GO, Arm, Live
from zk0d.daemon.config import Config
from zk0d.daemon.quality import Rules, Selection
from zk0d.daemon.report import status
from zk0d.daemon.store import Store
from zk0d.errors import DatasetError, RobotError, UsageError


class Told:
    """A worker that only listens."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def send(self, cmd: str, **fields: Any) -> None:
        self.said.append((cmd, fields))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "zk0d.db")
    yield opened
    opened.close()


def arm(store: Store, kind: str = "recording") -> Arm:
    made = Arm(store, Config.load([]), SimpleNamespace(systemd=None), lambda: None, lambda: None)  # type: ignore[arg-type]
    made.live = Live(kind, "alice", time.time(), dataset="cubes", goal=3)
    made.live.worker = Told()  # type: ignore[assignment]
    return made


def test_an_arm_let_go_is_told_until_one_is_opened_again(store: Store) -> None:
    held = arm(store)
    held._cared({"level": "slow", "joint": "elbow_flex", "text": "elbow_flex is 63 °C hot"})
    assert store.get(LET_GO) is None
    held._cared({"level": "release", "joint": "elbow_flex", "text": "elbow_flex is 70 °C hot"})
    texts = [e["text"] for e in store.events(5)]
    assert texts == ["the arm is slowed: elbow_flex is 63 °C hot", "the arm was let go: elbow_flex is 70 °C hot"]
    (problem,) = [p for p in status(store, None)["health"] if p["code"] == "arm"]
    assert "let go at " in problem["message"] and "70 °C" in problem["message"] and problem["hint"]
    store.put(LET_GO, None)
    assert not [p for p in status(store, None)["health"] if p["code"] == "arm"]


def test_torque_is_remembered_and_told_where_nobody_is_at_it(store: Store) -> None:
    held = arm(store)
    assert held.live is not None
    held.torque.heard({"port": "/dev/a", "on": True, "text": ""}, {"follower": "/dev/a"})
    assert held.torque.ports == {"/dev/a": ""} and torque.problem(store, session=True) is None  # it is being used
    (problem,) = [p for p in status(store, None)["health"] if p["code"] == "arm"]
    assert "/dev/a may be under torque" in problem["message"] and "robot release" in problem["hint"]
    held.torque.heard({"port": "/dev/a", "on": True, "text": "it could not be told"}, {"follower": "/dev/a"})
    assert "it could not be told" in str(torque.problem(store, session=True))
    assert [e["text"] for e in store.events(5)] == ["it could not be told"]
    held.torque.heard({"port": "/dev/a", "on": False, "text": ""}, {"follower": "/dev/a"})
    assert held.torque.robots == [] and not [p for p in status(store, None)["health"] if p["code"] == "arm"]


def test_a_session_that_does_not_let_go_is_killed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torque, "_LET_GO_S", 0.05)
    held = arm(store)
    held.torque.heard({"port": "/dev/a", "on": True, "text": ""}, {"follower": "/dev/a"})

    class Hangs(Told):
        running = True

        async def kill(self) -> None:
            self.said.append("killed")
            held.torque.over({"follower": "/dev/a"})  # as Arm.run does then, by a job of its own

    assert held.live is not None
    held.live.robot, held.live.worker = {"follower": "/dev/a"}, Hangs()  # type: ignore[assignment]
    told = asyncio.run(torque.release(held, {}, "bob"))
    assert held.live.worker.said == [("release", {}), "killed"]  # type: ignore[union-attr]
    assert told == {"released": ["the follower on /dev/a"], "unpowered": [], "ended": "recording"}
    assert held.live.stopping and held.live.why == "told to let the arm go by bob"


def test_a_virtual_arm_has_nothing_to_let_go(store: Store, tmp_path: Path) -> None:
    held = arm(store)
    assert held.live is not None
    held.live.robot = {"follower": "virtual:Touch"}
    with pytest.raises(RobotError, match="of this recording is virtual"):
        asyncio.run(torque.release(held, {}, "bob"))
    assert not held.live.stopping
    held.live = None
    with pytest.raises(RobotError, match="the arm is virtual"):
        asyncio.run(torque.release(held, {"follower": "virtual:Touch"}, "bob"))
    with pytest.raises(RobotError, match="no arm is configured"):
        asyncio.run(torque.release(held, {}, "bob"))


def test_an_episode_recorded_again_is_kept_out_and_one_more_is_wanted(store: Store) -> None:
    held = arm(store)
    assert held.live is not None
    store.put("recording", {"goal": 3, "worker": "w"})
    held._superseded(held.live, 1)
    held._superseded(held.live, 2)
    assert held.live.goal == 5 and store.get("recording") == {"goal": 5, "worker": "w"}
    assert Selection(store, Rules()).kept_out("cubes") == {1, 2}


def test_each_kind_of_session_knows_its_words(store: Store) -> None:
    recording, rollout, teleop = arm(store), arm(store, "rollout"), arm(store, "teleop")
    for action in ("next", "rerecord", "pause", "resume", "discard", "finish"):
        recording.control(action)
    with pytest.raises(UsageError, match="a recording knows no success"):
        recording.control("success")
    rollout.control("success", "nearly")
    assert rollout.live is not None and rollout.live.worker.said == [("success", {"note": "nearly"})]  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="a teleop knows no pause"):
        teleop.control("pause")
    with pytest.raises(UsageError, match="dance"):
        recording.control("dance")


def test_two_pairs_or_the_one_that_is_named(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "zk0d.toml"
    path.write_text('[robot.left]\nfollower = "virtual:Touch"\n[robot.right]\nfollower = "virtual:Touch"\n')
    held = Arm(store, Config.load([path]), SimpleNamespace(systemd=None), lambda: None, lambda: None)  # type: ignore[arg-type]
    assert held.robot({})["left"] == {"follower": "virtual:Touch", "leader": "expert"}
    one = held.robot({"follower": "/dev/ttyACM0"})
    assert one["follower"] == "/dev/ttyACM0" and "left" not in one
    assert "leader" not in Config.load([path]).robot["left"]
    path.write_text('[robot.left]\nfollower = "virtual:Touch"\n[robot.right]\nleader = "expert"\n')
    with pytest.raises(RobotError, match="no arm is configured"):
        Arm(store, Config.load([path]), SimpleNamespace(systemd=None), lambda: None, lambda: None).robot({})  # type: ignore[arg-type]


def test_floor_and_quota_refuse_before_an_arm_is_held(tmp_path: Path) -> None:
    path, folder = tmp_path / "zk0d.toml", tmp_path / "datasets"
    (folder / "cubes").mkdir(parents=True)
    (folder / "cubes/video.mp4").write_bytes(b"x" * 2_000_000)
    path.write_text("[datasets]\nfloor_gb = 0\nquota_gb = 0.005\n")
    assert asyncio.run(room.limits(Config.load([path]), folder, [])) == {"floor_bytes": 1, "quota_left": 3_000_000}
    path.write_text("[datasets]\nfloor_gb = 0\nquota_gb = 0.001\n")
    with pytest.raises(DatasetError, match="of their quota"):
        asyncio.run(room.limits(Config.load([path]), folder, []))
    path.write_text("[datasets]\nfloor_gb = 1000000\n")
    with pytest.raises(DatasetError, match="floor_gb"):
        asyncio.run(room.limits(Config.load([path]), folder / "not" / "yet", []))
