"""Recording with the virtual arm through the packaged units: the daemon may be upgraded or killed meanwhile."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import install, make_runtime, with_runtime
from test_installed import show, wait_active

RECORD = ("zk0ctl", "record", "--keep", "all", "--task", "lift the cube", "--follower", "virtual:PickLift")


@pytest.fixture(scope="module")
def station(boot: Callable[..., Any], debs: list[Path]) -> Iterator[Any]:
    with with_runtime(boot) as system:
        install(system, debs)
        system.sh("useradd -m alice && usermod -aG zk0 alice && useradd -m mallory && chmod 700 /home/alice")
        make_runtime(system)
        system.sh("systemctl restart zk0d.service")
        wait_active(system, "zk0d.service")
        yield system


def units(system: Any, kind: str) -> list[str]:
    said = system.sh(f"systemctl list-units --no-legend --plain --state=active 'zk0d-{kind}@*' | cut -d' ' -f1")
    return str(said).split()


def episodes(system: Any, name: str) -> int:
    info = system.run("cat", f"/var/lib/zk0d/datasets/{name}/meta/info.json", check=False).stdout
    return int(json.loads(info)["total_episodes"]) if info else 0


def logs(system: Any) -> str:
    return str(
        system.sh("journalctl --sync; journalctl -q -o cat -u 'zk0d*' -n 60; tail -n 30 /var/lib/zk0d/log/recorder.log")
    )


def test_an_operator_records_and_the_recorder_is_a_unit(station: Any) -> None:
    done = station.run(
        *RECORD,
        "--dataset",
        "cups",
        "--episodes",
        "1",
        "--episode-s",
        "2",
        "--json",
        user="alice",
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr + logs(station)
    assert episodes(station, "cups") == 1
    assert (station.sh("systemctl --failed --no-legend").strip(), units(station, "record")) == ("", [])


def test_an_operators_exports_are_the_operators_own_and_where_they_were_asked_for(station: Any) -> None:
    """The units have a /tmp of their own and see no home: zk0ctl writes, with alice's rights, as the guide shows it."""
    for folder in ("/home/alice/cups", "/tmp/cups"):
        told = station.run("zk0ctl", "dataset", "export", "cups", folder, user="alice")
        assert folder in told.stdout, told.stdout
        assert station.sh(f"stat -c %U {folder} {folder}/meta/info.json").split() == ["alice", "alice"]
        shown = station.run("zk0ctl", "dataset", "show", "cups", user="alice").stdout
        assert "1 of 1, " in shown and f"in {folder}" in shown, shown
        print(told.stdout.strip())
    station.run("zk0ctl", "dataset", "sheet", "cups", "--out", "/home/alice/sheet.png", user="alice")
    head = station.sh("head -c 4 /home/alice/sheet.png | tail -c 3; stat -c ' %U' /home/alice/sheet.png")
    assert head.split() == ["PNG", "alice"], head
    refused = station.run("zk0ctl", "dataset", "export", "cups", "/root/cups", user="alice", check=False)
    assert refused.returncode == 64 and "cannot be written" in refused.stderr, refused.stderr
    viewer = station.run(
        *RECORD, "--dataset", "seen", "--episodes", "1", "--rerun", "127.0.0.1:9876", user="alice", check=False
    )
    assert viewer.returncode == 64 and "has no network" in viewer.stderr, viewer.stderr


def test_an_operators_own_datasets_come_in_from_a_home_that_the_daemon_cannot_read(station: Any) -> None:
    """zk0ctl reads alice's folders with her rights; a link in one shows nothing of elsewhere, and mallory is refused."""
    done = station.run(
        "zk0ctl", "dataset", "import", "local:/home/alice/cups", "--name", "again", user="alice", check=False
    )
    assert done.returncode == 0 and "/var/lib/zk0d/datasets/again: 1 episode" in done.stdout, done.stderr + logs(
        station
    )
    assert station.sh("stat -c '%U %a' /var/lib/zk0d/datasets/again/meta/info.json").split() == ["zk0d", "600"]
    print(done.stdout.strip())
    # `add` does the same where the daemon cannot read, and says that it is a copy.
    station.sh("rm -rf /home/alice/cups/meta/episodes")
    done = station.run("zk0ctl", "dataset", "repair", "/home/alice/cups", "--into", "saved", user="alice", check=False)
    assert done.returncode == 0 and "1 episode" in done.stdout, done.stdout + done.stderr + logs(station)
    added = station.run("zk0ctl", "dataset", "add", "/tmp/cups", "--no-train", user="alice", check=False)
    assert added.returncode == 64 and "give /tmp/cups another name" in added.stderr, added.stdout + added.stderr
    added = station.run("zk0ctl", "dataset", "add", "/tmp/cups", "--name", "own", "--task", "stack", user="alice")
    assert "a copy, in /var/lib/zk0d/datasets/own: zk0d cannot read /tmp/cups" in added.stdout, added.stdout
    listed = json.loads(station.run("zk0ctl", "dataset", "list", "--json", user="alice").stdout)
    assert {d["name"]: d["tasks"] for d in listed}["own"] == ["stack"]
    station.sh("ln -s /etc/shadow /tmp/cups/meta/zk0/leak.json")
    leak = station.run("zk0ctl", "dataset", "import", "local:/tmp/cups", "--name", "leak", user="alice", check=False)
    assert leak.returncode == 1 and "a link that leads nowhere or out of it" in leak.stderr, leak.stderr
    station.sh("install -d -o mallory /home/mallory/x /home/mallory/x/meta; echo '{}' >/home/mallory/x/meta/info.json")
    theirs = station.run(
        "zk0ctl", "dataset", "import", "local:/home/mallory/x", "--name", "x", user="mallory", check=False
    )
    assert theirs.returncode != 0 and "x" not in station.sh("ls -A /var/lib/zk0d/datasets").split(), theirs.stdout
    assert "permission denied" in theirs.stderr, theirs.stderr
    assert station.sh("ls -A /var/lib/zk0d/datasets/.carried").split() == []


