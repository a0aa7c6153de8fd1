"""A real trainer in its unit: started by the unprivileged daemon for a task of a hub, frozen while a person records, thawed.

Everything is as installed but the runtime, which is this checkout's environment, shown to the system read-only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import install, make_runtime, with_runtime
from test_hub import ADDRESS, hub
from test_installed import show, wait_active

SETTINGS = """
[robot]
follower = "virtual:PickLift"
[robot.cameras.front]
height = 64
width = 64
[idle]
settle_s = 0
[train]
threads = 1
niceness = 12
checkpoint_every_s = 5
"""
FEDERATION = """
[model]
policy = "act"
preset = "tiny"
dtype = "float32"
[model.cameras]
front = [64, 64]
[training]
local_steps = 100000
batch_size = 4
[rounds]
min_nodes = 1
target = 1
quorum = 1
"""
# The hub's own unit may not run torch; its maintainer makes a model elsewhere and gives it (`federation create --from`).
INITIAL = """
import asyncio, json, sys
from pathlib import Path
sys.path.insert(0, "/usr/lib/zk0")
from zk0d.supervise import Worker
import tomllib
model = tomllib.loads(Path("/root/pick.toml").read_text())["model"]
async def make():
    job = {"model": model, "seed": 0, "out": "/root/parts", "cache": "/root/initial/cache"}
    python = "/var/lib/zk0-runtime/current/bin/python"
    worker = await Worker.start(python, "zk0d.train.initial", job, Path("/root/initial"), Path("/root/initial.log"), print)
    await worker.wait()
asyncio.run(make())
"""
RECORD = "zk0ctl record --keep all --task 'lift the cube' --episode-s 2 --json"


@pytest.fixture(scope="module")
def training(boot: Callable[..., Any], debs: list[Path]) -> Iterator[Any]:
    """A system whose zk0d trains for a federation of a hub in the same system."""
    with with_runtime(boot) as system:
        install(system, debs)
        system.sh("useradd -m alice && usermod -aG zk0 alice")
        make_runtime(system)
        system.run("tee", "/etc/zk0d/conf.d/50-arm.toml", input=SETTINGS)
        system.sh("systemctl restart zk0d.service")
        wait_active(system, "zk0d.service")
        system.run("tee", "/root/pick.toml", input=FEDERATION)
        system.run("python3", "-c", INITIAL, timeout=120)
        hub(system, "init", "--listen", ADDRESS, "--name", "booted hub")
        system.sh(
            "systemctl start zk0-hub.service; cp -r /root/parts /root/pick.toml /var/lib/zk0-hub/; chown -R zk0-hub: /var/lib/zk0-hub/parts /var/lib/zk0-hub/pick.toml"
        )
        wait_active(system, "zk0-hub.service")
        hub(
            system,
            "federation",
            "create",
            "pick",
            "--config",
            "/var/lib/zk0-hub/pick.toml",
            "--from",
            "/var/lib/zk0-hub/parts",
        )
        token = json.loads(hub(system, "invite", "--label", "alice", "--address", ADDRESS, "--json"))["token"]
        system.run("zk0ctl", "enroll", token, user="alice")
        system.sh(f"{RECORD} --dataset cups --episodes 1", user="alice", timeout=200)
        system.run("zk0ctl", "federation", "join", "pick", user="alice")
        system.until(lambda: steps(system) > 0, 120, f"the trainer's first steps; {logs(system)}")
        yield system


def status(system: Any) -> dict[str, Any]:
    return dict(json.loads(system.run("zk0ctl", "status", "--json", user="alice", check=False).stdout))


def steps(system: Any) -> int:
    return int(status(system)["training"]["progress"].get("step", 0))


def logs(system: Any) -> str:
    return str(
        system.sh(
            "zk0ctl status; zk0ctl logs -n 20; journalctl --sync; journalctl -q -o cat -u 'zk0d*' -n 30; tail -n 20 /var/lib/zk0d/log/trainer.log"
        )
    )


def trainer(system: Any) -> str:
    (unit,) = system.sh(
        "systemctl list-units --no-legend --plain --state=active 'zk0d-train@*' | cut -d' ' -f1"
    ).split()
    return str(unit)


def recorder(system: Any) -> str:
    found = system.sh("systemctl list-units --no-legend --plain --state=active 'zk0d-record@*' | cut -d' ' -f1").split()
    return str(found[0]) if found else ""


def used(system: Any, pid: str) -> int:
    fields = system.run("cat", f"/proc/{pid}/stat").stdout.rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])


def test_the_trainer_steps_back_from_everything_else(training: Any) -> None:
    unit = trainer(training)
    pid = show(training, unit, "MainPID")
    assert "/zk0.slice/zk0-train.slice/" in show(training, unit, "ControlGroup")
    assert training.sh(f"ps -o user=,ni=,cls= -p {pid}").split() == ["zk0d", "12", "B"]
    assert training.sh(f"ionice -p {pid}").strip() == "idle"
    assert training.sh(f"cat /proc/{pid}/oom_score_adj").strip() == "900"
    assert "/usr/libexec/zk0/worker" not in training.sh(f"cat /proc/{pid}/cmdline")
    assert show(training, unit, "RestrictRealtime") == "yes"
    limits = {n: show(training, "zk0-train.slice", n) for n in ("CPUWeight", "IOWeight", "MemoryHigh")}
    assert limits["IOWeight"] == "10" and limits["MemoryHigh"] not in ("infinity", ""), limits
    controllers = training.sh("cat /sys/fs/cgroup/cgroup.controllers").split()
    if "cpu" in controllers:
        assert training.sh("cat /sys/fs/cgroup/zk0.slice/zk0-train.slice/cpu.idle").strip() == "1"


def test_frozen_while_a_person_records_and_thawed_afterwards(training: Any) -> None:
    unit = trainer(training)
    pid, before = show(training, unit, "MainPID"), steps(training)
    training.sh(f"systemd-run -q --unit=alices --uid=alice --setenv=LANG=C.UTF-8 {RECORD} --dataset mugs --episodes 3")
    training.until(lambda: show(training, unit, "FreezerState") == "frozen", 60, f"the freeze; {logs(training)}")
    assert status(training)["training"]["trainer"] == "frozen"
    ticks = used(training, pid)
    first_comes = training.until(lambda: _take(training), 90, f"a take; {logs(training)}")
    assert used(training, pid) == ticks, "a frozen trainer takes no processor time"
    print(first_comes)
    training.until(lambda: show(training, unit, "FreezerState") == "running", 120, f"the thaw; {logs(training)}")
    assert show(training, unit, "MainPID") == pid
    training.until(lambda: steps(training) > before, 60, f"it goes on; {logs(training)}")


def _take(system: Any) -> str:
    """How the recorder's control loop is scheduled, once it is in a take; checked against what its unit may."""
    unit = recorder(system)
    if not unit or not (status(system)["session"] or {}).get("progress"):
        return ""
    assert show(system, unit, "LimitRTPRIO") == "20" and show(system, unit, "Nice") == "-10"
    pid = show(system, unit, "MainPID")
    limit = re.search(r"Max realtime priority\s+(\d+)", system.run("cat", f"/proc/{pid}/limits").stdout)
    said = str(system.sh(f"chrt -p {pid}; ps -o ni= -p {pid}"))
    if limit is not None and limit[1] == "20":
        assert "SCHED_RR" in said, said
    else:
        said += f" (this container's systemd could not grant real time: limit {limit and limit[1]})"
        assert "SCHED_OTHER" in said, said
    return said


