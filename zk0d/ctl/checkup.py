"""The checks of `zk0ctl doctor` on the installation: units, groups, settings, runtime, hub, certificate.

Each looks at one thing and gives findings; what cannot be told is a note, never a guess. Not for mending anything, nor
for the machine itself (checkup_machine.py).
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import socket
import time
from pathlib import Path

from zk0d.ctl import checkup_machine as machine
from zk0d.ctl.context import DEFAULT_SOCKET
from zk0d.ctl.findings import Case, Check, Finding, ask
from zk0d.errors import UnknownStateError, Zk0Error


def units(case: Case) -> list[Finding]:
    if case.context.socket != Path(DEFAULT_SOCKET) or not Path("/run/systemd/system").is_dir():
        return [Finding("units", "note", "not the installed daemon under systemd: units are not looked at")]
    found = []
    for unit in ("zk0d.socket", "zk0d.service"):
        state = ask("systemctl", "show", "--value", "-p", "ActiveState,UnitFileState,SubState", unit)
        words = (state or "").split()
        if "active" in words:
            enabled = "enabled" in words
            good = Finding("units", "ok", f"{unit} is active")
            bad = Finding("units", "warning", f"{unit} does not start at boot", f"sudo systemctl enable {unit}")
            found.append(good if enabled else bad)
        else:
            # One that gave up after too many deaths is not started again before this is forgotten.
            forget = f"sudo systemctl reset-failed {unit}; " if "failed" in words else ""
            mend = f"{forget}sudo systemctl enable --now {unit}; journalctl -u {unit} -n 20"
            found.append(Finding("units", "error", f"{unit} is {words[0] if words else 'unknown'}", mend))
    return found


def daemon(case: Case) -> list[Finding]:
    if case.status is None:
        mend = "sudo systemctl start zk0d; journalctl -u zk0d -n 20"
        if case.context.socket != Path(DEFAULT_SOCKET):
            mend = f"zk0d --foreground --state {case.context.state}"
        return [Finding("daemon", "error", case.why_not, mend)]
    problems = [
        Finding("daemon", "error" if p["level"] == "error" else "warning", p["message"], p["hint"])
        for p in case.status["health"]
    ]
    return problems or [Finding("daemon", "ok", case.status["state"]["sentence"])]


def group(case: Case) -> list[Finding]:
    user = pwd.getpwuid(os.getuid()).pw_name
    try:
        members = grp.getgrnam("zk0")
    except KeyError:
        return [Finding("group", "note", "there is no group zk0: the package zk0d is not installed")]
    if os.getuid() == 0 or members.gr_gid in os.getgroups():
        return [Finding("group", "ok", f"{user} may use zk0ctl")]
    if user in members.gr_mem:
        return [
            Finding("group", "error", f"{user} is in group zk0 but not yet in this session", "log out and in again")
        ]
    return [Finding("group", "error", f"{user} is not in group zk0", f"sudo usermod -aG zk0 {user}; then log in again")]


def runtime(case: Case) -> list[Finding]:
    from zk0d.ctl.runtime_lists import DRIVER, NAMES, Lists, driver, unfit
    from zk0d.runtime import COMPLETE, base, managed_python

    if not managed_python() and case.status is not None and "runtime" not in {p["code"] for p in case.status["health"]}:
        return [Finding("runtime", "ok", "the daemon's own Python has what recording and training need")]
    if not managed_python():
        return [Finding("runtime", "warning", "no managed runtime: recording and training need it",
                        "sudo zk0ctl runtime install")]  # fmt: skip
    made = json.loads((base() / "current" / COMPLETE).read_text())
    lists = {build: Lists.find(build) for build in NAMES}
    build = next((b for b, found in lists.items() if found.key == made.get("key")), "")
    told = f"torch {made.get('torch')}, lerobot {made.get('lerobot')} ({build or 'of another list'})"
    found = [Finding("runtime", "ok", f"{told}; `zk0ctl runtime check` tries it")]
    if not build:
        found = [Finding("runtime", "warning", f"{told}: this version of zk0d has a newer list",
                         "sudo zk0ctl runtime install")]  # fmt: skip
    elif build == "cpu" and DRIVER.exists():
        found = [Finding("runtime", "warning", f"{told}: there is a GPU, and it is not used",
                         "sudo zk0ctl runtime install --cuda")]  # fmt: skip
    elif build == "cuda" and (why := unfit(driver(), lists[build].cuda)):
        found = [Finding("runtime", "error", why, "sudo ubuntu-drivers install; sudo reboot")]
    return found


def hub(case: Case) -> list[Finding]:
    if case.status is None:
        return [Finding("hub", "note", "not looked at: it is the daemon that knows the hub and holds the certificate",
                        "start the daemon, then zk0ctl doctor")]  # fmt: skip
    at, link = case.status["hub"], case.status["link"]
    if at is None:
        return [Finding("hub", "warning", "not enrolled", "zk0ctl enroll TOKEN (the maintainer of a hub gives it)")]
    if link is not None and link["phase"] == "connected":
        return [Finding("hub", "ok", f"connected to {at['address']}")]
    host, _, port = str(at["address"]).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), 5.0).close()
    except OSError as error:
        return [Finding("hub", "error", f"{at['address']} does not answer: {error.strerror or error}",
                        "is the machine on the network, and the port open in its firewall?")]  # fmt: skip
    reason = link["reason"] if link else ""
    return [
        Finding(
            "hub",
            "error",
            f"{at['address']} answers but there is no link: {reason or 'no reason given'}",
            "zk0ctl logs -n 20",
        )
    ]


def certificate(case: Case) -> list[Finding]:
    if case.status is None or case.status["hub"] is None:
        return []
    days = (float(case.context.call("certificate", timeout=10.0)["until"]) - time.time()) / 86400
    level = "error" if days < 0 else "warning" if days < 14 else "ok"
    words = f"this node's certificate {'ended' if days < 0 else 'is good for'} {abs(days):.0f} days"
    return [Finding("certificate", level, words + (" ago" if days < 0 else ""),
                     "" if level == "ok" else "it renews itself once the hub is reached: zk0ctl status")]  # fmt: skip


def settings(case: Case) -> list[Finding]:
    from zk0d.daemon.config import Config, find_files

    try:
        config = Config.load(find_files(case.context.state, None))
    except UnknownStateError as error:
        return [Finding("settings", "note", error.message, error.hint)]
    except Zk0Error as error:
        return [Finding("settings", "error", error.message, error.hint)]
    return [Finding("settings", "ok", ", ".join(config.files) or "all defaults")]


CHECKS: tuple[Check, ...] = (
    units, daemon, group, settings, runtime, machine.gpu, machine.arms, machine.cameras, hub, certificate,
    machine.clock, machine.disk,
)  # fmt: skip
