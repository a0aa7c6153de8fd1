"""The installed packages on a running system: started at boot, open to its operators, closed to others, alive again after a death."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

START = Path(__file__).resolve().parents[2] / "packaging" / "docker" / "start"
STATUS = ("zk0ctl", "status", "--json")


def show(system: Any, unit: str, name: str) -> str:
    return str(system.sh(f"systemctl show --value -p {name} {unit}")).strip()


def wait_active(system: Any, unit: str, not_pid: str = "") -> str:
    """Wait until the unit is active with a main process other than `not_pid` → that process."""

    def probe() -> str | None:
        if show(system, unit, "ActiveState") != "active":
            return None
        pid = show(system, unit, "MainPID")
        return pid if pid not in ("0", not_pid) else None

    return str(
        system.until(probe, 90, lambda: f"{unit} to be active; {system.sh(f'journalctl -q -o cat -u {unit} -n 20')}")
    )


def test_it_runs_after_the_installation_and_no_unit_has_failed(system: Any) -> None:
    wait_active(system, "zk0d.service")
    assert system.sh("systemctl --failed --no-legend").strip() == ""
    assert (
        "zk0d" in show(system, "zk0d.service", "StatusText") or show(system, "zk0d.service", "NotifyAccess") == "main"
    )
    assert show(system, "zk0d.service", "User") == "zk0d"


def test_the_journal_has_fields_to_look_for(system: Any) -> None:
    wait_active(system, "zk0d.service")
    found = system.sh(
        "journalctl --sync; journalctl -q -o json -b _SYSTEMD_UNIT=zk0d.service ZK0_EVENT=starting | tail -n 1"
    )
    entry = json.loads(found)
    assert (entry["ZK0_STATE"], entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"]) == ("/var/lib/zk0d", "6", "zk0d")


def test_the_daemon_may_ask_the_gpus_driver_and_no_other_device(system: Any) -> None:
    """There is no GPU here: a node with the driver's number says "no such device" to whoever may open it."""
    system.sh(
        "mknod -m 666 /dev/nvidiactl c 195 255; mknod -m 666 /dev/nvidia0 c 195 0; mknod -m 666 /dev/ttyACM7 c 166 7"
    )
    before = show(system, "zk0d.service", "MainPID")
    system.sh("systemctl restart zk0d.service")
    try:
        pid = wait_active(system, "zk0d.service", before)
        group = show(system, "zk0d.service", "ControlGroup")
        inside = f"echo $$ > /sys/fs/cgroup{group}/cgroup.procs; exec nsenter -t {pid} -m cat"
        told = {
            device: system.run("sh", "-c", f"{inside} /dev/{device}", check=False).stderr.strip().rpartition(": ")[2]
            for device in ("nvidiactl", "nvidia0", "ttyACM7")
        }
    finally:
        system.sh("rm -f /dev/nvidiactl /dev/nvidia0 /dev/ttyACM7; systemctl restart zk0d.service")
    assert told == {
        "nvidiactl": "No such device or address", "nvidia0": "No such device or address",
        "ttyACM7": "No such file or directory",
    }, told  # fmt: skip


def test_an_operator_in_the_group_needs_no_sudo(system: Any) -> None:
    wait_active(system, "zk0d.service")
    done = system.run(*STATUS, user="alice", check=False)
    assert done.returncode in (0, 2), done.stdout + done.stderr
    assert "schema_version" in json.loads(done.stdout)


def test_someone_outside_the_group_is_refused_and_told_why(system: Any) -> None:
    done = system.run(*STATUS, user="mallory", check=False)
    assert done.returncode not in (0, 2)
    said = done.stdout + done.stderr
    assert "zk0" in said and re.search(r"permission|group", said, re.IGNORECASE), said
    assert "Traceback" not in said


def test_operators_read_neither_keys_nor_other_peoples_data(system: Any) -> None:
    system.sh(
        "install -d -o zk0d -g zk0d -m 700 /var/lib/zk0d/keys; echo secret >/var/lib/zk0d/keys/x; chown zk0d: /var/lib/zk0d/keys/x"
    )
    for user in ("alice", "mallory"):
        for path in ("/var/lib/zk0d", "/var/lib/zk0d/keys/x", "/var/lib/zk0-hub"):
            assert system.run("ls", path, user=user, check=False).returncode != 0, f"{user} may list {path}"
    system.sh("rm /var/lib/zk0d/keys/x; rmdir /var/lib/zk0d/keys 2>/dev/null || true")


def test_no_file_of_the_daemon_is_open_to_others(system: Any) -> None:
    wait_active(system, "zk0d.service")
    open_to_others = system.sh("find /var/lib/zk0d -perm /077 ! -type l | head").strip()
    assert open_to_others == ""


