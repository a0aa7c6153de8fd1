"""Recording through the daemon on a virtual arm: one session at a time, crashes of either side, one end after them."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import psutil
import pytest
from daemon_process import STOP_S, Daemon, loads, wait_until
from recorded_dataset import check_whole

RECORD = ("record", "--task", "touch the cube", "--dataset", "touch", "--episode-s", "8")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("recording") / "node")
    yield daemon


def recorder(daemon: Daemon) -> object:
    return daemon.worker("robot.recorder")


def taking(daemon: Daemon) -> bool:
    session = daemon.status()["session"]
    return bool(session and session["progress"])


def test_record_crash_and_go_on(node: Daemon) -> None:
    with node:
        # One session at a time, visible to all, and steerable by anyone.
        first = node.begin(*RECORD, "--until", "2", "--keep", "all")
        wait_until(lambda: recorder(node), "the recorder runs", 120)
        second = node.ctl("record", "--task", "x", "--dataset", "other", "--episodes", "1")
        assert second.code == 1 and "the arm is in use: recording by " in second.err
        assert node.ctl("status").out.startswith("recording: 0 of 2 episodes of touch, by ")
        assert "paused: recording by " in node.ctl("why").out

        # The recorder dies: the session goes on.
        worker = wait_until(lambda: taking(node) and node.worker("robot.recorder"), "a take runs", 120)
        worker.send_signal(signal.SIGKILL)
        out = first.communicate(timeout=180)[0]
        assert first.returncode == 0, out
        assert "recorder died and is started again" in out and "touch: 2 episodes (2 new" in out
        assert node.status()["datasets"][0]["episodes"] == 2

        # The daemon dies in a session.
        cut = node.begin(*RECORD, "--until", "3")
        wait_until(lambda: taking(node), "a take runs", 120)
        orphan = node.worker("robot.recorder")
        assert orphan is not None
        orphan.suspend()  # else it finishes its take, and there is nothing left to say
        node.kill()
        orphan.kill()
        assert "closed the connection" in cut.communicate(timeout=120)[0]
        assert cut.returncode == 3
        node.start()
        status = node.ctl("status")
        assert status.code == 2 and "the last recording was cut" in status.out and "--until 3" in status.out

        # Running the same command again is safe: it ends with just as many.
        again = node.ctl(*RECORD, "--until", "3", "--json", timeout=180)
        assert again.code == 0 and loads(again)["episodes"] == 3
        assert loads(node.ctl(*RECORD, "--until", "3", "--json"))["added"] == 0
        assert node.ctl("status").code == 0
        info = json.loads((node.state / "datasets/touch/meta/info.json").read_text())
        assert info["total_episodes"] == 3

        # Stopped by another terminal, and by SIGTERM.
        stopped = node.begin(*RECORD, "--until", "5")
        wait_until(lambda: taking(node), "a take runs", 120)
        assert node.ctl("record", "stop").code == 0
        out = stopped.communicate(timeout=120)[0]
        assert stopped.returncode == 2 and "told to stop" in out
        last = node.begin(*RECORD, "--until", "5")
        wait_until(lambda: taking(node), "a take runs", 120)
        assert node.terminate() < STOP_S
        assert "zk0d was told to end" in last.communicate(timeout=120)[0]


def test_a_take_that_waits_is_saved_at_the_daemons_next_start_and_that_is_said(node: Daemon) -> None:
    """Daemon and recorder killed between the end of a take and its episode: the next daemon makes one of it."""
    root = node.state / "datasets/waiting"

    def waiting() -> psutil.Process | None:
        """The recorder, stopped where a take of it is sealed and not yet an episode."""
        process = node.worker("robot.recorder")
        if process is None or not any(root.glob(".zk0/staging/*/take.json")):
            return None
        process.suspend()
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "the recorder stands")
        if any(root.glob(".zk0/staging/*/take.json")):
            return process
        process.resume()
        return None

    with node:
        words = ("--dataset", "waiting", "--task", "touch the cube", "--episode-s", "2", "--keep", "all")
        session = node.begin("record", *words, "--until", "50")
        stopped = wait_until(waiting, "a take waits to be saved", 120)
        node.stop()  # else it starts another recorder, which would save the take itself
        stopped.kill()
        node.kill()
        session.communicate(timeout=120)
        meta = root / "meta/info.json"
        before = json.loads(meta.read_text())["total_episodes"] if meta.exists() else 0
        node.start()
        said = "take(s) of 'waiting' were saved after the last run was cut"
        (event,) = wait_until(lambda: [e for e in node.events("record") if said in e], "the adoption is said", 120)
        taken = int(event.split()[0])
        assert taken >= 1, event
        known = next(d for d in node.status()["datasets"] if d["name"] == "waiting")
        assert known["episodes"] == before + taken
        print(event)
    check_whole(root)
