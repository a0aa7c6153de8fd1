"""What the unprivileged daemon may do with systemd: its own three templates, these verbs, nothing else.

The units run `sleep` here in place of a worker: the subject is who may manage them and how they are confined.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TEMPLATES = ("train", "record", "rollout")
BUS = "busctl call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager"

REFUSED = ("Access denied", "not permitted", "authentication")


@pytest.fixture(autouse=True, scope="module")
def stand_in(system: Any) -> Iterator[None]:
    for kind in TEMPLATES:
        system.sh(
            f"d=/run/systemd/system/zk0d-{kind}@.service.d; mkdir -p $d;"
            " printf '[Service]\\nExecStart=\\nExecStart=/bin/sleep 600\\n' >$d/stand-in.conf"
        )
    system.sh("systemctl daemon-reload; install -d -o zk0d -g zk0d /var/lib/zk0d/work /var/lib/zk0d/work/t1")
    yield
    system.sh("rm -rf /run/systemd/system/zk0d-*@.service.d /dev/zk0-acm /dev/zk0-fuse; systemctl daemon-reload")


def state(system: Any, unit: str, name: str = "ActiveState") -> str:
    return str(system.sh(f"systemctl show --value -p {name} {unit}")).strip()


@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_daemon_runs_freezes_thaws_and_stops_its_workers(system: Any, kind: str) -> None:
    unit = f"zk0d-{kind}@t1.service"
    system.run("systemctl", "--no-ask-password", "start", unit, user="zk0d")
    assert state(system, unit) == "active"
    # Not `systemctl freeze`: it also asks for a reference to the unit, which the bus allows only to root.
    system.run("bash", "-c", f"{BUS} FreezeUnit s {unit}", user="zk0d")
    assert state(system, unit, "FreezerState") == "frozen"
    system.run("bash", "-c", f"{BUS} ThawUnit s {unit}", user="zk0d")
    assert state(system, unit, "FreezerState") == "running"
    system.run("bash", "-c", f"{BUS} FreezeUnit s {unit}", user="zk0d")
    refused = system.run("systemctl", "--no-ask-password", "stop", unit, user="zk0d", check=False)
    assert "frozen unit" in refused.stderr  # systemd stops no frozen unit: thaw first
    system.run("bash", "-c", f"{BUS} ThawUnit s {unit}", user="zk0d")
    system.run("systemctl", "--no-ask-password", "stop", unit, user="zk0d")
    assert state(system, unit) == "inactive"


@pytest.mark.parametrize(
    "unit",
    ["dbus.service", "zk0d.service", "zk0-hub.service", "zk0d-evil@t1.service", "xzk0d-train@t1.service", "zk0d-train@t1.timer",
     "user.slice", "poweroff.target"],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["StartUnit", "StopUnit", "RestartUnit", "FreezeUnit", "ThawUnit"])
def test_the_daemon_manages_nothing_else(system: Any, unit: str, verb: str) -> None:
    arguments = f"s {unit}" if verb in ("FreezeUnit", "ThawUnit") else f"ss {unit} replace"
    tried = system.run("bash", "-c", f"exec 2>&1; {BUS} {verb} {arguments}", user="zk0d", check=False)
    assert tried.returncode != 0, tried.stdout
    missing = (
        ("not loaded", "not found")
        if "zk0d-evil" in unit or "xzk0d" in unit or unit.endswith((".timer", ".target"))
        else ()
    )
    assert any(word in tried.stdout for word in (*REFUSED, *missing)), tried.stdout


def test_the_daemon_may_not_change_its_workers_confinement(system: Any) -> None:
    system.run("systemctl", "--no-ask-password", "start", "zk0d-train@t1.service", user="zk0d")
    for call in (
        "SetUnitProperties 'sba(sv)' zk0d-train@t1.service true 1 DevicePolicy s auto",
        "Reload",
        "StartTransientUnit 'ssa(sv)a(sa(sv))' mine.service fail 0 0",
        "StartTransientUnit 'ssa(sv)a(sa(sv))' zk0d-train@t2.service fail 0 0",  # a template's name cannot be taken
        "EnableUnitFiles 'asbb' 1 zk0d-train@.service true true",
    ):
        tried = system.run("bash", "-c", f"exec 2>&1; {BUS} {call}", user="zk0d", check=False)
        assert tried.returncode != 0, f"{call}: {tried.stdout}"
        assert any(w in tried.stdout for w in (*REFUSED, "has a fragment file")), f"{call}: {tried.stdout}"
    system.sh("systemctl stop zk0d-train@t1.service")


@pytest.mark.parametrize("user", ["alice", "mallory"])
def test_people_may_not_manage_workers(system: Any, user: str) -> None:
    for verb, arguments in (
        ("StartUnit", "ss zk0d-train@t1.service replace"),
        ("FreezeUnit", "s zk0d-train@t1.service"),
    ):
        tried = system.run("bash", "-c", f"exec 2>&1; {BUS} {verb} {arguments}", user=user, check=False)
        assert tried.returncode != 0, f"{verb}: {tried.stdout}"


def test_workers_are_confined(system: Any) -> None:
    """Inside the trainer's unit: no network, no disk but its own, no serial port, no capabilities; and it is in its slice."""
    system.run("systemctl", "--no-ask-password", "start", "zk0d-train@t1.service", user="zk0d")
    pid = state(system, "zk0d-train@t1.service", "MainPID")
    assert "/zk0.slice/zk0-train.slice/" in state(system, "zk0d-train@t1.service", "ControlGroup")
    status = system.sh(f"cat /proc/{pid}/status")
    assert "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status
    inside = f"nsenter -t {pid} -m -n setpriv --reuid zk0d --regid zk0d --init-groups"
    assert "lo" in system.sh(f"{inside} cat /proc/net/dev")
    assert system.run("bash", "-c", f"{inside} touch /etc/x /usr/x /home/x /run/x", check=False).returncode != 0
    system.sh(f"{inside} touch /var/lib/zk0d/work/t1/mine")
    assert "700 zk0d:zk0d" in system.sh("stat -c '%a %U:%G' /var/lib/zk0d/keys")
    for kind in TEMPLATES:  # what people give it to read may be a link to the node's key
        system.run("systemctl", "--no-ask-password", "start", f"zk0d-{kind}@t1.service", user="zk0d")
        pid = state(system, f"zk0d-{kind}@t1.service", "MainPID")
        inside = f"nsenter -t {pid} -m setpriv --reuid zk0d --regid zk0d --init-groups"
        assert system.run("bash", "-c", f"{inside} ls /var/lib/zk0d/keys", check=False).returncode != 0, kind
        system.sh(f"systemctl stop zk0d-{kind}@t1.service")
    system.sh("systemctl stop zk0d-train@t1.service")


