"""`zk0-hub serve`: the process around the hub: logs, lock, signals, admin socket, systemd's notifications."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from pathlib import Path

import structlog

from zk0d import log as logs
from zk0d.control import ControlServer
from zk0d.errors import ConfigError, Zk0Error
from zk0d.hub.admin import Admin
from zk0d.hub.config import load_hub
from zk0d.hub.service import Hub
from zk0d.notify import Notifier

log = structlog.get_logger("serve")

STATUS_S = 10.0


def serve(directory: Path) -> int:
    """Run the hub until SIGTERM or SIGINT → exit status. Raises Zk0Error when it cannot start."""
    config = load_hub(directory)
    logs.configure("zk0-hub", directory / "log" / "hub.log", config["hub.log_level"])
    lock = _lock(directory)
    try:
        return asyncio.run(_serve(directory))
    except Zk0Error as error:
        log.error("the hub cannot serve", error=error.message, hint=error.hint)
        raise
    finally:
        os.close(lock)


def _lock(directory: Path) -> int:
    """Two hubs on one folder would count updates twice: hold a lock that the kernel frees however we end."""
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise ConfigError(f"another zk0-hub serves {directory}", "stop it first") from None
    return fd


async def _serve(directory: Path) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    notifier = Notifier()
    if not notifier.enabled:
        log.info("systemd is not told", reason=notifier.reason)
    hub = Hub(directory)
    control = ControlServer(directory / "admin.sock", Admin(hub))
    try:
        await hub.start()
        await control.start()
        notifier.ready(_status(hub))
        beat = notifier.watchdog_s or STATUS_S
        while not stop.is_set():
            try:
                await asyncio.wait_for(stop.wait(), min(beat, STATUS_S))
            except TimeoutError:
                notifier.watchdog()
                notifier.status(_status(hub))
        log.info("hub stops", reason="asked to")
        notifier.stopping("ending links and workers")
    finally:
        await control.close()
        await hub.close()
    log.info("hub stopped")
    return 0


def _status(hub: Hub) -> str:
    told = "; ".join(f"{f.name}: {f.headline()}" for f in hub.federations.values()) or "no federation yet"
    return f"{len(hub.link.nodes())} nodes linked; {told}"
