"""A serial port with servos behind it: claimed for us alone, read with patience, its errors told in one sentence.

All of it around LeRobot's Feetech bus and the SDK under it. Not for arms and cameras (arms.py).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from zk0d.errors import RobotError, Zk0Error

RETRIES = 8  # at 1 % damaged packets a read of six servos fails one time in 17: never nine in a row
PSEUDO_TIMEOUT_MS = 500.0
READ_WAIT_S = 0.002  # then the SDK looks whether the servo's time is up


def claim_port(role: str, port: str) -> int:
    """Hold the port's lock for as long as we use it. LeRobot's bus would share it with another program, garbled."""
    try:
        fd = os.open(port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
            raise RobotError(
                f"{role}: there is no {port}", "plug the arm in, or correct its port in [robot]"
            ) from error
        if error.errno == errno.EACCES:
            raise RobotError(f"{role}: no permission to open {port}", "add the user to the group dialout") from error
        if error.errno == errno.EBUSY:
            raise RobotError(f"{role}: {port} is in use by another program", "end that program first") from error
        raise RobotError(f"{role}: {port} cannot be opened: {error.strerror}", "is it a serial port?") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        holder = _holder(port)
        if holder:
            raise RobotError(f"{role}: {port} is in use by {holder}", "end that program first")
        return fd
    except BlockingIOError as error:
        os.close(fd)
        raise RobotError(f"{role}: {port} is in use by another program", "end that program first") from error
    except BaseException:
        os.close(fd)
        raise


def _holder(port: str) -> str:
    """Another process of ours to see that has the device open, as "name (pid 123)"; "" if none is seen."""
    device = os.path.realpath(port)
    if pseudo_terminal(port):
        return ""  # whoever made a pseudo-terminal always has it open
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if any(str(link.readlink()) == device for link in (folder / "fd").iterdir()):
                return f"{(folder / 'comm').read_text().strip()} (pid {folder.name})"
        except OSError:
            continue  # gone, or not ours to look at
    return ""


def close(handler: Any) -> None:
    """Close a port that may never have been opened, which the SDK fails at."""
    if handler.ser is not None:
        handler.closePort()


def pseudo_terminal(port: str) -> bool:
    return os.path.realpath(port).startswith("/dev/pts/")


def wait_longer(handler: Any) -> None:
    """LeRobot gives a servo 50 ms to answer. A process on a busy machine may need more; it loses no packets instead."""
    start = handler.setPacketTimeout

    def begin(length: int) -> None:
        start(length)
        handler.packet_timeout = PSEUDO_TIMEOUT_MS

    handler.setPacketTimeout = begin


def wait_for_bytes(handler: Any) -> None:
    """The SDK asks the port for bytes again and again until they come: a core spent on waiting. Here it sleeps."""

    def read(length: int) -> bytes:
        data: bytes = handler.ser.read(length)
        if not data and select.select([handler.ser.fileno()], [], [], READ_WAIT_S)[0]:
            data = handler.ser.read(length)
        return data

    handler.readPort = read


def forget_old_replies(handler: Any) -> None:
    """A reply that comes after its request was given up would be taken for the next one's: all later ones would be one
    behind, silently. The SDK means to clear the port before each request, but waits for its own bytes only."""
    clear = handler.clearPort

    def fresh() -> None:
        clear()
        handler.ser.reset_input_buffer()

    handler.clearPort = fresh


def ask_again(bus: Any) -> None:
    """LeRobot asks a servo once or thrice; a damaged packet is no dead servo. Every request of this bus gets more."""
    for name in ("_read", "_write", "_sync_read"):
        ask = getattr(bus, name)

        def patient(*given: Any, _ask: Any = ask, num_retry: int = 0, **named: Any) -> Any:
            return _ask(*given, num_retry=max(num_retry, RETRIES), **named)

        setattr(bus, name, patient)


def bus_error(error: Exception, role: str, port: str) -> RobotError:
    text = str(error)
    missing = re.search(r"Missing motor IDs:((?:\s+- \d+ \(expected model: \d+\))+)", text)
    if missing:
        ids = ", ".join(re.findall(r"- (\d+) ", missing.group(1)))
        return RobotError(
            f"{role} on {port}: servo {ids} does not answer",
            "check the arm's power supply and the cable to the first servo named; all missing usually means no power",
        )
    if "incorrect model numbers" in text:
        return RobotError(f"{role} on {port}: a servo is of another model", "is it an SO-100 or SO-101 arm?")
    return RobotError(f"{role} on {port} cannot be opened: {first_line(error)}", "check port, cable and power")


@contextmanager
def device_errors(what: str, port: str, cameras: Mapping[str, Any] = MappingProxyType({})) -> Iterator[None]:
    """Turn what the drivers raise into a RobotError about `what` on `port`, or about the one of `cameras` it names."""
    try:
        yield
    except Zk0Error:
        raise
    except Exception as error:  # the drivers raise ConnectionError, RuntimeError, SerialException and termios.error
        for name, camera in cameras.items():
            if str(camera) in str(error):
                raise RobotError(f"camera {name} stopped: {first_line(error)}", "check its cable") from error
        if isinstance(error, TimeoutError):
            raise RobotError(f"a camera stopped: {first_line(error)}", "check its cable") from error
        raise RobotError(f"{what} on {port} does not answer: {first_line(error)}", "check its power") from error


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
