"""Which samples an evaluation takes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from zk0d.train.evaluator import spread


@given(st.integers(1, 5000), st.integers(1, 600))
def test_samples_are_spread_evenly(samples: int, limit: int) -> None:
    chosen = spread(samples, limit)
    assert len(chosen) == min(samples, limit)
    assert chosen[0] >= 0 and chosen[-1] < samples
    gaps = np.diff(chosen)
    assert not len(gaps) or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)
    if limit > 1 and samples > 1:
        assert chosen[0] == 0 and chosen[-1] == samples - 1
