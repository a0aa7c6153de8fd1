"""Worker: draw a federation's chart from its metrics.jsonl: losses and bytes by version.

A process of its own, so that the hub needs no matplotlib and no time for it. Job {"title", "metrics", "out"}.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from zk0d.errors import WorkerError
from zk0d.hub import outputs
from zk0d.worker import Message, WorkerChannel, run_worker

_INK, _GRID, _BAR_UP, _BAR_DOWN = "#1f2933", "#e4e7eb", "#3e7cb1", "#a9c6de"
_NODES = ("#d08c60", "#7a9e7e", "#8e7cc3", "#c2a83e", "#5fa3a3", "#b56576", "#6d6875", "#4f772d")


def main(job: Message, channel: WorkerChannel) -> Message:
    """Draw and put the picture in place atomically. Raises WorkerError when matplotlib is missing."""
    try:
        import matplotlib
    except ImportError as error:
        raise WorkerError(
            "matplotlib is not installed, so there is no chart", "install zk0d's `ml` packages"
        ) from error
    matplotlib.use("Agg")
    lines = outputs.metrics_lines(Path(job["metrics"]))
    for out in (Path(job[k]) for k in ("out", "svg") if k in job):
        part = out.with_name(f".{out.stem}.{os.getpid()}{out.suffix}")
        try:
            draw(lines, str(job["title"]), part)
            part.replace(out)
        finally:
            part.unlink(missing_ok=True)
    return {"chart": str(job["out"]), "versions": len(lines)}


def draw(lines: list[dict[str, Any]], title: str, out: Path) -> None:
    """Panels over the version number: held-out loss, each node's training loss, staleness, bytes (PNG or SVG, in which
    each series has its name as id)."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    plt.rcParams.update({"font.size": 10, "text.color": _INK, "axes.labelcolor": _INK, "xtick.color": _INK,
                         "ytick.color": _INK, "axes.edgecolor": _GRID})  # fmt: skip
    figure, (heldout, nodes, stale, traffic) = plt.subplots(
        4, 1, figsize=(8, 9.6), sharex=True, height_ratios=(2.2, 2.2, 0.8, 1.2), layout="constrained"
    )
    _heldout(heldout, lines)
    _nodes(nodes, lines)
    _staleness(stale, lines)
    _traffic(traffic, lines)
    for axes in (heldout, nodes, stale, traffic):
        axes.grid(axis="y", color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    traffic.set_xlabel("version of the global model")
    traffic.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.suptitle(f"{title}: {len(lines)} versions", x=0.02, ha="left", fontsize=13, fontweight="bold")
    figure.savefig(out, dpi=150, format=out.suffix[1:])
    plt.close(figure)


def _heldout(axes: Any, lines: list[dict[str, Any]]) -> None:
    held = [(line["version"], line["heldout_loss"]) for line in lines if line["heldout_loss"] is not None]
    if held:
        axes.plot(*zip(*held, strict=True), "o-", color=_INK, linewidth=2.4, markersize=7, gid="heldout_loss")
        best = min(held, key=lambda found: found[1])
        for version, loss in dict.fromkeys((held[0], held[-1], best)):
            axes.annotate(f"{loss:.4g}", (version, loss), xytext=(0, 9), textcoords="offset points", ha="center",
                          fontweight="bold")  # fmt: skip
        axes.margins(y=0.2)
    else:
        axes.text(0.5, 0.5, "no held-out loss known", transform=axes.transAxes, ha="center", va="center")
    axes.set_ylabel("held-out loss")


def _nodes(axes: Any, lines: list[dict[str, Any]]) -> None:
    nodes = sorted({node for line in lines for node in line["train_loss"]})
    for index, node in enumerate(nodes):
        found = [(line["version"], line["train_loss"][node]["last"]) for line in lines if node in line["train_loss"]]
        colour = _NODES[index % len(_NODES)]
        # Beyond a dozen nodes a legend entry each would hide the picture.
        label = node if index < 12 else None
        axes.plot(*zip(*found, strict=True), "o--", color=colour, linewidth=1, markersize=4, alpha=0.85, label=label,
                  gid=f"train_loss_{node}")  # fmt: skip
    axes.set_ylabel("nodes' training loss")
    if nodes:
        axes.legend(frameon=False, fontsize=9, ncols=1 if len(nodes) < 5 else 2)
    else:
        axes.text(0.5, 0.5, "no training loss known", transform=axes.transAxes, ha="center", va="center")


def _staleness(axes: Any, lines: list[dict[str, Any]]) -> None:
    told = [(line["version"], list(line.get("staleness", {}).values())) for line in lines]
    found = [(v, sum(s) / len(s), max(s)) for v, s in told if s]
    if found:
        versions, means, most = zip(*found, strict=True)
        axes.bar(versions, most, width=0.5, color=_BAR_DOWN, label="most", gid="staleness_most")
        axes.plot(versions, means, "o-", color=_INK, markersize=4, label="mean", gid="staleness_mean")
        axes.legend(frameon=False, fontsize=9, ncols=2)
    axes.set_ylabel("staleness")


def _traffic(axes: Any, lines: list[dict[str, Any]]) -> None:
    most = max([1, *(line[k] for line in lines for k in ("bytes_up", "bytes_down"))])
    scale, unit = next((s, u) for s, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")) if most >= s)
    for key, shift, colour, label in (
        ("bytes_up", -0.19, _BAR_UP, "updates received"), ("bytes_down", 0.19, _BAR_DOWN, "models sent"),
    ):  # fmt: skip
        axes.bar([line["version"] + shift for line in lines], [line[key] / scale for line in lines], width=0.36,
                 color=colour, label=label, gid=key)  # fmt: skip
    axes.set_ylabel(unit)
    axes.legend(frameon=False, fontsize=9, ncols=2)


if __name__ == "__main__":
    sys.exit(run_worker(main))
