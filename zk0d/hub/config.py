"""The hub's settings: hub.toml and a federation's TOML, one declaration per setting.

A declaration gives key, type, default, what is allowed and a help text; parsing, errors and the reference page use it.
Not for what the model table means beyond its shape: `zk0d.train.initial` judges that.
"""

from __future__ import annotations

import math
import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zk0d.errors import ConfigError
from zk0d.hub.coherence import contradictions, weakness
from zk0d.hub.schedules import KINDS
from zk0d.link.rates import ACCEPTS, Rate

_REPO = re.compile(r"|[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}")
FEDERATION_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")


LARGEST = 2**53 - 1
"""The largest whole number that everything it passes through (JSON, SQLite, float64) holds exactly."""
CENTURY_DAYS, YEAR_S = 36500.0, 365 * 86400.0
NODES, SEEDS = 10**6, 2**63 - 1


@dataclass(frozen=True)
class Allowed:
    """What values a setting takes: a test and the words for it."""

    words: str
    test: Callable[[Any], bool]
    most: float | None = None
    """The largest of them, where that is set."""


def whole(low: int, most: int = LARGEST) -> Allowed:
    upto = "below 2**53" if most == LARGEST else f"at most {most}"
    return Allowed(f"a whole number of at least {low}, {upto}", lambda v: low <= v <= most, most)


def at_least(low: float) -> Allowed:
    return Allowed(f"a finite number of at least {low:g}", lambda v: low <= v < math.inf)


def above(low: float, most: float | None = None) -> Allowed:
    if most is None:
        return Allowed(f"a finite number above {low:g}", lambda v: low < v < math.inf)
    return Allowed(f"a number above {low:g}, at most {most:.10g}", lambda v: low < v <= most, most)


def one_of(*values: str) -> Allowed:
    return Allowed(" or ".join(f'"{v}"' for v in values), lambda v: v in values)


def between(low: float, high: float) -> Allowed:
    return Allowed(f"a number from {low:g} to below {high:g}", lambda v: low <= v < high)


def inside(low: float, high: float) -> Allowed:
    return Allowed(f"a number above {low:g} and below {high:g}", lambda v: low < v < high)


STRATEGIES = ("mean", "median", "trimmed_mean", "krum", "multi_krum")
STRATEGY = Allowed(
    " or ".join((*STRATEGIES, "flower:NAME")),
    lambda v: v in STRATEGIES or re.fullmatch(r"flower:[A-Z][A-Za-z]+", v) is not None,
)
ANY = Allowed("any", lambda v: True)
RATE = Allowed(ACCEPTS, lambda v: _is_rate(v))
ADDRESS = Allowed("HOST:PORT", lambda v: parse_address(v) is not None)


@dataclass(frozen=True)
class Setting:
    """One key of a TOML file. `default` None: it must be given."""

    key: str
    kind: type
    default: Any
    allowed: Allowed
    help: str
    also: type | None = None
    """A second type that it may have."""
    stand_in: Any = None
    """What stands for a stored value that is not accepted any more, where neither the largest nor the default may."""


HUB: tuple[Setting, ...] = (
    Setting("hub.name", str, "zk0 hub", ANY, "what operators see the hub as"),
    Setting("hub.listen", str, "0.0.0.0:7730", ADDRESS, "where the hub listens for nodes"),
    Setting("hub.advertise", str, "", Allowed("HOST:PORT or empty", lambda v: v == "" or parse_address(v) is not None),
            "the address written into invitations; empty: the listening one"),
    Setting("hub.log_level", str, "info", one_of("debug", "info", "warning", "error"), "how much the log says"),
    Setting("link.max_upload", str, "unlimited", RATE, "upper bound of what this hub sends, to all nodes together",
            also=list),
    Setting("link.max_download", str, "unlimited", RATE, "upper bound of what it takes, of all nodes together",
            also=list),
    Setting("link.node_upload", str, "unlimited", RATE, "upper bound of what it sends to one node", also=list),
    Setting("link.node_download", str, "unlimited", RATE, "upper bound of what it takes of one node", also=list),
    Setting("certificates.node_days", float, 825.0, above(0, CENTURY_DAYS),
            "how long a node's certificate is good; nodes renew it"),
    Setting("certificates.server_days", float, 1825.0, above(0, CENTURY_DAYS), "as long the hub's own; it renews it"),
    Setting("enrolment.max_pending", int, 1000, whole(1), "applications that may wait for approval"),
    Setting("enrolment.max_pending_per_address", int, 20, whole(1), "of these from one address (IPv6: one /64)"),
    Setting("enrolment.pending_days", float, 14.0, above(0, CENTURY_DAYS),
            "an application older than this is forgotten"),
    Setting("quota.updates_per_day", int, 10000, whole(0), "updates that one node may send in 24 hours; 0: any"),
    Setting("quota.bytes_per_day", int, 10**12, whole(0), "payload bytes of one node in 24 hours; 0: any"),
    Setting("outlets.hf_endpoint", str, "",
            Allowed('"https://…" or empty', lambda v: re.match(r"https?://|\Z", v) is not None),
            "another server than the Hugging Face Hub's own"),
    Setting("runtime.python", str, sys.executable, ANY, "the interpreter that has the training packages, for workers"),
    Setting("runtime.device", str, "auto", ANY, "where versions are evaluated: auto, cpu, cuda, cuda:1 …"),
    Setting("runtime.attempts", int, 3, whole(1, 1000), "how often an evaluation that fails is tried"),
    Setting("runtime.retry_s", float, 10.0, above(0, YEAR_S), "seconds before the second try; doubles each time"),
    Setting("runtime.evaluation_timeout_s", float, 3600.0, above(0, YEAR_S),
            "an evaluation that takes longer is ended"),
)  # fmt: skip

