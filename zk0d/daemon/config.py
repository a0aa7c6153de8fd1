"""The daemon's settings: `zk0d.toml` in the state folder, or `/etc/zk0d/conf.d/*.toml` read in order.

One declaration per setting (`SETTINGS`) gives key, default, check and help; an error says where and what is accepted.
Not for what changes at run time (datasets, overrides): that is in the store.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zk0d.daemon.robot_table import DEFAULT_ROBOT, check_robot
from zk0d.errors import ConfigError, UnknownStateError
from zk0d.link.rates import ACCEPTS, Rate

CONF_D = Path("/etc/zk0d/conf.d")


class _Wrong(ValueError):
    """A value that a check does not accept."""


@dataclass(frozen=True)
class Setting:
    """One setting: TOML `table` and `key`, `default`, `check` (raises ValueError), what it `accepts`, `help`."""

    table: str
    key: str
    default: Any
    check: Callable[[Any], Any]
    accepts: str
    help: str


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Wrong
    return value


def _number(low: float, high: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise _Wrong
        return float(value)

    return check


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _Wrong
        return int(value)

    return check


def _choice(*words: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in words:
            raise _Wrong
        return str(value)

    return check


def _device(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps|xpu", value):
        raise _Wrong
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong
    return value


def _hours(value: Any) -> tuple[str, ...]:
    from zk0d.daemon.signals.windows import parse

    if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
        raise _Wrong
    for text in value:
        parse(text)
    return tuple(value)


def _zone(value: Any) -> str:
    if not isinstance(value, str):
        raise _Wrong
    if value:
        from zoneinfo import ZoneInfo

        try:
            ZoneInfo(value)
        except (KeyError, OSError) as error:
            raise _Wrong from error
    return value


_PERCENT = "percent, 0 … 100; 0: only shown"

_SHARE = "percent of its rows, 0 … 100; 0: no such rule"

SETTINGS: tuple[Setting, ...] = (
    Setting("runtime", "python", "", _text, "a path, or empty for the managed runtime, else the daemon's own Python",
            "the Python that has torch and lerobot and runs the workers"),
    Setting("link", "max_upload", "20 MB/s", Rate.parse, ACCEPTS, "upper bound of what this node sends"),
    Setting("link", "max_download", "unlimited", Rate.parse, ACCEPTS, "upper bound of what this node asks for"),
    Setting("link", "renew_key", "keep", _choice("keep", "new"), '"keep" or "new"',
            "whether a renewed certificate is for the same key; it is renewed in its last third"),
    Setting("train", "device", "auto", _device, '"auto", "cpu", "cuda", "cuda:1", "mps"', "where the trainer runs"),
    Setting("train", "threads", 0, _integer(0, 1024), "a whole number up to 1024, 0 for half of the processors",
            "CPU threads of the trainer"),
    Setting("train", "cpu", "idle", _choice("idle", "share"), '"idle" or "share"',
            "whether the trainer gets only processor time that nobody else wants, or a share by its niceness"),
    Setting("train", "niceness", 10, _integer(0, 19), "0 … 19", "how far the trainer steps back from other programs"),
    Setting("train", "checkpoint_every_s", 60.0, _number(1, 3600), "seconds, 1 … 3600", "time between checkpoints"),
    Setting("train", "tries", 5, _integer(1, 100), "1 … 100", "deaths of the trainer before a task is given up"),
    Setting("train", "gpu_memory", "auto", _choice("auto", "leave"), '"auto" or "leave"',
            "when others need the GPU's memory: move the trainer's to the host where the driver can, or have it leave"),
    Setting("train", "freeze_max_s", 600.0, _number(0, 86400), "seconds, 0 … 86400",
            "a trainer paused for longer than this writes a checkpoint and exits"),
    Setting("idle", "hours", (), _hours, 'windows such as ["Mon-Fri 20:00-07:00", "Sat,Sun"]; empty: any hour',
            "when training may run; it leaves, its checkpoint written, before they end"),
    Setting("idle", "timezone", "", _zone, 'a name such as "Europe/Berlin", or empty for the machine\'s',
            "time zone of the hours"),
    Setting("idle", "desktop", False, _flag, "true or false", "no training while somebody is at the desktop (logind)"),
    Setting("idle", "gpu_foreign", True, _flag, "true or false", "no training while others compute on the GPU"),
    Setting("idle", "gpu_free_mb", 1024.0, _number(0, 1e6), "MB, 0 … 1000000",
            "with less GPU memory free while others use it, the trainer leaves instead of pausing"),
    Setting("idle", "foreign_cpu", 50.0, _number(0, 100), _PERCENT,
            "no training above this use of all CPUs by others, over half a minute; it starts below half of it"),
    Setting("idle", "cpu_pressure", 0.0, _number(0, 100), _PERCENT,
            "no training above this CPU pressure (PSI), which the trainer itself raises when it shares processors"),
    Setting("idle", "memory_pressure", 50.0, _number(0, 100), _PERCENT, "no training above this memory pressure (PSI)"),
    Setting("idle", "io_pressure", 0.0, _number(0, 100), _PERCENT,
            "no training above this I/O pressure (PSI), which the trainer's own reading raises"),
    Setting("idle", "on_battery", "pause", _choice("pause", "ignore"), '"pause" or "ignore"', "training on battery"),
    Setting("idle", "temperature", 95.0, _number(0, 150), "°C, 0 … 150; 0: only shown",
            "no training from this temperature on"),
    Setting("idle", "disk_free_gb", 1.0, _number(0, 1e6), "GB, 0 … 1000000", "no training with less room than this"),
    Setting("idle", "metered", "pause", _choice("pause", "ignore"), '"pause" or "ignore"',
            "models and updates over a metered network"),
    Setting("idle", "settle_s", 60.0, _number(0, 3600), "seconds, 0 … 3600",
            "how long the machine must be quiet before training goes on"),
    Setting("datasets", "folder", "", _text, "a path, or empty for STATE/datasets", "where new datasets are recorded"),
    Setting("datasets", "floor_gb", 0.5, _number(0, 1e6), "GB, 0 … 1000000",
            "free room below which no take begins, and a running one ends and is kept"),
    Setting("datasets", "quota_gb", 0.0, _number(0, 1e6), "GB, 0 … 1000000; 0: no quota",
            "what all datasets may take together; nothing is deleted to keep it"),
    Setting("record", "fps", 30, _integer(5, 120), "5 … 120", "frames per second of a recording"),
    Setting("record", "episode_s", 20.0, _number(0.2, 3600), "seconds, 0.2 … 3600", "length of a take"),
    Setting("record", "reset_s", 0.0, _number(0, 3600), "seconds, 0 … 3600", "pause between takes"),
    Setting("quality", "late", 25.0, _number(0, 100), _SHARE, "an episode with more late rows is not trained on"),
    Setting("quality", "gap_s", 1.0, _number(0, 3600), "seconds, 0 … 3600; 0: no such rule",
            "an episode with a longer gap between two rows is not trained on"),
    Setting("quality", "stale", 25.0, _number(0, 100), _SHARE,
            "an episode with more rows that show a camera's earlier image again is not trained on"),
    Setting("quality", "clipped", 50.0, _number(0, 100), _SHARE,
            "an episode in which more goals were changed by a limit is not trained on"),
    Setting("quality", "bus_errors", 10.0, _number(0, 100), _SHARE,
            "an episode with more lost or damaged servo packets, to its rows, is not trained on"),
    Setting("quality", "min_s", 0.2, _number(0, 3600), "seconds, 0 … 3600", "a shorter episode is not trained on"),
    Setting("quality", "care", "release", _choice("never", "warn", "slow", "release"),
            '"never", "warn", "slow" or "release"', "an episode in which care had to do this is not trained on"),
    Setting("models", "keep", 3, _integer(1, 1000), "1 … 1000", "newest versions of a federation kept on disk"),
    Setting("log", "level", "info", _choice("debug", "info", "warning", "error"),
            '"debug", "info", "warning" or "error"', "how much is logged"),
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """All settings, checked. `config["train", "device"]` gives one; `robot` is the operator's `[robot]` table."""

    values: dict[tuple[str, str], Any] = field(default_factory=dict)
    robot: dict[str, Any] = field(default_factory=lambda: dict(DEFAULT_ROBOT))
    files: tuple[str, ...] = ()

    def __getitem__(self, key: tuple[str, str]) -> Any:
        return self.values[key]

    @classmethod
    def load(cls, files: list[Path]) -> Config:
        """Read `files` in order, later ones winning. Raises ConfigError naming file, key, value, what is accepted."""
        values = {(s.table, s.key): s.check(s.default) for s in SETTINGS}
        robot = dict(DEFAULT_ROBOT)
        for path in files:
            for table, content in _read(path).items():
                if table == "robot":
                    robot.update(check_robot(content, str(path)))
                else:
                    values.update(_check_table(path, table, content))
        return cls(values, robot, tuple(map(str, files)))