def test_killed_it_comes_back_and_clients_wait(system: Any) -> None:
    pid = wait_active(system, "zk0d.service")
    system.sh(f"kill -9 {pid}")
    done = system.run(
        *STATUS, user="alice", check=False
    )  # the socket is systemd's: the question waits for the next daemon
    assert done.returncode in (0, 2), done.stdout + done.stderr
    assert wait_active(system, "zk0d.service", not_pid=pid) != pid


def test_hung_it_is_ended_by_the_watchdog_and_comes_back(system: Any) -> None:
    system.sh(
        "mkdir -p /run/systemd/system/zk0d.service.d; printf '[Service]\\nWatchdogSec=2s\\n' >/run/systemd/system/zk0d.service.d/fast.conf;"
        "systemctl daemon-reload; systemctl restart zk0d.service"
    )
    pid = wait_active(system, "zk0d.service")
    system.sh(f"kill -STOP {pid}")
    wait_active(system, "zk0d.service", not_pid=pid)
    assert "Watchdog timeout" in system.sh("journalctl --sync; journalctl -q -o cat -u zk0d.service -n 60")
    system.sh(
        "rm /run/systemd/system/zk0d.service.d/fast.conf; systemctl daemon-reload; systemctl restart zk0d.service"
    )
    wait_active(system, "zk0d.service")


def test_a_wrong_setting_is_named_and_not_tried_again_and_again(system: Any) -> None:
    system.sh(
        "printf '[train]\\nniceness = \"high\"\\n' >/etc/zk0d/conf.d/50-wrong.toml; systemctl restart zk0d.service",
        check=False,
    )
    try:
        system.until(lambda: show(system, "zk0d.service", "ActiveState") == "failed", 90, "zk0d to give up")
        said = system.sh("journalctl --sync; journalctl -q -o cat -u zk0d.service -n 20")
        assert "50-wrong.toml" in said and "niceness" in said and "0 … 19" in said
        assert show(system, "zk0d.service", "ExecMainStatus") == "78"
    finally:
        system.sh(
            "rm /etc/zk0d/conf.d/50-wrong.toml; systemctl reset-failed zk0d.service; systemctl restart zk0d.socket zk0d.service"
        )
    wait_active(system, "zk0d.service")


def test_the_sandbox_scores(system: Any) -> None:
    limits = {"zk0d.service": 1.6, "zk0-hub.service": 1.3, "zk0d-train@x.service": 1.6, "zk0d-record@x.service": 1.6,
              "zk0d-rollout@x.service": 1.6}  # fmt: skip
    for unit, limit in limits.items():
        assert score(system, unit) <= limit, unit


def score(system: Any, unit: str) -> float:
    found = re.search(r"exposure level for \S+: ([0-9.]+)", system.sh(f"systemd-analyze security --no-pager {unit}"))
    assert found is not None
    return float(found[1])


def test_units_and_rules_are_understood_without_a_warning(system: Any) -> None:
    said = system.sh(
        "systemd-analyze verify --man=no /usr/lib/systemd/system/zk0*.service /usr/lib/systemd/system/zk0*.slice zk0d.socket"
    )
    assert said.strip() == ""
    assert "zk0" not in system.sh(
        "udevadm verify /usr/lib/udev/rules.d/70-zk0d.rules 2>&1 | grep -i -E 'error|warn' || true"
    )
    # dbus-daemon reads the policy once before its user exists (at unpacking); what counts is what it says afterwards.
    system.sh(
        "busctl call org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus ReloadConfig; journalctl --sync"
    )
    said = system.sh("journalctl -q -o cat -b -u dbus.service | tail -n 3; journalctl -q -o cat -b -u polkit.service")
    assert not re.search("error|unknown|failed", said, re.IGNORECASE), said


def test_man_pages_and_completions_are_there(system: Any) -> None:
    for name in ("man1/zk0ctl.1.gz", "man8/zk0d.8.gz", "man8/zk0-hub.8.gz", "man5/zk0d.toml.5.gz"):
        assert system.run("test", "-f", f"/usr/share/man/{name}", check=False).returncode == 0, name
    said = system.sh(
        "source /usr/share/bash-completion/completions/zk0ctl; COMP_WORDS=(zk0ctl run); COMP_CWORD=1; _zk0ctl; echo ${COMPREPLY[*]}"
    )
    assert said.split() == ["runtime"]


def test_the_doctor_finds_the_installation_whole(system: Any) -> None:
    wait_active(system, "zk0d.service")
    done = system.run("zk0ctl", "doctor", "--json", user="alice", check=False)
    findings = json.loads(done.stdout)["findings"]
    good = {f["check"] for f in findings if f["level"] == "ok"}
    assert {"units", "group"} <= good, findings
    assert not [f for f in findings if f["level"] == "error"], findings
    outside = json.loads(system.run("zk0ctl", "doctor", "--json", user="mallory", check=False).stdout)
    assert [f for f in outside["findings"] if f["check"] == "group" and "usermod -aG zk0 mallory" in f["mend"]]