FEDERATION: tuple[Setting, ...] = (
    Setting("model.policy", str, None, one_of("smolvla", "act"), "LeRobot policy type"),
    Setting("model.preset", str, "tiny", ANY, "size of the policy"),
    Setting("model.fps", int, 30, whole(1), "frames per second that all datasets have"),
    Setting("model.units", str, "degrees", one_of("degrees", "range"), "LeRobot's motor normalisation"),
    Setting("model.dtype", str, "bfloat16", one_of("bfloat16", "float32"), "how tensors travel"),
    Setting("model.seed", int, 0, whole(0, SEEDS), "seed of version 0"),
    Setting("training.local_steps", int, 100, whole(1), "optimiser steps per update"),
    Setting("training.batch_size", int, 8, whole(1), "samples per step"),
    Setting("training.lr", float, 1e-4, at_least(0), "learning rate on the nodes"),
    Setting("training.mu", float, 0.01, at_least(0), "FedProx's pull towards the version (arXiv:1812.06127)"),
    Setting("rounds.min_nodes", int, 3, whole(1, NODES), "nodes that must have joined before version 0 is published"),
    Setting("rounds.target", int, 3, whole(1, NODES), "updates of distinct nodes that make a merge"),
    Setting("rounds.quorum", int, 2, whole(1, NODES), "updates that are enough once the deadline has passed"),
    Setting("rounds.deadline_s", float, 600.0, above(0, YEAR_S), "seconds from a merge's first update to its deadline"),
    Setting("rounds.mode", str, "buffered", one_of("buffered", "sync"),
            "sync: the deadline counts from the version's publication, not from the first update"),
    Setting("rounds.versions", int, 0, whole(0), "merges until the federation is finished; 0: no end"),
    Setting("rounds.max_staleness", int, 4, whole(0), "versions an update's base may be behind"),
    Setting("schedule.kind", str, "constant", one_of(*KINDS), "how the learning rate goes over the versions"),
    Setting("schedule.period", int, 20, whole(1), "cosine: versions until min_lr; cosine_restarts: of a cycle"),
    Setting("schedule.stretch", int, 1, whole(1), "cosine_restarts: how many times as long each next cycle is"),
    Setting("schedule.min_lr", float, 0.0, at_least(0), "where the learning rate ends"),
    Setting("schedule.patience", int, 3, whole(1), "plateau: versions without a better held-out loss"),
    Setting("schedule.factor", float, 0.5, between(0, 1), "plateau: what the learning rate is multiplied by then"),
    Setting("schedule.adaptive_mu", bool, False, ANY, "mu grows while the held-out loss rises, shrinks while it falls"),
    Setting("schedule.node_lr", bool, False, ANY, "a node whose own loss rises gets half the learning rate"),
    Setting("merge.strategy", str, "mean", STRATEGY, "how the nodes' updates become one"),
    Setting("merge.trim", float, 0.1, between(0, 0.5), "trimmed_mean: fraction left out at either end, one at least"),
    Setting("merge.byzantine", int, 1, whole(0), "krum, multi_krum: how many nodes may be malicious"),
    Setting("merge.clip", float, 0.0, at_least(0),
            "updates are clipped to this times the running median of their norms; 0: not"),
    Setting("merge.optimizer", str, "fedavg", one_of("fedavg", "fedavgm", "fedadam", "fedyogi"),
            "what the hub does with the merged update (arXiv:2003.00295)"),
    Setting("merge.lr", float, 1.0, above(0), "the hub's learning rate; fedadam and fedyogi want about 0.01"),
    Setting("merge.beta1", float, 0.9, between(0, 1), "momentum of fedavgm, fedadam, fedyogi"),
    Setting("merge.beta2", float, 0.99, between(0, 1), "second moment of fedadam and fedyogi"),
    Setting("merge.tau", float, 1e-3, above(0), "adaptivity of fedadam and fedyogi"),
    Setting("privacy.clip_norm", float, 0.0, at_least(0), "every update is clipped to this norm; 0: not",
            stand_in=sys.float_info.max),
    Setting("privacy.noise_multiplier", float, 0.0, at_least(0),
            "noise added to the mean, times clip_norm / updates: client-level differential privacy; 0: none",
            stand_in=sys.float_info.max),
    Setting("privacy.delta", float, 1e-5, inside(0, 1), "delta of the epsilon that is told"),
    Setting("publish.licence", str, "", ANY, "licence named in the model cards"),
    Setting("admission.max_norm", float, 0.0, at_least(0), "largest Euclidean norm of an update; 0: any"),
    Setting("evaluation.datasets", list, [],
            Allowed('a list of "local:/path" and "hf:owner/name"', lambda v: _paths(v)),
            "held-out LeRobot datasets that versions are judged on"),
    Setting("evaluation.patience", int, 0, whole(0),
            "the federation is finished after this many evaluated versions without a better loss; 0: never"),
    Setting("publish.repo", str, "", Allowed('"owner/name" or empty', lambda v: _REPO.fullmatch(v) is not None),
            "model repository of the Hugging Face Hub that versions are pushed to; empty: none"),
    Setting("publish.private", bool, True, ANY, "whether that repository is made a private one"),
    Setting("publish.push", str, "best", one_of("best", "every", "never"),
            "which evaluated versions are pushed by themselves; never: by `zk0-hub push` only"),
    Setting("publish.wandb_project", str, "", ANY, "Weights & Biases project for the metrics; empty: none"),
    Setting("publish.wandb_entity", str, "", ANY, "its owner there; empty: the key's"),
    Setting("publish.wandb_mode", str, "online", one_of("online", "offline"), "offline: kept here for `wandb sync`"),
    Setting("publish.keep_last", int, 0, whole(0), "newest versions that stay, beside the best; 0: all"),
    Setting("publish.keep_every", int, 0, whole(0), "every so manyth version stays as well; 0: none for that"),
    Setting("evaluation.max_samples", int, 512, whole(1), "samples per dataset and evaluation"),
    Setting("evaluation.seed", int, 0, whole(0, SEEDS), "seed of the evaluation's choice and noise"),
)  # fmt: skip

