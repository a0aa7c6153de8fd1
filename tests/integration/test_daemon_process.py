"""The daemon as a process, driven by zk0ctl: states, crashes, restarts, signals, and what systemd sees of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_process import STOP_S, Daemon, Ran, loads, wait_until

from zk0d.control import call
from zk0d.errors import UnseenError
from zk0d.moments import clock

HEAVY = {"torch", "lerobot", "transformers", "pandas", "pyarrow", "datasets", "mujoco", "cv2"}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path / "node") as running:
        yield running


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """For tests that leave the daemon as they found it."""
    with Daemon(tmp_path_factory.mktemp("lasting") / "node") as running:
        yield running


@pytest.mark.needs("torch", "lerobot")  # its daemon has a runtime: without one it would say only that
def test_fresh_daemon_says_what_it_waits_for(lasting: Daemon) -> None:
    ran = lasting.ctl("status")
    assert ran.code == 0, ran
    assert ran.out.splitlines()[0] == "idle: not enrolled at a hub; waits for `zk0ctl enroll`"
    assert "\x1b" not in ran.out
    why = lasting.ctl("why")
    assert "rule: enrol" in why.out and "enrolled" in why.out


def test_signals_are_shown_live(lasting: Daemon) -> None:
    def says(name: str) -> str:
        found = {r["name"]: r for r in loads(lasting.ctl("signals", "--json"))}
        return str(found[name]["says"])

    wait_until(lambda: "not asked yet" not in lasting.ctl("signals").out, "each was asked")
    shown = lasting.ctl("signals").out
    for name in ("hold file", "hours", "desktop", "gpu", "foreign cpu", "cpu pressure", "memory pressure", "io pressure",
                 "power", "temperature", "disk", "network"):  # fmt: skip
        (line,) = [text for text in shown.splitlines() if text.startswith(f"{name} ")]
        assert len(line.split()) > 2 and (lasting.ctl("why").out.count(f"  {name} ") == 1), line
    hold = lasting.state / "hold"
    hold.write_text("the backup runs\n")
    wait_until(lambda: says("hold file").endswith("is there: the backup runs"), "a script holds training")
    hold.unlink()
    wait_until(lambda: says("hold file") == "not there", "and lets it go")


def test_heavy_modules_are_not_in_it(lasting: Daemon) -> None:
    assert not HEAVY & set(lasting.ask("modules"))


def test_status_imports_only_the_standard_library(lasting: Daemon) -> None:
    code = (
        "import sys\nfrom zk0d.ctl.main import main\nmain(sys.argv[1:])\n"
        "tops = {m.partition('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(sorted(t for t in tops if not t.startswith(('_', 'sitecustomize', 'usercustomize'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--state", str(lasting.state), "status"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "['zk0d']"


def test_state_is_private(lasting: Daemon) -> None:
    assert (lasting.state / "control.sock").stat().st_mode & 0o007 == 0


def test_overrides_show_and_end(lasting: Daemon) -> None:
    assert "paused: by " in lasting.ctl("train", "pause", "--for", "2h").out
    assert lasting.status()["training"]["override"]["kind"] == "pause"
    end = clock(lasting.status()["training"]["override"]["until"])  # two hours on may be tomorrow
    told = lasting.ctl("status").out
    assert "told to pause by " in told and f" until {end}" in told
    why = lasting.ctl("why").out
    assert "rule: pause" in why and "override" in why and f"until {end}" in why and f"resumes at {end}" in why
    assert lasting.ctl("train", "now", "--until", "08:00").code == 0
    (line,) = [text for text in lasting.ctl("status").out.splitlines() if "told to train by " in text]
    assert line.endswith(" 08:00") and "kind now" in lasting.ctl("why").out
    assert lasting.ctl("train", "resume").out.startswith("idle: ")
    lasting.ask("train", action="pause", for_s=0.3)
    wait_until(lambda: lasting.status()["state"]["word"] == "idle", "the pause ends by itself")
    bad = lasting.ctl("train", "pause", "--for", "soon")
    assert bad.code == 64 and "90s, 30min" in bad.err


def test_killed_daemon_is_reported_and_starts_again(daemon: Daemon) -> None:
    daemon.ctl("train", "pause", "--for", "2h")
    daemon.kill()
    ran = daemon.ctl("status")
    assert ran.code == 3
    assert ran.out.startswith("zk0d is not running (state as of ") and "told to pause" in ran.out
    document = daemon.ctl("status", "--json")
    assert document.code == 3 and loads(document)["running"] is False
    logs = daemon.ctl("logs")
    assert logs.code == 3 and "zk0d started" in logs.out
    refused = daemon.ctl("train", "resume")
    assert refused.code == 3 and "not running" in refused.err
    daemon.start()
    assert daemon.status()["state"]["word"] == "paused"


def test_never_started(tmp_path: Path) -> None:
    ran = Daemon(tmp_path / "node").ctl("status")
    assert ran.code == 3 and "systemctl start zk0d" in ran.err


def test_two_daemons_cannot_share_a_folder(lasting: Daemon) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "zk0d.daemon.main", "--state", str(lasting.state)],
        env=lasting.environ, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert second.returncode == 1 and f"process {lasting.pid}" in second.stderr
    assert lasting.status()["running"]


def test_bad_setting_ends_with_78(tmp_path: Path) -> None:
    node = Daemon(tmp_path / "node", "[train]\ndevice = 7\n")
    ran = subprocess.run(
        [sys.executable, "-m", "zk0d.daemon.main", "--state", str(node.state)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 78 and "train.device = 7" in ran.stderr and "zk0d.toml" in ran.stderr


def test_sigterm_ends_it_cleanly(daemon: Daemon) -> None:
    follower = daemon.begin("logs", "--follow")
    assert follower.stdout is not None
    assert "zk0d started" in follower.stdout.readline()
    assert daemon.terminate() < STOP_S
    assert daemon.process is not None and daemon.process.returncode == 0
    follower.communicate(timeout=120)
    assert not daemon.socket.exists()


def test_unknown_operations_and_arguments_are_explained(lasting: Daemon) -> None:
    assert lasting.ctl("bogus").code == 64
    assert lasting.ctl("record", "--dataset", "x").code == 64
    missing = lasting.ctl("dataset", "show", "nothing")
    assert missing.code == 1 and "there is no dataset 'nothing'" in missing.err
    nobody = lasting.ctl("record", "stop")
    assert nobody.code == 1 and "nothing is being recorded" in nobody.err
    unenrolled = lasting.ctl("federation", "join", "pick")
    assert unenrolled.code == 1 and "enroll" in unenrolled.err


def test_garbage_on_the_control_socket_harms_nothing(lasting: Daemon) -> None:
    for data in (
        b"{}\n",
        b"\xff\xfe\n",
        b'{"op": ["x"]}\n',
        b'{"op": "record", "dataset": "../x"}\n',
        b"[" * 100_000 + b"\n",
    ):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(str(lasting.socket))
            sock.sendall(data)
            with sock.makefile("rb") as lines:
                assert json.loads(lines.readline())["ok"] is False
    assert lasting.status()["running"]


def test_dataset_add_refuses_what_is_none(lasting: Daemon, tmp_path: Path) -> None:
    ran = lasting.ctl("dataset", "add", str(tmp_path), "--name", "lift")
    assert ran.code == 1 and "info.json" in ran.err
    assert lasting.ctl("dataset").out.startswith("no datasets yet")


@pytest.mark.needs("torch", "lerobot")  # its daemon has a runtime: without one it would say only that
def test_systemd_sees_ready_status_and_watchdog(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(60)
        node = Daemon(tmp_path / "node", NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="2000000")
        with node:
            _hear(notify, "READY=1", "WATCHDOG=1", "STATUS=idle: not enrolled")
            node.stop()  # it stands still: what it has said by now is all there is, and a word from elsewhere would follow
            notify.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    notify.recv(4096)
            os.kill(node.pid, signal.SIGCONT)
            notify.settimeout(60)
            _hear(notify, "WATCHDOG=1")
            node.terminate()
        notify.settimeout(60)
        _hear(notify, "STOPPING=1")


def _hear(notify: socket.socket, *words: str) -> None:
    """Read until each of `words` was said, whatever else is; a socket that goes silent raises TimeoutError."""
    seen = ""
    while not all(word in seen for word in words):
        seen += notify.recv(4096).decode() + "\n"


def test_socket_activation(tmp_path: Path) -> None:
    path = tmp_path / "activated.sock"
    state = tmp_path / "node"
    state.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def inherit() -> None:
            os.dup2(listener.fileno(), 3)
            os.environ["LISTEN_PID"] = str(os.getpid())

        # LISTEN_PID must name the process itself: a shell puts its own number, which exec keeps.
        command = 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" -m zk0d.daemon.main --state "$1"'
        process = subprocess.Popen(
            ["/bin/sh", "-c", command, sys.executable, str(state)], preexec_fn=inherit, pass_fds=(3,), close_fds=True,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            assert call(path, {"op": "status"}, timeout=60)["pid"] == process.pid
            assert not (state / "control.sock").exists()
        finally:
            process.terminate()
            assert process.wait(60) == 0
        assert path.is_socket()


def test_installed_without_bus_and_runtime_it_runs_and_says_what_it_cannot_do(tmp_path: Path) -> None:
    gone = {
        "ZK0_WORKERS": "units",
        "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={tmp_path}/bus",
        "ZK0_RUNTIME": str(tmp_path),
    }
    with Daemon(tmp_path / "node", **gone) as node:
        ran = node.ctl("status")
        assert ran.code == 2 and ran.out.startswith("idle: systemd cannot be asked"), ran
        (problem,) = node.status()["health"]
        assert (
            "systemd cannot be asked" in problem["message"]
            and "no recording, rollout or training" in problem["message"]
        )
        assert (
            "status, enrolment and transfers work" in problem["message"] and "systemctl status dbus" in problem["hint"]
        )
        refused = node.ctl("record", "--task", "lift", "--dataset", "cubes", "--episodes", "1")
        assert refused.code == 1 and "no recorder can run" in refused.err + refused.out, refused
        with pytest.raises(UnseenError, match=f"zk0d cannot read {tmp_path}"):  # which has it copied in by zk0ctl
            node.ask("dataset_add", name="x", path=str(tmp_path))
        assert node.status()["running"] and node.terminate() < STOP_S


@pytest.mark.needs("torch", "lerobot")  # its daemon has a runtime: without one it would say only that
def test_the_log_by_its_fields(lasting: Daemon) -> None:
    lasting.ctl("train", "pause", "--for", "2h")
    lasting.ctl("train", "resume")
    told = lasting.ctl("logs", "--event", "decision", "--json", "-n", "1")
    entry = loads(told)
    assert entry["event"] == "decision" and entry["text"].startswith("idle: ") and entry["rule"] == "enrol"
    follower = lasting.begin("logs", "--event", "train", "--follow", "-n", "1", "--json")
    assert follower.stdout is not None
    assert "train resume" in follower.stdout.readline()
    lasting.ctl("train", "pause", "--for", "1h")
    assert "train pause for 3600 s" in follower.stdout.readline()
    lasting.ctl("train", "resume")
    follower.terminate()
    follower.communicate(timeout=120)
    assert lasting.ctl("logs", "--level", "error").out == ""
    for words in ((), ("--worker", "zk0d"), ("--event", "train")):
        assert lasting.ctl("logs", *words, "-n", "0") == Ran(0, "", "")
    assert "zk0d started" in lasting.ctl("logs", "--since", "1h", "--json").out


def test_the_bundle_of_a_living_daemon_says_nothing_of_a_home(lasting: Daemon, tmp_path: Path) -> None:
    canary = "canary-of-this-home"
    root = tmp_path / canary
    (root / "meta").mkdir(parents=True)
    info = {"codebase_version": "v3.0", "total_episodes": 1, "total_frames": 30, "fps": 30, "features": {}}
    (root / "meta/info.json").write_text(json.dumps(info))
    assert lasting.ctl("dataset", "add", str(root), "--name", canary, "--task", f"lift the {canary}").code == 0
    assert canary in lasting.ctl("logs").out  # on this machine it is said
    out = tmp_path / "bundle.tar.gz"
    assert lasting.ctl("debug", "bundle", "--out", str(out)).code == 0
    with tarfile.open(out) as archive:
        texts = {m.name: archive.extractfile(m).read().decode() for m in archive.getmembers()}  # type: ignore[union-attr]
    assert "<private>" in texts["zk0d-debug/log/zk0d.log"] and "zk0d started" in texts["zk0d-debug/log/zk0d.log"]
    assert json.loads(texts["zk0d-debug/status.json"])["datasets"][0]["frames"] == 30
    for name, text in texts.items():
        assert canary not in text, name
        assert socket.gethostname() not in text, name
