"""The checks of `zk0ctl doctor`: units, groups, socket, runtime, GPU, arms and cameras, hub, clock, disk, settings.

Each looks at one thing and gives findings; what cannot be told is a note, never a guess. Not for mending anything.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zk0d.ctl.context import DEFAULT_SOCKET, Context
from zk0d.errors import Zk0Error

LOW_DISK, LITTLE_DISK = 2e9, 10e9


@dataclass(frozen=True)
class Finding:
    """One result. `level`: ok, note (cannot be told, or merely good to know), warning, error; `mend`: what to do."""

    check: str
    level: str
    message: str
    mend: str = ""


@dataclass
class Case:
    """What the checks share: where the daemon is, and its status when it answers."""

    context: Context
    status: dict[str, Any] | None = None
    why_not: str = ""


Check = Callable[[Case], list[Finding]]


def examine(context: Context, checks: tuple[Check, ...]) -> list[Finding]:
    """Run all checks. One that fails itself is a note: the others still tell what they found."""
    case = Case(context)
    try:
        case.status = dict(context.call("status", timeout=10.0))
    except Zk0Error as error:
        case.why_not = error.message
    found: list[Finding] = []
    for check in checks:
        try:
            found += check(case)
        except Exception as error:
            found.append(Finding(check.__name__, "note", f"could not be checked: {type(error).__name__}: {error}"))
    return found


def _ask(*command: str, timeout: float = 10.0) -> str | None:
    """What a command prints; None when it is not there, fails or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def units(case: Case) -> list[Finding]:
    if case.context.socket != Path(DEFAULT_SOCKET) or not Path("/run/systemd/system").is_dir():
        return [Finding("units", "note", "not the installed daemon under systemd: units are not looked at")]
    found = []
    for unit in ("zk0d.socket", "zk0d.service"):
        state = _ask("systemctl", "show", "--value", "-p", "ActiveState,UnitFileState,SubState", unit)
        words = (state or "").split()
        if "active" in words:
            enabled = "enabled" in words
            good = Finding("units", "ok", f"{unit} is active")
            bad = Finding("units", "warning", f"{unit} does not start at boot", f"sudo systemctl enable {unit}")
            found.append(good if enabled else bad)
        else:
            found.append(Finding("units", "error", f"{unit} is {words[0] if words else 'unknown'}",
                                 f"sudo systemctl enable --now {unit}; journalctl -u {unit} -n 20"))  # fmt: skip
    return found


def daemon(case: Case) -> list[Finding]:
    if case.status is None:
        return [Finding("daemon", "error", case.why_not, "sudo systemctl start zk0d; journalctl -u zk0d -n 20")]
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
    from zk0d.runtime import base, managed_python

    if managed_python():
        version = (base() / "current").resolve().name
        return [Finding("runtime", "ok", f"the managed runtime {version} is there (zk0ctl runtime check tries it)")]
    return [Finding("runtime", "warning", "no managed runtime: recording and training need it",
                    "sudo zk0ctl runtime install")]  # fmt: skip


def gpu(case: Case) -> list[Finding]:
    devices = sorted(Path("/dev").glob("nvidia[0-9]*"))
    said = _ask("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    if said:
        return [Finding("gpu", "ok", line) for line in said.splitlines()]
    if devices or shutil.which("nvidia-smi"):
        return [
            Finding(
                "gpu",
                "warning",
                "an NVIDIA driver is installed but does not answer",
                "sudo apt install --reinstall nvidia-driver; reboot",
            )
        ]
    return [Finding("gpu", "note", "no NVIDIA GPU: training runs on the CPU, slowly")]


def arms(case: Case) -> list[Finding]:
    named = sorted(Path("/dev/zk0").glob("arm-*")) if Path("/dev/zk0").is_dir() else []
    ports = named or sorted([*Path("/dev").glob("ttyACM*"), *Path("/dev").glob("ttyUSB*")])
    cameras = sorted(Path("/dev").glob("video*"))
    found = [
        Finding(
            "arms",
            "ok" if named else "note",
            ", ".join(map(str, ports)) if ports else "no arm is plugged in (none is needed for a virtual one)",
        )
    ]
    if ports and not named:
        found = [Finding("arms", "note", f"{', '.join(map(str, ports))}: no known adapter, or no udev rule",
                         "sudo udevadm control --reload; sudo udevadm trigger")]  # fmt: skip
    found.append(
        Finding("cameras", "ok" if cameras else "note", ", ".join(map(str, cameras)) or "no camera is plugged in")
    )
    return found


def hub(case: Case) -> list[Finding]:
    if case.status is None:
        return []
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
    path = case.context.state / "keys"
    if not os.access(path, os.R_OK | os.X_OK):
        return [Finding("certificate", "note", "only the daemon's user and root may look (sudo zk0ctl doctor)")]
    found = []
    for file in sorted(path.rglob("*.pem")):
        said = _ask("openssl", "x509", "-noout", "-enddate", "-in", str(file))
        if said:
            ends = (
                time.mktime(time.strptime(said.partition("=")[2].removesuffix(" GMT"), "%b %d %H:%M:%S %Y"))
                - time.timezone
            )
            days = (ends - time.time()) / 86400
            level = "error" if days < 0 else "warning" if days < 14 else "ok"
            found.append(
                Finding(
                    "certificate",
                    level,
                    f"{file.name} is good for {days:.0f} days",
                    "" if level == "ok" else "zk0ctl enroll TOKEN",
                )
            )
    return found or [Finding("certificate", "note", "none that openssl can read")]


def clock(case: Case) -> list[Finding]:
    said = _ask("timedatectl", "show", "-p", "NTPSynchronized", "--value")
    if said == "no":
        return [
            Finding(
                "clock",
                "warning",
                "the clock is not synchronised: certificates may be refused",
                "sudo timedatectl set-ntp true",
            )
        ]
    return [Finding("clock", "ok", "synchronised") if said else Finding("clock", "note", "cannot be told here")]


def disk(case: Case) -> list[Finding]:
    place = next(p for p in (case.context.state, *case.context.state.parents) if p.exists())
    free = shutil.disk_usage(place).free
    level = "error" if free < LOW_DISK else "warning" if free < LITTLE_DISK else "ok"
    return [Finding("disk", level, f"{free / 1e9:.1f} GB are free on the disk of {case.context.state}",
                    "" if level == "ok" else "make room: sudo apt clean; zk0ctl dataset list")]  # fmt: skip


def settings(case: Case) -> list[Finding]:
    from zk0d.daemon.config import Config, find_files

    try:
        files = [f for f in find_files(case.context.state, None) if os.access(f, os.R_OK)]
        config = Config.load(files)
    except PermissionError:
        return [Finding("settings", "note", "only the daemon's user and root may read them")]
    except Zk0Error as error:
        return [Finding("settings", "error", error.message, error.hint)]
    return [Finding("settings", "ok", ", ".join(config.files) or "all defaults")]


CHECKS: tuple[Check, ...] = (units, daemon, group, settings, runtime, gpu, arms, hub, certificate, clock, disk)