_FREE = {"model.cameras", "model.config", "model.joints", "model.weights", "model.backbone"}
"""What is passed on as it is: the worker that makes version 0 judges it."""


ASIDE = ("evaluation.", "publish.")
"""What versions are judged on, and which are kept and sent where: no node's work nor merge goes by these settings."""


def _paths(value: list[Any]) -> bool:
    return all(isinstance(v, str) and re.match(r"local:/|hf:[\w.-]+/[\w.-]+\Z", v) for v in value)


def _is_rate(value: Any) -> bool:
    try:
        Rate.parse(value)
    except ValueError:
        return False
    return True


def parse_address(text: str) -> tuple[str, int] | None:
    """`HOST:PORT` or `[IPv6]:PORT` → host and port; None if it is neither."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return None
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        return None
    return host, int(port)


class Config:
    """Checked settings: `config["rounds.target"]`; `config.table("model")` is a table as a worker's job wants it."""

    def __init__(self, values: dict[str, Any], free: dict[str, Any], replaced: dict[str, Any] | None = None) -> None:
        self._values = values
        self._free = free
        self.replaced = replaced or {}
        """Key → what was stored, of values that an older hub took and that are not accepted any more."""

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def beside(self, newer: Config) -> Config:
        """These settings, but what no round goes by (ASIDE) as `newer` ones have it."""
        values = {k: newer[k] if k.startswith(ASIDE) else v for k, v in self._values.items()}
        return Config(values, self._free, self.replaced)

    def table(self, name: str) -> dict[str, Any]:
        own = {k.removeprefix(f"{name}."): v for k, v in self._values.items() if k.startswith(f"{name}.")}
        nested = {k.removeprefix(f"{name}."): v for k, v in self._free.items() if k.startswith(f"{name}.")}
        return {**own, **nested}


