"""Pictures are fitted with their proportions kept, the same way everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from zk0d.train.images import fit


def test_the_right_size_is_left_alone() -> None:
    picture = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    assert fit(picture, 6, 8) is picture


@pytest.mark.parametrize(("size", "inner"), [((100, 50), (50, 25)), ((10, 40), (13, 50)), ((480, 640), (38, 50))])
def test_proportions_are_kept(size: tuple[int, int], inner: tuple[int, int]) -> None:
    out = fit(np.full((*size, 3), 200, dtype=np.uint8), 50, 50)
    assert out.shape == (50, 50, 3) and out.dtype == np.uint8
    bright = (out == 200).all(axis=2)
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    assert abs(len(rows) - inner[0]) <= 1 and abs(len(columns) - inner[1]) <= 1
    assert (out[~bright] == 0).all()
    assert abs((rows[0]) - (49 - rows[-1])) <= 1, "not centred"