def test_the_journal_by_federation_and_version(training: Any) -> None:
    training.sh("usermod -aG systemd-journal alice")
    rows = training.run("zk0ctl", "logs", "--federation", "pick", "--version", "0", "--json", user="alice").stdout
    events = {json.loads(row)["event"] for row in rows.splitlines()}
    assert {"task", "version"} <= events, rows
    unit = trainer(training)
    said = training.run("zk0ctl", "logs", "--journal", "--field", f"unit={unit}", user="alice").stdout
    assert "Started" in said and "Trainer of zk0d" in said, said
    outside = training.run("zk0ctl", "logs", "--journal", user="zk0d", check=False)
    assert outside.returncode == 1 and "usermod -aG systemd-journal" in outside.stderr, outside
    training.sh("gpasswd -d alice systemd-journal")
    own = training.run("zk0ctl", "logs", "--event", "task", "--json", user="alice")
    assert "systemd-journal" in own.stderr and json.loads(own.stdout.splitlines()[-1])["federation"] == "pick"


def test_without_a_bus_the_daemon_starts_and_goes_on_when_it_is_there(training: Any) -> None:
    training.sh("systemctl stop dbus.socket dbus.service; systemctl kill -s KILL zk0d.service")
    try:

        def told() -> str:
            health = status(training).get("health", [])
            return next((p["message"] for p in health if "systemd cannot be asked" in p["message"]), "")

        training.until(told, 60, "the daemon to say it")
    finally:
        training.sh("systemctl start dbus.socket dbus.service")
    training.until(lambda: not told(), 30, "the bus to be found again")
    training.until(
        lambda: status(training)["training"]["trainer"] == "running", 120, f"training to go on; {logs(training)}"
    )