def findings(system: Any, check: str) -> list[dict[str, str]]:
    told = json.loads(system.run("zk0ctl", "doctor", "--json", user="alice", check=False).stdout)
    return [f for f in told["findings"] if f["check"] == check]


LIMIT = "/run/systemd/system/zk0d.service.d/limit.conf"
DIES = (
    f"mkdir -p $(dirname {LIMIT}); printf '[Unit]\\nStartLimitBurst=2\\n[Service]\\nRestartSec=0\\nRestartSteps=0\\n' >{LIMIT};"
    "systemctl daemon-reload; for i in $(seq 60); do systemctl is-failed -q zk0d.service && break;"
    " systemctl kill -s KILL zk0d.service; sleep 0.5; done"
)


@pytest.mark.parametrize(
    ("spoil", "check", "said"),
    [
        ("systemctl stop zk0d.socket zk0d.service", "units", "zk0d.service is inactive"),
        ("systemctl disable -q zk0d.service", "units", "zk0d.service does not start at boot"),
        (DIES, "units", "zk0d.service is failed"),
        ("gpasswd -d alice zk0", "group", "alice is not in group zk0"),
    ],
)
def test_what_the_doctor_says_mends_it(system: Any, spoil: str, check: str, said: str) -> None:
    """An installation is spoilt; the commands that its findings name, run as they stand, mend it."""
    wait_active(system, "zk0d.service")
    system.sh(spoil, check=False)
    wrong = [f for f in findings(system, check) if f["level"] in ("warning", "error")]
    try:
        assert said in [f["message"] for f in wrong], wrong
        for finding in wrong:
            commands = [c.strip() for c in finding["mend"].split(";") if not c.strip().startswith("then ")]
            system.sh('set -e; sudo() { "$@"; }; ' + "; ".join(commands))
        wait_active(system, "zk0d.service")
        assert {f["level"] for f in findings(system, check)} == {"ok"}
    finally:
        system.sh(f"rm -f {LIMIT}; systemctl daemon-reload; usermod -aG zk0 alice")


def test_without_the_runtime_it_says_what_it_cannot_do(system: Any) -> None:
    """It answers, and for what needs the runtime it names the command that makes it, which in turn asks for sudo."""
    wait_active(system, "zk0d.service")
    assert system.run("zk0ctl", "runtime", "show", user="alice", check=False).returncode == 2
    told = json.loads(system.run(*STATUS, user="alice", check=False).stdout)
    assert (
        told["state"]["rule"] == "runtime"
        and "there is no runtime in /var/lib/zk0-runtime" in told["state"]["sentence"]
    )
    assert "sudo zk0ctl runtime install" in told["state"]["sentence"]
    record = (
        "zk0ctl",
        "record",
        "--task",
        "lift",
        "--follower",
        "virtual:PickLift",
        "--dataset",
        "cups",
        "--episodes",
        "1",
    )
    refused = system.run(*record, user="alice", check=False)
    assert refused.returncode == 1 and "sudo zk0ctl runtime install" in refused.stdout + refused.stderr, refused
    refused = system.run("zk0ctl", "runtime", "install", user="alice", check=False)
    assert refused.returncode == 1 and "sudo" in refused.stderr and "Traceback" not in refused.stderr


def test_the_containers_start_script_serves(system: Any) -> None:
    """What the hub's container runs (packaging/docker/start), confined like it: no privileges, nothing writable but its folder."""
    system.put(START, "/root/start")
    system.sh("install -m755 /root/start /usr/bin/hub-start; install -d -o zk0-hub -g zk0-hub /var/tmp/hub")
    system.sh(
        "systemd-run -q --unit=contained --uid=zk0-hub -p ProtectSystem=strict -p ReadWritePaths=/var/tmp/hub -p NoNewPrivileges=yes"
        " -p CapabilityBoundingSet= -p PrivateTmp=no --setenv=ZK0_HUB_DIR=/var/tmp/hub --setenv=ZK0_HUB_LISTEN=127.0.0.1:7731 hub-start"
    )
    try:
        (check,) = re.findall(r"HEALTHCHECK .* CMD (\[.*\])", START.with_name("Dockerfile").read_text())
        ask = ("env", "ZK0_HUB_DIR=/var/tmp/hub", "timeout", "3", *json.loads(check))  # the engine's timeout is 10 s
        system.until(lambda: system.run(*ask, user="zk0-hub", check=False).returncode == 0, 90, "the hub to serve")
        system.sh("systemctl kill -s STOP contained")
        hung = system.run(*ask, user="zk0-hub", check=False)
        system.sh("systemctl kill -s CONT contained")
        assert hung.returncode != 0, "a hub that does not answer is not healthy"
    finally:
        said = system.sh("systemctl stop contained; journalctl -q -o cat -u contained")
        system.sh("rm -rf /var/tmp/hub /usr/bin/hub-start")
    assert "Traceback" not in said, said
