"""The `[robot]` table of a virtual pair that is opened by its ports, as arms are. The pair is the fixture `station`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def table(station: Any, folder: Path, **changes: Any) -> dict[str, Any]:
    """Both ports of `station`, calibrated by the files that this writes into `folder`; `changes` add keys."""
    station.write_calibration(folder, "follower", "leader")
    ports = {"follower": station.follower_port, "leader": station.leader_port}
    return {**ports, "calibration_dir": str(folder), **changes}
