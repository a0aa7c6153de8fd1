"""Our safetensors reader and writer, held against the safetensors library both ways, and against hostile files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save, save_file

from zk0d.errors import PayloadError, Zk0Error
from zk0d.model.leaves import name_of_file
from zk0d.model.payload import DTYPES, Payload, PayloadWriter, parse_header, write_exchange
from zk0d.model.spec import ModelSpec, TensorSpec

TORCH = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64, "I64": torch.int64,
         "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}  # fmt: skip
SPEC = ModelSpec("act", {}, "", {}, 30, "degrees", (TensorSpec("a.w", (3, 4)), TensorSpec("b", (5,))), "bfloat16", "")


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def file_of(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda n: n != "__metadata__")
tensors = st.dictionaries(
    names, st.tuples(st.sampled_from(sorted(TORCH)), st.lists(st.integers(0, 4), max_size=3)), max_size=6
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(tensors, st.dictionaries(names, st.text(st.characters(codec="utf-8"), max_size=20), max_size=2))
def test_reads_what_the_library_writes(
    tmp_path: Path, shapes: dict[str, tuple[str, list[int]]], metadata: dict[str, str]
) -> None:
    values = {n: torch.randint(0, 2, tuple(s)).to(TORCH[d]) for n, (d, s) in shapes.items()}
    (tmp_path / "x").write_bytes(save(values, metadata or None))  # {} makes the library write broken JSON
    with Payload.open(tmp_path / "x") as payload:
        assert payload.names == sorted(values) and payload.metadata == metadata
        for name, value in values.items():
            ours = payload.tensor(name)
            assert ours.shape == tuple(value.shape) and not ours.flags.writeable
            view = value.view(torch.int16).numpy().view(np.uint16) if value.dtype == torch.bfloat16 else value.numpy()
            assert np.array_equal(ours, view)
            if value.is_floating_point():
                assert np.array_equal(payload.float32(name), value.float().numpy())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(tensors, st.dictionaries(names, st.text(st.characters(codec="utf-8"), max_size=20), max_size=2))
def test_the_library_reads_what_we_write(
    tmp_path: Path, shapes: dict[str, tuple[str, list[int]]], metadata: dict[str, str]
) -> None:
    values = {n: np.random.default_rng(0).integers(0, 2, s).astype(DTYPES[d]) for n, (d, s) in shapes.items()}
    with PayloadWriter(tmp_path / "y", shapes, metadata) as out:
        for name in sorted(values):
            out.write(name, values[name])
    assert out.digest == name_of_file(tmp_path / "y") and out.size == (tmp_path / "y").stat().st_size
    back = load((tmp_path / "y").read_bytes())
    assert back.keys() == values.keys()
    for name, (dtype, shape) in shapes.items():
        assert back[name].dtype == TORCH[dtype] and list(back[name].shape) == shape
        expected = torch.from_numpy(values[name].view(np.int16) if dtype == "BF16" else values[name])
        assert torch.equal(back[name].view(torch.int16) if dtype == "BF16" else back[name], expected)


def test_equal_tensors_give_equal_bytes_in_any_declaration_order(tmp_path: Path) -> None:
    a, b = np.ones((3, 4), np.float32), np.full(5, -1.5, np.float32)
    for name, order in (("1", ["a.w", "b"]), ("2", ["b", "a.w"])):
        shapes = {"a.w": ("BF16", (3, 4)), "b": ("BF16", (5,))}
        with PayloadWriter(tmp_path / name, {n: shapes[n] for n in order}) as out:
            out.write("a.w", a)
            out.write("b", b)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert write_exchange(tmp_path / "3", SPEC, lambda n: {"a.w": a, "b": b}[n]) == out.manifest


def test_a_writer_that_fails_leaves_nothing_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), PayloadWriter(path, {"a": ("F32", (2,)), "b": ("F32", (2,))}) as out:
        out.write("a", np.zeros(2, np.float32))
        raise RuntimeError
    with pytest.raises(ValueError, match="b was not written"), PayloadWriter(path, {"b": ("F32", (2,))}):
        pass
    with pytest.raises(ValueError, match="shape"), PayloadWriter(path, {"b": ("F32", (2,))}) as out:
        out.write("b", np.zeros(3, np.float32))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


GOOD = json.dumps({"a": entry()}).encode()
BAD_HEADERS: dict[str, tuple[bytes, str]] = {
    "not an object": (b"[]", "does not begin"),
    "leading space": (b" " + GOOD, "does not begin"),
    "not json": (b"{nope}", "not JSON"),
    "not utf-8": (b'{"\xff": 1}', "not JSON"),
    "deep": (b'{"a":' * 100_000, "not JSON"),
    "deep lists": (b'{"a":' + b"[" * 200_000, "not JSON"),
    "NaN": (b'{"a": NaN}', "NaN"),
    "huge number": (b'{"a": ' + b"9" * 10_000 + b"}", "not JSON"),
    "doubled tensor": (b'{"a":%s,"a":%s}' % (json.dumps(entry()).encode(), json.dumps(entry()).encode()), "twice"),
    "doubled field": (b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "twice"),
    "trailing json": (GOOD + b"{}", "not JSON"),
    "unknown dtype": (json.dumps({"a": entry("F4")}).encode(), "unknown dtype 'F4'"),
    "dtype no text": (json.dumps({"a": entry(["F32"])}).encode(), "unknown dtype"),
    "shape too big": (json.dumps({"a": entry(shape=(3,))}).encode(), "do not fill"),
    "shape overflow": (json.dumps({"a": entry(shape=[2**33, 2**31])}).encode(), "do not fill"),
    "shape negative": (json.dumps({"a": entry(shape=[-1, -2])}).encode(), "no list"),
    "shape float": (json.dumps({"a": entry(shape=[2.0])}).encode(), "no list"),
    "shape bool": (json.dumps({"a": entry(shape=[True, 2])}).encode(), "no list"),
    "shape long": (json.dumps({"a": entry(shape=[2] + [1] * 40)}).encode(), "no list"),
    "offsets three": (json.dumps({"a": entry(offsets=(0, 8, 8))}).encode(), "two positions"),
    "offsets backwards": (json.dumps({"a": entry(offsets=(8, 0))}).encode(), "do not fill"),
    "missing field": (b'{"a":{"dtype":"F32","shape":[2]}}', "exactly"),
    "extra field": (json.dumps({"a": {**entry(), "x": 1}}).encode(), "exactly"),
    "tensor is text": (b'{"a":"b"}', "exactly"),
    "gap": (json.dumps({"a": entry(shape=(1,), offsets=(4, 8))}).encode(), "gap"),
    "overlap": (json.dumps({"a": entry(), "b": entry(shape=(1,), offsets=(4, 8))}).encode(), "overlaps"),
    "same extent": (json.dumps({"a": entry(), "b": entry()}).encode(), "overlaps"),
    "out of order": (
        json.dumps({"b": entry(shape=(1,), offsets=(4, 8)), "a": entry(shape=(1,), offsets=(0, 4))}).encode(),
        "gap",
    ),
    "data left over": (json.dumps({"a": entry(shape=(1,), offsets=(0, 4))}).encode(), "end at byte 4 of 8"),
    "beyond the file": (json.dumps({"a": entry(shape=(4,), offsets=(0, 16))}).encode(), "end at byte 16 of 8"),
    "metadata number": (json.dumps({"__metadata__": {"k": 1}, "a": entry()}).encode(), "__metadata__"),
    "metadata list": (json.dumps({"__metadata__": [], "a": entry()}).encode(), "__metadata__"),
}


@pytest.mark.parametrize("case", sorted(BAD_HEADERS))
def test_bad_headers_are_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    header, said = BAD_HEADERS[case]
    with pytest.raises(PayloadError) as caught:
        Payload.open(file_of(tmp_path / "x", header, b"\0" * 8))
    assert said in caught.value.message and len(caught.value.message) < 600


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "too short"),
        (b"\0" * 9, "too short"),
        (struct.pack("<Q", 2**63) + b"{}", "header of"),
        (struct.pack("<Q", 3) + b"{}", "header of"),
        (struct.pack("<Q", 100_000_001) + b"{}", "header of"),
    ],
)
def test_bad_lengths(tmp_path: Path, raw: bytes, said: str) -> None:
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(PayloadError, match=said):
        Payload.open(tmp_path / "x")
    with pytest.raises(PayloadError, match="cannot be read"):
        Payload.open(tmp_path / "absent")
    with pytest.raises(Zk0Error) as ours:
        Payload.open(tmp_path)
    assert not isinstance(ours.value, PayloadError)  # this machine's trouble must not refuse anybody's update


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
field_values = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F4"]) | json_values,
        "shape": st.lists(st.integers(0, 4), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(0, 16), min_size=2, max_size=2) | json_values,
    }
)


@given(st.binary(max_size=200) | st.dictionaries(st.text(max_size=4), field_values | json_values, max_size=4).map(
    lambda v: json.dumps(v).encode()), st.integers(0, 64))  # fmt: skip
def test_any_header_is_read_or_refused_and_never_read_laxer_than_the_library(header: bytes, size: int) -> None:
    try:
        entries, _ = parse_header(header, size)
    except PayloadError:
        return
    assert sum(e.end - e.start for e in entries.values()) == size
    assert set(load(struct.pack("<Q", len(header)) + header + b"\0" * size)) == set(entries)


@given(st.data())
def test_a_flipped_header_byte_never_raises_anything_else(data: st.DataObject) -> None:
    header = bytearray(save({"a": torch.zeros(2, 3), "b": torch.zeros(4).bfloat16()}, {"k": "v"})[8:-32])
    at = data.draw(st.integers(0, len(header) - 1))
    header[at] = data.draw(st.integers(0, 255))
    try:
        parse_header(bytes(header), 32)
    except PayloadError:
        pass


def test_check_against_and_finite(tmp_path: Path) -> None:
    def made(values: dict[str, torch.Tensor]) -> Payload:
        save_file(values, tmp_path / "x")
        return Payload.open(tmp_path / "x")

    good = {"a.w": torch.ones(3, 4).bfloat16(), "b": torch.zeros(5).bfloat16()}
    payload = made(good)
    payload.check_against(SPEC)
    payload.check_finite()
    assert payload.norm() == pytest.approx(12**0.5)
    with pytest.raises(PayloadError, match="'b' is missing"):
        made({"a.w": good["a.w"]}).check_against(SPEC)
    with pytest.raises(PayloadError, match="'c' is not in the exchange set"):
        made({**good, "c": torch.zeros(1)}).check_against(SPEC)
    with pytest.raises(PayloadError, match=r"shape \[4, 3\], the spec says \[3, 4\]"):
        made({**good, "a.w": torch.ones(4, 3).bfloat16()}).check_against(SPEC)
    with pytest.raises(PayloadError, match="dtype F32, the spec says BF16"):
        made({**good, "b": torch.zeros(5)}).check_against(SPEC)
    for bad in (float("nan"), float("inf"), float("-inf")):
        for dtype in (torch.bfloat16, torch.float32):
            with pytest.raises(PayloadError, match="'b' holds a NaN or an infinity"):
                made({**good, "b": torch.tensor([0, 0, 0, 0, bad], dtype=dtype)}).check_finite()


def test_closed_payload_and_arrays_that_outlive_it(tmp_path: Path) -> None:
    save_file({"a": torch.arange(4.0)}, tmp_path / "x")
    with Payload.open(tmp_path / "x") as payload:
        kept = payload.tensor("a")
    assert kept.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="closed"):
        payload.tensor("a")
    assert load_file(tmp_path / "x")["a"].tolist() == [0, 1, 2, 3]