def find_files(state: Path, given: Path | None) -> list[Path]:
    """The files to read: the one given, else STATE/zk0d.toml, else those of /etc/zk0d/conf.d in name order.

    Raises UnknownStateError where this user may not even see whether there are any.
    """
    if given is not None:
        return [given]
    own = state / "zk0d.toml"
    try:  # not `exists` and `glob`: which of them say that a folder is closed differs between versions of Python
        if _there(own):
            return [own]
        return sorted(CONF_D / name for name in os.listdir(CONF_D) if name.endswith(".toml")) if _there(CONF_D) else []
    except PermissionError as error:
        raise _closed(Path(error.filename)) from error


def _there(path: Path) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _closed(path: Path) -> UnknownStateError:
    hint = "ask as the daemon does: sudo -u zk0d zk0d --check; if it may not either: sudo chmod -R a+rX /etc/zk0d"
    return UnknownStateError(f"{path}: you may not read these settings", hint)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except PermissionError as error:
        raise _closed(path) from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "name an existing, readable file") from error
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or thousands of digits or brackets
        raise ConfigError(f"{path}: not TOML: {error}") from error


def _check_table(path: Path, table: str, content: Any) -> dict[tuple[str, str], Any]:
    known = {s.key: s for s in SETTINGS if s.table == table}
    if not known:
        tables = ", ".join(sorted({s.table for s in SETTINGS} | {"robot"}))
        homes = [f"[{s.table}]" for s in SETTINGS if s.key == table] if not isinstance(content, dict) else []
        if homes:
            raise ConfigError(f"{path}: {table} stands in no table", f"write {' or '.join(homes)} above it")
        raise ConfigError(f"{path}: unknown table [{table}]", f"known are {tables}")
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: {table} = {content!r} is not a table", f"write [{table}] above its keys")
    found: dict[tuple[str, str], Any] = {}
    for key, value in content.items():
        if key not in known:
            raise ConfigError(f"{path}: unknown key {table}.{key}", f"[{table}] knows {', '.join(sorted(known))}")
        try:
            found[table, key] = known[key].check(value)
        except ValueError as error:
            raise ConfigError(
                f"{path}: {table}.{key} = {value!r} cannot be used", f"accepted: {known[key].accepts}"
            ) from error
    return found
