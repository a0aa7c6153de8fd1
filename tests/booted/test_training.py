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

from robot.realtime import PRIORITY

SETTINGS = """
[robot]
follower = "virtual:PickLift"
[robot.cameras.front]
height = 32
width = 32
# This machine is shared: what else runs on it is no reason here.
[idle]
settle_s = 0
foreign_cpu = 0
memory_pressure = 0
temperature = 0
disk_free_gb = 0
on_battery = "ignore"
metered = "ignore"
[train]
threads = 1
niceness = 12
checkpoint_every_s = 5
"""
FEDERATION = """
[model]
policy = "smolvla"
preset = "tiny"
dtype = "float32"
[model.cameras]
front = [32, 32]
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
# Where even root may not raise this limit, no systemd can grant it to a unit: there the right comes from a capability.
LENT = "cat /run/systemd/system/zk0d-record@.service.d/lent.conf 2>/dev/null"
LEND = """
prlimit --rtprio=20:20 true 2>/dev/null && exit
mkdir /run/systemd/system/zk0d-record@.service.d
printf '[Service]\\nCapabilityBoundingSet=CAP_SYS_NICE\\nAmbientCapabilities=CAP_SYS_NICE\\n' >/run/systemd/system/zk0d-record@.service.d/lent.conf
systemctl daemon-reload
"""
RECORD = "zk0ctl record --keep all --task 'lift the cube' --episode-s 2 --json"


# The command as an operator has it, but with a virtual arm in step with the clock, as a physical one is: only then is there hurry.
REAL = """
import sys
sys.path.insert(0, "/usr/lib/zk0")
from zk0d.ctl.context import Context
from zk0d.ctl.main import main
plain = Context.call
Context.call = lambda self, op, *rest, **request: plain(self, op, *rest, **{**request, "pace": "real"} if op == "record" else request)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def training(boot: Callable[..., Any], debs: list[Path]) -> Iterator[Any]:
    """A system whose zk0d trains for a federation of a hub in the same system."""
    with with_runtime(boot) as system:
        install(system, debs)
        system.sh("useradd -m alice && usermod -aG zk0 alice")
        make_runtime(system)
        system.sh(LEND)
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
        system.until(lambda: steps(system) > 0, 120, lambda: f"the trainer's first steps; {logs(system)}")
        yield system


def status(system: Any) -> dict[str, Any]:
    return dict(json.loads(system.run("zk0ctl", "status", "--json", user="alice", check=False).stdout))


def steps(system: Any) -> int:
    return int(status(system)["training"]["progress"].get("step", 0))


