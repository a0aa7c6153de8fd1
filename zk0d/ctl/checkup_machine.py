"""The checks of `zk0ctl doctor` on the machine: GPU and driver, arms and their ports, cameras, clock, disk.

Like those of checkup.py they give findings and mend nothing. An arm's own check-up is `zk0ctl robot doctor`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
from pathlib import Path

from zk0d.ctl.findings import Case, Finding, ask

LOW_DISK, LITTLE_DISK = 2e9, 10e9
CH340 = ("1a86", "7523")
BRLTTY = Path("/usr/lib/udev/rules.d/85-brltty.rules")
_UNSYNCHRONISED = 0x0040  # STA_UNSYNC, adjtimex(2)
_STATUS_AT = 40
"""Where struct timex has its status word, with 64-bit longs."""


_MOVES_FROM = 570
"""NVIDIA's driver from which on CUDA's checkpoint calls move a process's memory to the host."""


def _movable(said: str) -> list[Finding]:
    """Whether a rollout gets the trainer's GPU memory without that having to leave."""
    versions = [line.split(",")[1].strip().partition(".")[0] for line in said.splitlines() if "," in line]
    oldest = min((int(v) for v in versions if v.isdigit()), default=0)
    if not 0 < oldest < _MOVES_FROM:
        return []
    why = f"driver {oldest} cannot move a trainer's GPU memory to the host: for a rollout it leaves, and loads again"
    return [Finding("gpu", "note", why, f"a driver of version {_MOVES_FROM} or newer can")]


def gpu(case: Case) -> list[Finding]:
    from zk0d.ctl.runtime_lists import driver

    devices = sorted(Path("/dev").glob("nvidia[0-9]*"))
    said = ask("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    if said:
        return [Finding("gpu", "ok", line) for line in said.splitlines()] + _movable(said)
    if devices or driver() or shutil.which("nvidia-smi"):
        return [Finding("gpu", "warning", "an NVIDIA driver is installed but does not answer",
                        "sudo ubuntu-drivers install; sudo reboot")]  # fmt: skip
    return [Finding("gpu", "note", "no NVIDIA GPU: training runs on the CPU, slowly")]


def arms(case: Case) -> list[Finding]:
    """What is plugged in, and whether what the settings name is among it."""
    named = sorted(Path("/dev/zk0").glob("arm-*")) if Path("/dev/zk0").is_dir() else []
    ports = named or sorted([*Path("/dev").glob("ttyACM*"), *Path("/dev").glob("ttyUSB*")])
    found = [Finding("arms", "note", "no arm is plugged in (none is needed for a virtual one)")]
    if named:
        found = [Finding("arms", "ok", ", ".join(map(str, ports)))]
    elif ports:
        found = [Finding("arms", "note", f"{', '.join(map(str, ports))}: no known adapter, or no udev rule",
                         "sudo udevadm control --reload; sudo udevadm trigger")]  # fmt: skip
    if BRLTTY.exists() and _usb(*CH340) and not list(Path("/dev").glob("ttyUSB*")):
        found.append(Finding("arms", "error", "brltty takes the CH340 adapter for a Braille display, and its port away",
                             "sudo apt remove brltty"))  # fmt: skip
    return found + _bound(case, "arms")


def cameras(case: Case) -> list[Finding]:
    there = sorted(Path("/dev").glob("video*"))
    words = ", ".join(map(str, there)) or "no camera is plugged in"
    return [Finding("cameras", "ok" if there else "note", words), *_bound(case, "cameras")]


def _bound(case: Case, check: str) -> list[Finding]:
    """The arms or cameras of the settings that are not there."""
    if case.status is None:
        return []
    told = case.context.call("robot_show", timeout=10.0)
    if str(told["robot"].get("follower", "")).startswith("virtual:"):
        return []
    found = []
    for part, place in told["places"].items():
        gone = place["at"].startswith("/dev/") and not os.path.exists(place["at"])
        why = place["problem"] or (f"{place['at']} is not there" if gone else "")
        if why and part.startswith("camera") == (check == "cameras"):
            mend = f"plug it in, or bind it anew: zk0ctl robot find ({', '.join(told['files']) or 'no settings yet'})"
            found.append(Finding(check, "warning", f"{part}: {why}", mend))
    return found


def _usb(vendor: str, product: str) -> bool:
    for folder in Path("/sys/bus/usb/devices").glob("*/idVendor"):
        if (folder.read_text().strip(), folder.with_name("idProduct").read_text().strip()) == (vendor, product):
            return True
    return False


def clock(case: Case) -> list[Finding]:
    """Whether the kernel holds the clock for synchronised: any time service tells it."""
    state = ctypes.create_string_buffer(512)
    libc = ctypes.CDLL(None, use_errno=True)
    if struct.calcsize("l") != 8 or libc.adjtimex(state) < 0:
        return [Finding("clock", "note", "cannot be told here")]
    if struct.unpack_from("i", state, _STATUS_AT)[0] & _UNSYNCHRONISED:
        return [Finding("clock", "warning", "the clock is not synchronised: certificates may be refused",
                        "sudo timedatectl set-ntp true")]  # fmt: skip
    return [Finding("clock", "ok", "synchronised")]


def disk(case: Case) -> list[Finding]:
    place = next(p for p in (case.context.state, *case.context.state.parents) if p.exists())
    free = shutil.disk_usage(place).free
    level = "error" if free < LOW_DISK else "warning" if free < LITTLE_DISK else "ok"
    return [Finding("disk", level, f"{free / 1e9:.1f} GB are free on the disk of {case.context.state}",
                    "" if level == "ok" else "make room: sudo apt clean; zk0ctl dataset list")]  # fmt: skip
