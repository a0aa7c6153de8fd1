"""A contact sheet of a dataset: some frames of each episode's cameras, and its joints as curves. One PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

COLUMNS = 6
THUMB_W, THUMB_H = 160, 120
PLOT_W = 420
MOST = 40
_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")


def draw(dataset: Any, out: Path, episodes: list[int]) -> dict[str, Any]:
    """Draw `episodes` (none named: at most 40, spread evenly) of a dataset into `out`; → what was drawn."""
    total = dataset.num_episodes
    if not episodes:
        episodes = sorted({round(n) for n in np.linspace(0, total - 1, min(total, MOST))})
    cameras = list(dataset.meta.video_keys)
    height = max(1, len(cameras)) * THUMB_H + 22
    sheet = Image.new("RGB", (COLUMNS * THUMB_W + PLOT_W, height * len(episodes) + 22), "white")
    pen = ImageDraw.Draw(sheet)
    names = dataset.meta.features["observation.state"]["names"] or []
    for j, name in enumerate(names):
        pen.text((8 + j * 130, 4), str(name).removesuffix(".pos"), fill=_COLOURS[j % len(_COLOURS)])
    for row, episode in enumerate(episodes):
        _episode(dataset, episode, cameras, sheet, pen, 22 + row * height)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)
    return {"file": str(out), "episodes": len(episodes), "of": total}


def _episode(dataset: Any, episode: int, cameras: list[str], sheet: Image.Image, pen: Any, top: int) -> None:
    meta = dataset.meta.episodes[episode]
    first, end = int(meta["dataset_from_index"]), int(meta["dataset_to_index"])
    picks = [int(n) for n in np.linspace(first, end - 1, COLUMNS)]
    title = f"episode {episode}: {end - first} frames, {(end - first) / dataset.fps:.1f} s, {'; '.join(meta['tasks'])}"
    pen.text((4, top + 4), title.encode("latin-1", "replace").decode("latin-1"), fill="black")
    for column, index in enumerate(picks):
        item = dataset[index] if cameras else {}
        for line, key in enumerate(cameras):
            pixels = (item[key].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            picture = Image.fromarray(pixels)
            picture.thumbnail((THUMB_W - 2, THUMB_H - 2))
            if picture.width < THUMB_W // 2:
                picture = picture.resize((THUMB_H - 2, THUMB_H - 2))
            sheet.paste(picture, (column * THUMB_W, top + 22 + line * THUMB_H))
            if not column:
                name = key.removeprefix("observation.images.")
                pen.text((4, top + 24 + line * THUMB_H), name, fill="white", stroke_width=1, stroke_fill="black")
    rows = dataset.hf_dataset.with_format("numpy")[first:end]["observation.state"]
    _curves(pen, np.stack([np.asarray(r, dtype=float) for r in rows]), COLUMNS * THUMB_W + 6, top + 22,
            PLOT_W - 12, max(1, len(cameras)) * THUMB_H - 8)  # fmt: skip


def _curves(pen: Any, values: NDArray[np.float64], left: int, top: int, width: int, height: int) -> None:
    """Joints over time, shape (frames, joints), in one frame with its extremes written beside it."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    span = (high - low) or 1.0
    pen.rectangle((left, top, left + width, top + height), outline="#bbbbbb")
    xs = left + np.linspace(0, width, len(values))
    for j in range(values.shape[1]):
        ys = top + height * (1 - (values[:, j] - low) / span)
        pen.line([(float(x), float(y)) for x, y in zip(xs, ys, strict=True)], fill=_COLOURS[j % len(_COLOURS)], width=1)
    pen.text((left + 4, top + 2), f"{high:.0f}", fill="#555555")
    pen.text((left + 4, top + height - 13), f"{low:.0f}", fill="#555555")