def test_devices_by_major_number_are_enforced(system: Any) -> None:
    """A recorder may open serial ports, a trainer may not: by number, so that it holds before the module is loaded."""
    system.sh("mknod -m 666 /dev/zk0-acm c 166 0; mknod -m 666 /dev/zk0-fuse c 10 229")
    for kind, node, allowed in (
        ("record", "/dev/zk0-acm", True),
        ("train", "/dev/zk0-acm", False),
        ("record", "/dev/zk0-fuse", False),
    ):
        system.sh(
            f"printf '[Service]\\nType=oneshot\\nExecStart=\\nExecStart=/bin/sh -c \"exec <{node}\"\\n'"
            f" >/run/systemd/system/zk0d-{kind}@.service.d/stand-in.conf; systemctl daemon-reload"
        )
        system.run("systemctl", "start", f"zk0d-{kind}@t1.service", check=False, timeout=30)
        said = system.sh(f"journalctl --sync; journalctl -q -o cat -u zk0d-{kind}@t1.service -n 6")
        # ENXIO or ENODEV: the open got past the device policy, and no such device is plugged in.
        found = ("No such device" in said, "Operation not permitted" in said)
        assert found == (allowed, not allowed), f"{kind} {node}: {said}"


CONTRACT = Path(__file__).resolve().parents[1] / "worker_contract.py"


@pytest.fixture
def probing(system: Any) -> Iterator[Any]:
    """The trainer's unit with a probe in the trainer's place: the shim, the sandbox and the daemon's own code are the real ones."""
    spec = importlib.util.spec_from_file_location("worker_contract", CONTRACT)
    assert spec is not None and spec.loader is not None
    contract = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(contract)
    system.sh(
        "mkdir -p /opt/probe; rm -f /run/systemd/system/zk0d-train@.service.d/stand-in.conf;"
        'sed \'s/zk0d.train.trainer/probe/; s|PYTHONPATH="/usr/lib/zk0"|PYTHONPATH="/usr/lib/zk0:/opt/probe"|\''
        " /usr/libexec/zk0/worker >/opt/probe/worker; chmod 755 /opt/probe/worker;"
        "printf '[Service]\\nExecStart=\\nExecStart=/opt/probe/worker train %%I\\n'"
        " >/run/systemd/system/zk0d-train@.service.d/probe.conf; systemctl daemon-reload"
    )
    system.run("tee", "/opt/probe/probe.py", input=contract.PROBE)
    system.put(CONTRACT, "/opt/probe/worker_contract.py")
    yield system
    system.sh("rm /run/systemd/system/zk0d-train@.service.d/probe.conf; systemctl daemon-reload")


@pytest.mark.parametrize("part", ["result", "failures", "freeze", "kill", "freeze_times"])
def test_the_contract_of_workers_as_units(probing: Any, part: str) -> None:
    """By the unprivileged daemon's own code; the same parts run against children in tests/unit/test_supervise.py."""
    run = ("env", "PYTHONPATH=/usr/lib/zk0", "python3", "/opt/probe/worker_contract.py", part)
    done = probing.run(*run, user="zk0d", check=False)
    assert done.returncode == 0, done.stderr + probing.sh(
        "journalctl -q -o cat -n 40; tail -n 20 /var/lib/zk0d/log/trainer.log"
    )
    print(done.stdout)
    assert probing.sh("systemctl list-units --no-legend --plain 'zk0d-train@*'").strip() == ""
