"""bfloat16 in numpy, held against torch's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zk0d.model.codec import (
    BLOCK,
    CODECS,
    decode_bfloat16,
    encode_bfloat16,
    is_finite,
    join_float32,
    split_float32,
    sum_of_squares,
)

ANY_BITS = hnp.arrays(np.uint32, st.integers(0, 300), elements=st.integers(0, 2**32 - 1))


def torch_bits(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values.copy()).bfloat16().view(torch.int16).numpy().view(np.uint16)


@given(ANY_BITS)
def test_encode_is_torchs(bits: np.ndarray) -> None:
    values = bits.view(np.float32)
    ours, nan = encode_bfloat16(values), np.isnan(values)
    assert np.array_equal(ours[~nan], torch_bits(values)[~nan])
    assert np.isnan(decode_bfloat16(ours)[nan]).all()


def test_every_pattern_decodes_as_torchs_and_comes_back() -> None:
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    values = decode_bfloat16(bits)
    theirs = torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16).float().numpy()
    assert np.array_equal(values.view(np.uint32), theirs.view(np.uint32))
    finite = np.isfinite(values)
    assert np.array_equal(encode_bfloat16(values)[finite], bits[finite])
    assert all(is_finite(bits[i : i + 1]) == bool(finite[i]) for i in range(0, 1 << 16, 127))


@given(ANY_BITS)
def test_declared_error_holds(bits: np.ndarray) -> None:
    values = bits.view(np.float32)
    decoded = decode_bfloat16(encode_bfloat16(values)).astype(np.float64)
    exact, codec = values.astype(np.float64), CODECS["bfloat16"]
    held = np.isfinite(exact) & np.isfinite(decoded)
    error = np.abs(decoded[held] - exact[held])
    assert (error <= codec.relative * np.abs(exact[held]) + codec.absolute).all()


def test_ties_go_to_even() -> None:
    one = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF], np.uint32).view(np.float32)
    assert encode_bfloat16(one).tolist() == [0x3F80, 0x3F82, 0x3F81, 0x7F80]


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_blocks_join(size: int) -> None:
    values = np.random.default_rng(size).standard_normal(size, dtype=np.float32)
    encoded = encode_bfloat16(values)
    assert np.array_equal(encoded, torch_bits(values))
    assert sum_of_squares(values) == pytest.approx(math.fsum((values.astype(np.float64) ** 2)[:2000]) if size < 2000
                                                   else float((values.astype(np.float64) ** 2).sum()))  # fmt: skip
    assert is_finite(values) and is_finite(encoded)
    if size:
        values[-1] = np.nan
        assert not is_finite(values) and not is_finite(encode_bfloat16(values))


def test_shape_is_kept_for_scalars_and_strided_input() -> None:
    grid = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert np.array_equal(decode_bfloat16(encode_bfloat16(grid.T)), grid.T)
    assert encode_bfloat16(np.float32(2).reshape(())).shape == ()


@given(ANY_BITS)
def test_split_and_join_are_inverse_and_round_to_the_nearest(bits: np.ndarray) -> None:
    values = bits.view(np.float32)
    values = np.where(np.abs(values) <= np.float32(3.38e38), values, np.float32(1.5))  # finite, rounded too
    rounded, rest = np.empty(values.size, np.uint16), np.empty(values.size, np.uint16)
    split_float32(values, rounded, rest, np.empty(values.size, np.uint32))
    back = np.empty(values.size, np.float32)
    join_float32(rounded, rest, back, np.empty(values.size, np.int32))
    assert np.array_equal(back.view(np.uint32), values.view(np.uint32))
    even = encode_bfloat16(values)
    tie = rest == 0x8000
    assert np.array_equal(rounded[~tie], even[~tie])
    assert (np.abs(rounded[tie].astype(int) - even[tie]) <= 1).all()