def begin(system: Any, name: str) -> None:
    """Start a recording by alice that goes on until it is told to end, and wait until its recorder has saved an episode."""
    command = " ".join(RECORD).replace("lift the cube", "'lift the cube'")
    system.sh(
        f"systemd-run -q --unit=alices-{name} --uid=alice --setenv=LANG=C.UTF-8"
        f" {command} --dataset {name} --episodes 500 --episode-s 1 --json"
    )
    system.until(lambda: episodes(system, name) >= 1, 90, lambda: f"the first episode; {logs(system)}")


def registered(system: Any, name: str) -> int:
    said = json.loads(system.run("zk0ctl", "status", "--json", user="alice", check=False).stdout)
    return int(next((d["episodes"] for d in said["datasets"] if d["name"] == name), 0))


def goes_on(system: Any, name: str, unit: str, recorder: str) -> None:
    """The same recorder saves further episodes, obeys the new daemon, and its dataset is known whole."""
    before = episodes(system, name)
    assert show(system, unit, "MainPID") == recorder
    system.until(lambda: episodes(system, name) > before, 90, "a further episode")
    assert show(system, unit, "MainPID") == recorder
    system.run("zk0ctl", "record", "finish", user="alice")
    system.until(lambda: not units(system, "record"), 90, "the recorder's end")
    system.until(lambda: registered(system, name) == episodes(system, name), 90, "the dataset to be known")
    events = system.sh("zk0ctl logs -n 40")
    assert f"recording of {name!r} by alice goes on" in events, events
    saved = re.search(rf"recording of {name!r} by alice stopped: (\d+) episodes saved", events)
    assert saved is not None and int(saved[1]) == episodes(system, name), events


def test_an_upgrade_does_not_touch_a_recording(station: Any, newer_debs: list[Path]) -> None:
    begin(station, "upgraded")
    (unit,) = units(station, "record")
    recorder, daemon = show(station, unit, "MainPID"), show(station, "zk0d.service", "MainPID")
    install(station, newer_debs)
    wait_active(station, "zk0d.service", not_pid=daemon)
    goes_on(station, "upgraded", unit, recorder)


def test_killed_the_daemon_finds_its_recorder_again(station: Any) -> None:
    begin(station, "killed")
    (unit,) = units(station, "record")
    recorder, daemon = show(station, unit, "MainPID"), show(station, "zk0d.service", "MainPID")
    station.sh(f"kill -9 {daemon}")
    wait_active(station, "zk0d.service", not_pid=daemon)
    goes_on(station, "killed", unit, recorder)


CUT = """
import glob, os, signal, subprocess, sys, time
recorder, daemon = int(sys.argv[1]), int(sys.argv[2])
waiting = "/var/lib/zk0d/datasets/waiting/.zk0/staging/*/take.json"
end = time.monotonic() + 90
while time.monotonic() < end:
    if glob.glob(waiting):
        os.kill(recorder, signal.SIGSTOP)
        time.sleep(0.05)
        if glob.glob(waiting):
            os.kill(daemon, signal.SIGSTOP)  # else it starts another recorder, which would save the take itself
            os.kill(recorder, signal.SIGKILL)
            os.kill(daemon, signal.SIGKILL)
            sys.exit(0)
        os.kill(recorder, signal.SIGCONT)
    time.sleep(0.001)
sys.exit("no take waited to be saved")
"""


def test_a_take_that_waited_when_both_were_killed_is_saved_at_the_next_start(station: Any) -> None:
    begin(station, "waiting")
    (unit,) = units(station, "record")
    recorder, daemon = show(station, unit, "MainPID"), show(station, "zk0d.service", "MainPID")
    station.run("python3", "-", recorder, daemon, input=CUT, timeout=120)
    wait_active(station, "zk0d.service", not_pid=daemon)
    said = "take(s) of 'waiting' were saved after the last run was cut"

    def told() -> str:
        lines = station.sh("zk0ctl logs -n 40").splitlines()
        return next((line for line in lines if said in line or "could not be saved yet" in line), "")

    station.until(lambda: told(), 90, lambda: f"the adoption to be said; {logs(station)}")
    assert said in told(), told() + logs(station)
    station.until(lambda: registered(station, "waiting") == episodes(station, "waiting"), 90, "the dataset to be known")
    print(told().strip())
