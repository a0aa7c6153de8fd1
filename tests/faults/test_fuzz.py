"""Bad input for every parser and machine of the link: some thousands here, a million with `make fuzz`."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from fuzz import MEMORY_LIMIT, run
from fuzz_targets import SIMPLE
from hypothesis import given, settings
from hypothesis import strategies as st

from zk0d.errors import PayloadError
from zk0d.link.gate import Gate, GateError
from zk0d.model.payload import parse_header


@pytest.mark.parametrize("seed", [1, random.SystemRandom().randrange(1 << 20)], ids=["fixed", "new"])
def test_nothing_crashes_nothing_bad_is_accepted_memory_stays(seed: int) -> None:
    report = run(9000, seed)
    print(f"seed {seed}\n{report.text()}")
    assert not report.crash, report.crash
    assert report.cases == 9000 and report.grown < MEMORY_LIMIT
    assert all(count > 0 for count in report.refused.values())


@pytest.mark.parametrize("target", SIMPLE, ids=str)
@settings(max_examples=150)
@given(rng=st.randoms(use_true_random=False))
def test_what_hypothesis_makes_of_the_same(target: str, rng: random.Random) -> None:
    SIMPLE[target](rng)


TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "BOOL", "C64"]) | st.integers(),
        "shape": st.lists(st.integers(-2, 2**60) | st.booleans() | st.floats(), max_size=4),
        "data_offsets": st.lists(st.integers(-4, 64) | st.just(2**42), min_size=1, max_size=3),
    },
    optional={"extra": st.none()},
)


@given(
    header=st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), TENSOR | st.none(), max_size=4),
    data=st.integers(0, 128),
)
def test_no_declared_tensors_break_the_header_parser(header: dict[str, Any], data: int) -> None:
    try:
        entries, _ = parse_header(json.dumps(header).encode(), data)
    except PayloadError:
        return
    assert sum(e.end - e.start for e in entries.values()) == data


@given(data=st.binary(max_size=200), node_id=st.text("abc", min_size=1, max_size=8))
def test_no_bytes_open_the_gate(data: bytes, node_id: str) -> None:
    gate = Gate(node_id)
    try:
        out = gate.feed(b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48) + data)
    except GateError:
        return
    assert not gate.open and len(out) <= 64