def parse(text: str, settings: Sequence[Setting], where: str, *, stored: bool = False) -> Config:
    """Read TOML `text` against `settings`. Raises ConfigError naming `where`, key, value and what is accepted.

    `stored`: a hub took it once. A value that is not accepted any more does not keep this one from starting: the
    largest accepted one stands for what is above it, the default for any other (`Config.replaced`); for one of privacy
    what publishes nothing with less noise (`unheld`).
    """
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # tomllib's own, and Python's of thousands of digits or brackets
        raise ConfigError(f"{where}: not TOML: {error}") from error
    known = {s.key: s for s in settings}
    tables = {s.key.split(".")[0] for s in settings}
    values: dict[str, Any] = {}
    free: dict[str, Any] = {}
    replaced: dict[str, Any] = {}
    for table, content in raw.items():
        if table not in tables or not isinstance(content, dict):
            raise ConfigError(f"{where}: [{table}] is not a table here", f"known: {', '.join(sorted(tables))}")
        for name, value in content.items():
            key = f"{table}.{name}"
            if key in _FREE:
                free[key] = value
            elif key in known:
                try:
                    values[key] = _check(known[key], value, where)
                except ConfigError:
                    if not stored or known[key].default is None:
                        raise
                    values[key], replaced[key] = _instead(known[key], value), value
            else:
                names = ", ".join(sorted(k for k in (*known, *_FREE) if k.startswith(f"{table}.")))
                raise ConfigError(f"{where}: {key} is not a setting", f"known: {names}")
    for setting in settings:
        if setting.key not in values:
            if setting.default is None:
                raise ConfigError(f"{where}: {setting.key} is missing", f"accepted: {setting.allowed.words}")
            values[setting.key] = setting.default
    return Config(values, free, replaced)


def _check(setting: Setting, value: Any, where: str) -> Any:
    if setting.kind is float and type(value) is int:
        value = float(value) if abs(value) < 2**1023 else math.inf if value > 0 else -math.inf
    if type(value) not in (setting.kind, setting.also) or not setting.allowed.test(value):
        raise ConfigError(
            f"{where}: {setting.key} = {value!r} is not accepted ({setting.help})",
            f"accepted: {setting.allowed.words}, of type {setting.kind.__name__}",
        )
    return value


def _instead(setting: Setting, value: Any) -> Any:
    if setting.stand_in is not None:
        return setting.stand_in
    most = setting.allowed.most
    if most is not None and type(value) in (int, float) and value > most:
        return setting.kind(most)
    return setting.default


def load_hub(directory: Path) -> Config:
    """`directory`/hub.toml. Raises ConfigError, also when `zk0-hub init` has not been run."""
    path = directory / "hub.toml"
    try:
        text = path.read_text()
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing", f"run zk0-hub --dir {directory} init") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}", "save it as UTF-8: docs/hub-settings.md") from error
    return parse(text, HUB, str(path))


def parse_federation(text: str, where: str, *, stored: bool = False) -> Config:
    """A federation's TOML, with what must hold between its settings; `stored` as in `parse`; then a merge that
    withstands nobody is taken as well (`weakness`). Raises ConfigError."""
    config = parse(text, FEDERATION, where, stored=stored)
    for keys, told, accepted in contradictions(config):
        if not config.replaced.keys() & set(keys):  # what stands for a stored value contradicts nothing that was set
            raise ConfigError(f"{where}: {told}", f"accepted: {accepted}")
    if not stored and (weak := weakness(config)):
        raise ConfigError(f"{where}: {weak[0]}", f"accepted: {weak[1]}")
    return config


def check_name(name: str) -> str:
    """A federation's name, which is also a folder's. Raises ConfigError."""
    if not FEDERATION_NAME.match(name):
        raise ConfigError(f"{name!r} cannot be a federation's name", "accepted: a-z, 0-9, - and _, at most 63")
    return name


def reference(settings: Sequence[Setting]) -> str:
    """The settings as a Markdown table, for the reference page."""
    lines = ["| setting | type | default | accepted | what it is |", "|---|---|---|---|---|"]
    for s in settings:
        default = (
            "(must be given)"
            if s.default is None
            else f"`{'the one running' if s.key == 'runtime.python' else s.default!r}`"
        )
        lines.append(f"| `{s.key}` | {s.kind.__name__} | {default} | {s.allowed.words} | {s.help} |")
    return "\n".join(lines) + "\n"
