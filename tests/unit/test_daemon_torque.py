"""Which arms are under torque, by which table each is let go, and which session may be asked to: against real workers."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zk0d.daemon import torque
from zk0d.daemon.arm import LET_GO, Arm, Live
from zk0d.daemon.config import Config
from zk0d.daemon.sessions import Sessions
from zk0d.daemon.store import Store
from zk0d.errors import LinkLostError, RobotError, WorkerError
from zk0d.supervise import Worker

A, B = {"follower": "/dev/a"}, {"follower": "/dev/b"}

WORKER = """
import sys, time
from zk0d.errors import RobotError
from zk0d.worker import run_worker

def main(job, channel):
    port = job["robot"]["follower"]
    channel.emit("begun")
    if job["robot"].get("hangs"):
        time.sleep(60)
    if job["action"] == "record":
        channel.emit("torque", port=port, on=True, text="")
        channel.emit("care", level="release", joint="j", text="j is 70 °C hot")
        channel.emit("ready")
        channel.emit("torque", port=port, on=False, text="")
        return {}
    if port == "/dev/gone":
        raise RobotError("not let go, and perhaps under torque: there is no /dev/gone", "cut its power")
    channel.emit("torque", port=port, on=False, text="")
    return {"released": ["the follower on " + port]}

sys.exit(run_worker(main))
"""


class Jobs:
    """Starts WORKER for every kind of job, in `folder`; what was started is `asked`."""

    systemd = None

    def __init__(self, folder: Path) -> None:
        self._folder, self.asked = folder, list[dict[str, Any]]()
        self.workers: list[Worker] = []
        (folder / "arm_worker.py").write_text(WORKER)

    async def start(self, kind: str, name: str, job: dict[str, Any], on_event: Callable[..., None]) -> Worker:
        self.asked.append(job)
        env = {"PYTHONPATH": os.pathsep.join([str(self._folder), str(Path(__file__).resolve().parents[2])])}
        work, output = self._folder / f"{kind}-{name}", self._folder / "log"
        self.workers.append(await Worker.start(sys.executable, "arm_worker", job, work, output, on_event, env))
        return self.workers[-1]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "zk0d.db")
    yield opened
    opened.close()


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path)


@pytest.fixture
def arm(store: Store, jobs: Jobs) -> Arm:
    return Arm(store, Config.load([]), jobs, lambda: None, lambda: None)  # type: ignore[arg-type]


async def quiet(event: str, **fields: Any) -> None:
    pass


def on(port: str, text: str = "") -> dict[str, Any]:
    return {"event": "torque", "port": port, "on": True, "text": text}


def test_a_session_on_another_arm_leaves_the_note_of_the_first(arm: Arm, jobs: Jobs) -> None:
    arm.torque.heard(on("/dev/a", "it does not answer"), A)
    live = Live("recording", "alice", time.time())
    asyncio.run(arm.run(live, "recorder", {"action": "record", "robot": B}, quiet))
    assert [job["action"] for job in jobs.asked] == ["record"]  # no release job: nothing of B is under torque
    assert arm.torque.ports == {"/dev/a": "it does not answer"} and arm.torque.robots == [A]
    assert not [e for e in arm.store.events(9) if "let down" in e["text"]]
    released = asyncio.run(torque.release(arm, B, "bob"))
    assert released == {"released": ["the follower on /dev/b"], "unpowered": [], "ended": ""} and arm.torque.robots == [
        A
    ]
    assert asyncio.run(torque.release(arm, {}, "bob"))["released"] == ["the follower on /dev/a"]
    assert arm.torque.robots == [] and arm.live is None


def test_each_arm_is_let_go_by_its_own_table_and_the_reason_is_kept(arm: Arm, jobs: Jobs, store: Store) -> None:
    gone = {"follower": "/dev/gone"}
    arm.torque.heard(on("/dev/gone"), gone)
    arm.torque.heard(on("/dev/a"), A)
    asyncio.run(torque.left_behind(arm))
    assert [job["robot"] for job in jobs.asked] == [gone, A] and arm.live is None
    ((port, why),) = arm.torque.ports.items()
    assert port == "/dev/gone" and "there is no /dev/gone" in why
    said = torque.problem(store, session=True)  # also while a session is at another arm
    assert said is not None and "the arm on /dev/gone may be under torque" in said[0]
    arm.torque.heard(on("/dev/b"), B)
    with pytest.raises(WorkerError, match=r"no /dev/gone \(the follower on /dev/b: limp now\)"):
        asyncio.run(torque.release(arm, {}, "bob"))
    assert list(arm.torque.ports) == ["/dev/gone"]


def test_an_arm_that_is_gone_is_done_with_on_a_persons_word_alone(arm: Arm, store: Store) -> None:
    """Its port has another name since, or it was sold: else status would name it for ever."""
    gone = {"follower": "/dev/gone"}
    arm.torque.heard(on("/dev/gone", "it does not answer"), gone)
    arm.torque.heard(on("/dev/a"), A)
    store.put(torque.KEY, {"on": {p: {**n, "at": 0.0} for p, n in store.get(torque.KEY)["on"].items()}})
    said = torque.problem(store, session=False)
    assert said is not None and "1970" in said[0] and "--unpowered" in said[1]  # not a time of day alone
    with pytest.raises(WorkerError, match="no /dev/gone"):
        asyncio.run(torque.release(arm, {"follower": "/dev/gone"}, "bob", unpowered=True))  # not one that is named
    told = asyncio.run(torque.release(arm, {}, "bob", unpowered=True))
    assert told["unpowered"] == ["the arm on /dev/gone"] and told["released"] == ["the follower on /dev/a"]
    assert arm.torque.ports == {} and torque.problem(store, session=False) is None
    assert "/dev/gone cannot be reached, and has no power, says bob" in str(store.events(5))


def test_a_note_of_an_earlier_version_is_read(arm: Arm, store: Store) -> None:
    store.put(torque.KEY, {"robot": A, "on": {"/dev/a": "why", "/dev/c": ""}, "at": 0.0})
    assert arm.torque.of(A) == {"/dev/a": "why", "/dev/c": ""} and arm.torque.robots == [A]
    assert torque.problem(store, session=False)
    arm.torque.heard(on("/dev/b"), B)
    arm.torque.heard({"port": "/dev/c", "on": False}, A)
    assert arm.torque.ports == {"/dev/a": "why", "/dev/b": ""} and arm.torque.robots == [A, B]
    arm.torque.over(A)
    assert arm.torque.of(B) == arm.torque.ports == {"/dev/b": ""}


def test_a_release_that_names_another_arm_than_the_sessions_is_refused(arm: Arm, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/a")
    arm.live = Live("teleop", "alice", time.time(), robot={"left": A, "right": {"follower": str(tmp_path / "link")}})
    arm.torque.heard(on("/dev/old"), B)
    with pytest.raises(
        RobotError, match=r"teleop by alice moves the arm on /dev/a and .* not the one on /dev/b"
    ) as said:
        asyncio.run(torque.release(arm, {"follower": "/dev/b"}, "bob"))
    assert not arm.live.stopping and "end the teleop first" in said.value.hint
    torque._check_its_own(arm.live, "/dev/a")
    arm.live.robot = {"follower": str(tmp_path / "link")}
    torque._check_its_own(arm.live, "/dev/a")  # the same device by another name


def test_a_session_is_asked_for_its_own_arm_alone(arm: Arm) -> None:
    """One that an earlier session left under torque must not have this one killed."""
    said: list[str] = []

    def send(cmd: str) -> None:
        said.append(cmd)
        arm.torque.heard({"port": "/dev/b", "on": False}, B)
        arm.live = None

    arm.torque.heard(on("/dev/a", "it does not answer"), A)
    arm.torque.heard(on("/dev/b"), B)
    arm.live = Live("teleop", "alice", time.time(), robot=B)
    arm.live.worker = SimpleNamespace(send=send, running=True)  # type: ignore[assignment]
    told = asyncio.run(torque.release(arm, {}, "bob"))
    assert said == ["release"] and told == {"released": ["the follower on /dev/b"], "unpowered": [], "ended": "teleop"}
    assert list(arm.torque.ports) == ["/dev/a"]


def test_ready_after_care_let_the_arm_go_does_not_take_the_reason_back(arm: Arm, store: Store) -> None:
    store.put(LET_GO, {"at": 0.0, "text": "of yesterday"})
    live = Live("recording", "alice", time.time())
    asyncio.run(arm.run(live, "recorder", {"action": "record", "robot": A}, quiet))
    assert store.get(LET_GO)["text"] == "j is 70 °C hot"


def test_a_release_job_that_hangs_is_killed_and_gives_the_arm_back(
    arm: Arm, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torque, "_JOB_S", 0.3)
    arm.torque.heard(on("/dev/a"), {**A, "hangs": True})
    with pytest.raises(WorkerError, match=r"the arm on /dev/a was not let go within .* perhaps under torque"):
        asyncio.run(torque.release(arm, {}, "bob"))
    assert arm.live is None and not jobs.workers[0].running and list(arm.torque.ports) == ["/dev/a"]


def test_whoever_wants_the_arm_does_not_wait_for_ever(arm: Arm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zk0d.daemon.arm.SETTLE_S", 0.05)

    async def scene() -> None:
        arm._letting_go = arm.background(asyncio.sleep(60))
        await arm.settled()
        arm._letting_go.cancel()

    asyncio.run(asyncio.wait_for(scene(), 50))


def test_a_stop_of_a_person_says_so(arm: Arm) -> None:
    said: list[Any] = []

    async def stop(grace_s: float, cmd: str = "stop", **fields: Any) -> None:
        said.append((cmd, fields))

    async def scene() -> None:
        arm.live = Live("teleop", "alice", time.time(), robot=A)
        arm.live.worker = SimpleNamespace(stop=stop)  # type: ignore[assignment]
        arm.control("stop")
        await asyncio.gather(*arm._tasks)

    asyncio.run(scene())
    assert said == [("stop", {"by": "person"})]


def test_a_session_that_has_not_begun_is_ended_by_a_stop_and_by_its_callers_leaving(arm: Arm, store: Store) -> None:
    """While an arm is let go, a model is made or takes are saved: nothing may move in a minute that was called off."""
    left = [False]

    def live() -> Live:
        return Live("rollout", "alice", time.time(), gone=lambda: left[0])

    async def waits(end: Callable[[], Any], error: type[Exception], said: str) -> None:
        going_on, mine = asyncio.Event(), live()
        with arm.waited_for(mine):
            waiting = asyncio.create_task(arm.beforehand(mine, going_on.wait()))
            await asyncio.sleep(0)
            end()
            with pytest.raises(error, match=said):
                await asyncio.wait_for(waiting, 60)
            with pytest.raises(error, match=said):
                arm.hold(mine)
        assert arm.live is None
        going_on.set()

    async def scene() -> None:
        await waits(lambda: arm.control("stop"), RobotError, "the rollout was told to stop before it began")
        arm.live = Live("release", "zk0d", time.time())  # what an earlier daemon left
        await waits(lambda: (arm.control("finish"), setattr(arm, "live", None)), RobotError, "told to finish before")
        await waits(lambda: left.__setitem__(0, True), LinkLostError, "alice asked for did not begin: they had left")
        left[0] = False
        arm.live = other = Live("recording", "bob", time.time())
        mine = live()
        with arm.waited_for(mine), pytest.raises(RobotError, match="in use: recording by bob"):
            arm.hold(mine)
        arm.live = None
        with arm.waited_for(mine):
            arm.hold(mine)
            arm.call_off("of others")
        assert not mine.stopping and not other.stopping
        arm.release()
        with pytest.raises(RobotError, match="nothing is being recorded"):
            arm.control("stop")
        with arm.waited_for(mine):
            await torque.release(arm, A, "bob")
            with pytest.raises(RobotError, match="told to let the arm go by bob before it began"):
                arm.hold(mine)

    asyncio.run(scene())
    assert "they had left" in str(store.events(9))


def test_a_ctrl_c_ends_nobody_elses_session(arm: Arm) -> None:
    """While bob's rollout waits for its model, alice may well be recording."""
    said: list[str] = []
    alices = Live("recording", "alice", time.time(), asker=(1, 1000))
    bobs, carols = (Live("rollout", who, time.time(), asker=(n, 1001)) for n, who in ((2, "bob"), (3, "carol")))

    async def stop(grace_s: float, cmd: str = "stop", **fields: Any) -> None:
        said.append(cmd)

    async def scene() -> None:
        arm.live, alices.worker = alices, SimpleNamespace(stop=stop, last={})  # type: ignore[assignment]
        with arm.waited_for(alices), arm.waited_for(bobs), arm.waited_for(carols):
            assert arm.control("stop", asker=bobs.asker)["by"] == "bob"
            assert bobs.stopping and not alices.stopping and not carols.stopping
            arm.control("stop", asker=alices.asker)
            await asyncio.gather(*arm._tasks)
            assert alices.stopping and said == ["stop"] and not carols.stopping
        with pytest.raises(RobotError, match="nothing is being recorded"):
            arm.control("stop", asker=(9, 1001))

    asyncio.run(scene())


def test_a_recording_that_is_stopped_while_it_waits_opens_no_arm(arm: Arm, jobs: Jobs, tmp_path: Path) -> None:
    sessions = Sessions(arm.store, tmp_path, Config.load([]), jobs, arm, lambda: None)  # type: ignore[arg-type]

    async def scene() -> None:
        arm._letting_go = arm.background(asyncio.sleep(60))
        request = {"dataset": "d", "task": "t", "episodes": 1, "robot": A}
        recording = asyncio.create_task(sessions.record(request, Live("recording", "alice", time.time()), quiet))
        await asyncio.sleep(0)
        assert arm.control("stop")["kind"] == "recording"
        with pytest.raises(RobotError, match="before it began"):
            await asyncio.wait_for(recording, 50)
        arm._letting_go.cancel()

    asyncio.run(scene())
    assert jobs.asked == [] and arm.live is None
