"""Which signals there are, from the settings. The order is that of `zk0ctl signals`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from zk0d.daemon.config import Config
from zk0d.daemon.signals.gpu import Gpu
from zk0d.daemon.signals.machine import DiskSpace, ForeignCpu, HoldFile, Power, Pressure, Temperature
from zk0d.daemon.signals.reading import Source
from zk0d.daemon.signals.session import Desktop, Metered
from zk0d.daemon.signals.windows import Windows


def sources(
    config: Config, state: Path, own: Callable[[], list[int]], save_s: Callable[[], float] = float
) -> list[Source]:
    """Every source, as the `[idle]` settings have it. `own`: process ids of the daemon and its workers; `save_s`:
    seconds that a checkpoint takes."""
    return [
        HoldFile(state / "hold"),
        Windows(config["idle", "hours"], config["idle", "timezone"], save_s),
        Desktop(config["idle", "desktop"]),
        Gpu(own, foreign_stops=config["idle", "gpu_foreign"], least_mb=config["idle", "gpu_free_mb"]),
        ForeignCpu(config["idle", "foreign_cpu"], own),
        Pressure("cpu", config["idle", "cpu_pressure"]),
        Pressure("memory", config["idle", "memory_pressure"]),
        Pressure("io", config["idle", "io_pressure"]),
        Power(config["idle", "on_battery"] == "pause"),
        Temperature(config["idle", "temperature"]),
        DiskSpace(state, config["idle", "disk_free_gb"]),
        Metered(config["idle", "metered"] == "pause"),
    ]
