"""The video of a rollout: the cameras side by side, large enough to look at, with a line of text below.

H.264 that browsers play as it loads. Not for datasets (video.py): here a picture may be scaled and drawn upon.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from robot.video import CameraEncoder, Frame, live_path

HEIGHT = 288
LINE = 32
GOP = 30


class Film:
    """Context manager: `add` a frame at a time. The file appears under its name only when it is whole."""

    def __init__(self, path: Path, fps: int) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}")
        self._fps = fps
        self._encoder: CameraEncoder | None = None
        self._font = ImageFont.load_default(size=15)

    def add(self, images: Mapping[str, Frame], text: str, good: bool = False) -> None:
        """One frame per camera, (height, width, 3) uint8 RGB, and what to write; green once all is well."""
        views = [_scaled(image) for image in images.values()]
        picture = np.concatenate(views, axis=1) if views else np.zeros((HEIGHT, HEIGHT, 3), np.uint8)
        width = max(picture.shape[1], 384)
        canvas = Image.new("RGB", (width, HEIGHT + LINE), (16, 16, 16))
        canvas.paste(Image.fromarray(picture), ((width - picture.shape[1]) // 2, 0))
        colour = (110, 220, 110) if good else (235, 235, 235)
        ImageDraw.Draw(canvas).text((8, HEIGHT + 7), text, fill=colour, font=self._font)
        if self._encoder is None:
            self._encoder = CameraEncoder(self._part, HEIGHT + LINE, width, self._fps, gop=GOP)
        self._encoder.put(np.asarray(canvas))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._encoder is None:
            return
        if kind is not None and not issubclass(kind, Exception):
            self._encoder.abort()
            return
        self._encoder.close()
        live_path(self._part).unlink(missing_ok=True)  # its pieces while it was encoded
        self._part.replace(self._path)


def _scaled(image: Frame) -> Frame:
    """To the film's height; an even width, which yuv420p needs."""
    height, width = image.shape[:2]
    wide = 2 * round(width * HEIGHT / height / 2)
    kind = Image.Resampling.NEAREST if height < HEIGHT else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize((wide, HEIGHT), kind), dtype=np.uint8)