def logs(system: Any) -> str:
    return str(
        system.sh(
            "zk0ctl status; zk0ctl logs -n 20; journalctl --sync; journalctl -q -o cat -u 'zk0d*' -n 30; tail -n 20 /var/lib/zk0d/log/trainer.log",
            check=False,
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
    training.run("tee", "/opt/real.py", input=REAL)
    words = RECORD.replace("zk0ctl", "python3 /opt/real.py") + " --dataset mugs --episodes 500"
    training.sh(f"systemd-run -q --unit=alices --uid=alice --setenv=LANG=C.UTF-8 {words}")
    training.until(lambda: show(training, unit, "FreezerState") == "frozen", 90, lambda: f"a freeze; {logs(training)}")
    assert status(training)["training"]["trainer"] == "frozen"
    ticks = used(training, pid)
    _comes_first(training)
    assert used(training, pid) == ticks, "a frozen trainer takes no processor time"
    training.run("zk0ctl", "record", "finish", user="alice")
    training.until(lambda: show(training, unit, "FreezerState") == "running", 90, lambda: f"a thaw; {logs(training)}")
    assert show(training, unit, "MainPID") == pid
    training.until(lambda: steps(training) > before, 90, lambda: f"further steps; {logs(training)}")


def _comes_first(system: Any) -> None:
    """The recorder's unit may be scheduled in real time, and its control loop is while a take lasts."""
    unit = str(system.until(lambda: recorder(system), 90, lambda: f"the recorder; {logs(system)}"))
    assert show(system, unit, "LimitRTPRIO") == "20"
    pid = show(system, unit, "MainPID")
    if not system.sh(LENT, check=False):
        limits = system.run("cat", f"/proc/{pid}/limits").stdout
        assert re.search(r"Max realtime priority\s+20\s+20\s", limits), limits
    assert system.sh(f"ps -o user=,ni= -p {pid}").split() == ["zk0d", "-10"]

    def in_real_time() -> bool:
        said = system.sh(f"chrt -p {pid}", check=False)
        return "policy: SCHED_RR" in said and f"priority: {PRIORITY}" in said

    system.until(in_real_time, 90, lambda: f"a control loop in real time; {logs(system)}")


def rows(system: Any, user: str, *arguments: str) -> tuple[list[dict[str, Any]], str]:
    done = system.run("zk0ctl", "logs", "--json", "-n", "1000", *arguments, user=user)
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def core(entries: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """What the journal and zk0d's own log both have of an entry."""
    return [tuple(str(e.get(k, "")) for k in ("level", "event", "text", "federation", "version")) for e in entries]


VERSION_0 = ("--event", "version", "--federation", "pick", "--version", "0")


def test_the_journal_by_event_federation_and_version(training: Any) -> None:
    """A real journal by its fields, for root and for readers of the journal: journalctl itself finds the same."""
    training.sh("journalctl --sync")
    raw = training.sh("journalctl -q -o cat -u zk0d ZK0_EVENT=version ZK0_FEDERATION=pick ZK0_VERSION=0").splitlines()
    found, notice = rows(training, "root", *VERSION_0)
    assert [e["text"] for e in found] == raw == ["version 0 of pick is published"] and notice == ""
    assert found[0]["unit"] == "zk0d.service"
    for other in (("--version", "1"), ("--federation", "place"), ("--event", "task")):
        assert [e for e in rows(training, "root", *VERSION_0, *other)[0] if e["event"] == "version"] == []
    concerned = rows(training, "root", "--federation", "pick")[0]
    assert {"federation", "version", "task"} <= {e["event"] for e in concerned}
    assert {e["federation"] for e in concerned} == {"pick"}
    assert {e["event"] for e in rows(training, "root", "--event", "link.*")[0]} >= {"link.connected"}
    unit = f"unit={trainer(training)}"
    said = rows(training, "root", "--journal", "--field", unit)[0]
    assert [e for e in said if "Started" in e["text"] and "Trainer of zk0d" in e["text"]], said

    training.sh("usermod -aG systemd-journal alice")
    assert rows(training, "alice", *VERSION_0) == (found, "")
    assert rows(training, "alice", "--journal", "--field", unit)[0] == said
    training.sh("gpasswd -d alice systemd-journal")


def test_an_operator_who_may_not_read_the_journal_gets_the_same_entries(training: Any) -> None:
    """Group zk0 opens no journal: the daemon reads its own log for its operators, and says so. Others get nothing."""
    for filter in (VERSION_0, ("--federation", "pick", "--version", "0"), ("--event", "link.*")):
        own, notice = rows(training, "alice", *filter)
        assert own and core(own) == core(rows(training, "root", *filter)[0]) and "unit" not in own[0]
        assert "zk0d's own log" in notice and "sudo usermod -aG systemd-journal" in notice
    refused = training.run("zk0ctl", "logs", "--journal", user="alice", check=False)
    assert refused.returncode == 1 and refused.stdout == "" and "usermod -aG systemd-journal" in refused.stderr
    training.sh("id mallory || useradd -m mallory")
    outside = training.run("zk0ctl", "logs", *VERSION_0, user="mallory", check=False)
    assert outside.returncode not in (0, 2) and outside.stdout == "", outside


def test_without_a_bus_the_daemon_starts_and_goes_on_when_it_is_there(training: Any) -> None:
    training.sh("systemctl stop dbus.socket dbus.service; systemctl kill -s KILL zk0d.service")
    try:

        def told() -> str:
            health = status(training).get("health", [])
            return next((p["message"] for p in health if "systemd cannot be asked" in p["message"]), "")

        training.until(told, 90, "the daemon to say it")
    finally:
        training.sh("systemctl start dbus.socket dbus.service")
    training.until(lambda: not told(), 90, "the bus to be found again")
    training.until(
        lambda: status(training)["training"]["trainer"] == "running",
        120,
        lambda: f"training to go on; {logs(training)}",
    )
