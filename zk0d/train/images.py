"""One way to bring a camera picture to the spec's size, used by training, evaluation and rollout alike.

Not for colour or normalisation, which LeRobot's processors do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]


def fit(picture: Picture, height: int, width: int) -> Picture:
    """uint8 (h, w, 3) → uint8 (height, width, 3): scaled to fit with its proportions kept, centred on black."""
    h, w = picture.shape[:2]
    if (h, w) == (height, width):
        return picture
    from PIL import Image

    scale = min(height / h, width / w)
    inner_h, inner_w = max(1, min(height, round(h * scale))), max(1, min(width, round(w * scale)))
    small = Image.fromarray(picture).resize((inner_w, inner_h), Image.Resampling.BILINEAR)
    out = np.zeros((height, width, 3), dtype=np.uint8)
    top, left = (height - inner_h) // 2, (width - inner_w) // 2
    out[top : top + inner_h, left : left + inner_w] = np.asarray(small)
    return out
