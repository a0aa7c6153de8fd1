"""What must hold between a federation's settings, of which config.py accepts each by itself; what an older hub took.

Pure functions of the settings. What these name outside of themselves is preflight.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zk0d.hub.config import Config

PRIVACY = ("privacy.clip_norm", "privacy.noise_multiplier")
_ROBUST = ("median", "trimmed_mean", "krum", "multi_krum")


def contradictions(config: Config) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Settings that do not go together, what is said of them, and what would be accepted."""
    target, quorum, strategy = config["rounds.target"], config["rounds.quorum"], config["merge.strategy"]
    if quorum > target:
        told = f"rounds.quorum = {quorum} is above rounds.target = {target}"
        yield ("rounds.quorum", "rounds.target"), told, "at most it"
    if strategy.startswith("flower:") and config["merge.optimizer"] != "fedavg":
        told = f"merge.optimizer = {config['merge.optimizer']!r} does not go with a Flower strategy"
        yield ("merge.strategy", "merge.optimizer"), told, '"fedavg"'
    if config["privacy.noise_multiplier"] <= 0:
        return
    if config["privacy.clip_norm"] <= 0:
        yield PRIVACY, "privacy.clip_norm = 0 with privacy.noise_multiplier", "above 0"
    if strategy != "mean" or config["merge.clip"] > 0:
        told = (
            f"merge.strategy = {strategy!r}, merge.clip = {config['merge.clip']} under privacy: what one node can move"
            " is then not bounded as the noise assumes"
        )
        yield (*PRIVACY, "merge.strategy", "merge.clip"), told, 'merge.strategy = "mean", merge.clip = 0'


def unheld(config: Config) -> str:
    """Stored settings of privacy that no merge can hold (an older hub took infinite ones), in words; "" where there are
    none. A federation rather stands still than that a version comes out with less privacy than was set."""
    noisy = config["privacy.noise_multiplier"] > 0
    return ", ".join(f"{k} = {config.replaced[k]!r}" for k in PRIVACY if noisy and k in config.replaced)


def weakness(config: Config) -> tuple[str, str] | None:
    """Why a merge that is to withstand malicious nodes does not, and what would; None where it does, or is not to.

    Counted with the quorum: at the deadline, in either mode, no more updates are needed. Krum withstands f of at least
    2 f + 3 (arXiv:1703.02757); of two values neither a median nor a trimmed mean is anything but their mean.
    """
    strategy, quorum, trim = config["merge.strategy"], config["rounds.quorum"], config["merge.trim"]
    if strategy == "trimmed_mean" and trim == 0:
        return "merge.trim = 0 leaves nothing out: one node can move trimmed_mean at will", "above 0, below 0.5"
    told, least, other = f"merge.strategy = {strategy!r}", 3, ""
    if strategy in ("krum", "multi_krum"):
        bad, most = config["merge.byzantine"], (quorum - 3) // 2
        told, least = f"{told} with merge.byzantine = {bad}", 2 * bad + 3
        other = f"; or merge.byzantine of at most {most}" if most >= 1 else ""
    if strategy not in _ROBUST or quorum >= least:
        return None
    return (
        f"{told} withstands nobody in a merge of {quorum} updates, which rounds.quorum = {quorum} allows",
        f"rounds.quorum of at least {least}, and rounds.target no smaller{other}",
    )
