"""Aggregation against the formula worked out whole in memory, its determinism and its memory; and admission's order."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_cast import base_tensors, make_parts, reference

from zk0d.durable import canonical_json
from zk0d.errors import PayloadError, ProtocolError, Zk0Error
from zk0d.hub import admission
from zk0d.hub.aggregate import first_master, merge
from zk0d.hub.master import Master, off_ties
from zk0d.hub.receipts import UPDATE_PREFIX, ReceiptKey, check_signature, read_statement
from zk0d.link.identity import Authority, NodeIdentity
from zk0d.model.codec import decode_bfloat16, encode_bfloat16, split_float32
from zk0d.model.leaves import name_of_file
from zk0d.model.payload import Payload, write_exchange
from zk0d.model.spec import ModelSpec


def before(folder: Path) -> tuple[Path, Path]:
    """Version 0: its master and what is published."""
    return folder / "m", folder / "p" / "exchange.safetensors"


def deltas(spec: ModelSpec, count: int, scale: float = 0.1) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    return [
        {t.name: rng.standard_normal(t.shape, dtype=np.float32) * scale for t in spec.exchange} for _ in range(count)
    ]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_merge_is_the_formula(tmp_path: Path, dtype: str) -> None:
    spec = make_parts(tmp_path / "p", elements=700_000, dtype=dtype)
    first_master(spec, tmp_path / "p" / "exchange.safetensors", tmp_path / "p" / "base.safetensors", tmp_path / "m")
    given, weights = deltas(spec, 3), [0.5, 0.3, 0.2]
    paths = []
    for i, delta in enumerate(given):
        paths.append(tmp_path / f"u{i}")
        write_exchange(paths[-1], spec, lambda n, d=delta: d[n])
    made = merge(spec, before(tmp_path), list(zip(paths, weights, strict=True)), tmp_path / "new", tmp_path / "wire")
    master = base_tensors(tmp_path / "p", spec)
    full = tmp_path / ("wire" if dtype == "float32" else "new")  # a float32 version is its own master
    assert (tmp_path / "new").exists() == (dtype == "bfloat16") and made.weights == tuple(weights)
    for name in master:
        exact = master[name].astype(np.float64)
        rounding = 4 * 2**-24 * (1 + np.abs(exact).max())  # float32: one rounding for each term and the sum
        for delta, weight in zip(given, weights, strict=True):
            sent = decode_bfloat16(encode_bfloat16(delta[name])) if dtype == "bfloat16" else delta[name]
            exact = exact + weight * sent.astype(np.float64)
        with Master(full, tmp_path / "wire") as new, Payload.open(tmp_path / "wire") as wire:
            np.testing.assert_allclose(new.tensor(name), exact, rtol=1e-7, atol=rounding)
            np.testing.assert_allclose(wire.float32(name), exact, rtol=2**-8 if dtype == "bfloat16" else 1e-7,
                                       atol=rounding)  # fmt: skip
    assert made.master == name_of_file(full)
    assert made.published == name_of_file(tmp_path / "wire") and made.size == (tmp_path / "wire").stat().st_size
    if dtype == "bfloat16":
        parts = list(zip(given, weights, strict=True))
        assert made.published == reference(spec, base_tensors(tmp_path / "p", spec), parts, tmp_path / "ref")


def test_versions_that_follow_lose_nothing_of_the_master(tmp_path: Path) -> None:
    """Steps far below bfloat16's spacing add up over versions, as in float32 whole in memory."""
    spec = make_parts(tmp_path / "p", elements=700_000)
    first_master(spec, tmp_path / "p" / "exchange.safetensors", tmp_path / "p" / "base.safetensors", tmp_path / "m")
    small = deltas(spec, 1, 1e-4)[0]
    write_exchange(tmp_path / "u", spec, small.__getitem__)
    at = before(tmp_path)
    with Payload.open(tmp_path / "m") as first:  # the base's, but for a bit where it lies midway
        master = {t.name: first.float32(t.name).copy() for t in spec.exchange}
    for version in range(3):
        out = tmp_path / f"m{version}", tmp_path / f"w{version}"
        made = merge(spec, at, [(tmp_path / "u", 1.0)], *out)
        assert made.published == reference(spec, master, [(small, 1)], tmp_path / "ref")
        with Master(*out) as exact:
            assert all(np.array_equal(exact.tensor(n), v) for n, v in master.items())
        at = out
    (tmp_path / "m2").write_bytes(b"")
    with pytest.raises(Zk0Error, match="hub's own file") as raised:
        merge(spec, at, [(tmp_path / "u", 1.0)], tmp_path / "x", tmp_path / "y")
    assert not isinstance(raised.value, PayloadError)


def test_equal_updates_of_equal_weight_are_their_own_mean(tmp_path: Path) -> None:
    spec = make_parts(tmp_path / "p")
    first_master(spec, tmp_path / "p" / "exchange.safetensors", tmp_path / "p" / "base.safetensors", tmp_path / "m")
    write_exchange(tmp_path / "u", spec, deltas(spec, 1)[0].__getitem__)
    one = merge(spec, before(tmp_path), [(tmp_path / "u", 1.0)], tmp_path / "n1", tmp_path / "w1")
    four = merge(spec, before(tmp_path), [(tmp_path / "u", 0.25)] * 4, tmp_path / "n4", tmp_path / "w4")
    assert (one.master, one.published) == (four.master, four.published)


def test_first_master_keeps_the_bases_precision_only_where_it_rounds_to_what_is_published(tmp_path: Path) -> None:
    parts = tmp_path / "p"
    spec = make_parts(parts)
    first_master(spec, parts / "exchange.safetensors", parts / "base.safetensors", tmp_path / "m")
    with Payload.open(tmp_path / "m") as master, Payload.open(parts / "base.safetensors") as base:
        assert np.array_equal(master.float32("head.weight"), base.float32("head.weight"))
    other = base_tensors(parts, spec)
    other["head.weight"] += 1
    write_exchange(tmp_path / "other", spec, lambda n: other[n])
    first_master(spec, tmp_path / "other", parts / "base.safetensors", tmp_path / "m2")
    with Payload.open(tmp_path / "m2") as master, Payload.open(tmp_path / "other") as published:
        assert np.array_equal(master.float32("head.weight"), published.float32("head.weight"))


def test_a_first_master_off_the_ties_publishes_version_0_again() -> None:
    rng = np.random.default_rng(5)
    exact = rng.standard_normal(4096).astype(np.float32)
    exact.view(np.uint32)[::3] = exact.view(np.uint32)[::3] & np.uint32(0xFFFF0000) | np.uint32(0x8000)  # midway
    rounded = encode_bfloat16(exact)
    moved = off_ties(exact, rounded)
    out, rest, scratch = np.empty(4096, np.uint16), np.empty(4096, np.uint16), np.empty(4096, np.uint32)
    split_float32(exact, out, rest, scratch)
    assert not np.array_equal(out, rounded)
    split_float32(moved, out, rest, scratch)
    assert np.array_equal(out, rounded)
    assert np.abs(moved.view(np.int32) - exact.view(np.int32)).max() == 1


def test_overflow_and_cancelling_leave_nothing(tmp_path: Path) -> None:
    spec = make_parts(tmp_path / "p")
    first_master(spec, tmp_path / "p" / "exchange.safetensors", tmp_path / "p" / "base.safetensors", tmp_path / "m")
    huge = {t.name: np.full(t.shape, 3.38e38, np.float32) for t in spec.exchange}
    write_exchange(tmp_path / "u", spec, lambda n: huge[n])
    there = set(tmp_path.iterdir())
    with pytest.raises(PayloadError, match="infinite"):
        merge(spec, before(tmp_path), [(tmp_path / "u", 1.0), (tmp_path / "u", 1.0)], tmp_path / "n", tmp_path / "w")
    with pytest.raises(admission.CancelledError):
        merge(spec, before(tmp_path), [(tmp_path / "u", 1.0)], tmp_path / "n", tmp_path / "w", lambda: True)
    assert set(tmp_path.iterdir()) == there


def test_memory_is_bounded_by_tensors_not_by_updates(tmp_path: Path) -> None:
    """Eight updates of 16 MB: the peak stays far below what holding them would take."""
    spec = make_parts(tmp_path / "p", elements=8_000_000)
    (tmp_path / "spec").write_bytes(spec.to_bytes())
    write_exchange(tmp_path / "u", spec, deltas(spec, 1)[0].__getitem__)
    code = """
import resource, sys
from pathlib import Path
from zk0d.hub.aggregate import first_master, merge
from zk0d.model.spec import ModelSpec
d = Path(sys.argv[1]); spec = ModelSpec.load(d / "spec")
first_master(spec, d / "p" / "exchange.safetensors", d / "p" / "base.safetensors", d / "m")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
merge(spec, (d / "m", d / "p" / "exchange.safetensors"), [(d / "u", 0.125)] * 1, d / "n", d / "w")
one = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
merge(spec, (d / "m", d / "p" / "exchange.safetensors"), [(d / "u", 0.125)] * 8, d / "n", d / "w")
print(before, one, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[2])  # fmt: skip
    _, one, eight = map(int, done.stdout.split())
    assert eight - one < 40_000, done.stdout  # kB; the eight together are 128 MB


# -- admission -----------------------------------------------------------------------------------------------------


class Case:
    """A good update and what it takes to spoil it."""

    def __init__(self, folder: Path) -> None:
        self.spec = make_parts(folder / "p")
        authority = Authority.create(folder / "ca")
        self.node = NodeIdentity.create(folder / "node")
        self.certificate = authority.issue_node(self.node.csr(), "node-1")
        self.path = folder / "payload"
        self.delta = deltas(self.spec, 1)[0]
        self.write()

    def write(self) -> None:
        self.digest = write_exchange(self.path, self.spec, lambda n: self.delta[n]).digest

    def statement(self, **changes: Any) -> Any:
        value = {"federation": "f", "task": "t", "node": "node-1", "base_version": 0, "payload": self.digest,
                 "size": self.path.stat().st_size, "samples": 5, "steps": 1, "loss_first": 1.0, "loss_last": 0.5,
                 **changes}  # fmt: skip
        raw = canonical_json(value)
        return read_statement(raw, self.node.sign(UPDATE_PREFIX + raw))

    def inspect(self, statement: Any = None, max_norm: float = 0.0) -> float:
        return admission.inspect(self.path, statement or self.statement(), self.certificate, self.spec, max_norm)


def test_a_good_update_gives_its_norm(tmp_path: Path) -> None:
    case = Case(tmp_path)
    exact = sum(float((decode_bfloat16(encode_bfloat16(d)).astype(np.float64) ** 2).sum()) for d in case.delta.values())
    assert case.inspect() == pytest.approx(exact**0.5)
    assert case.inspect(max_norm=exact**0.5 * 1.01) > 0
    with pytest.raises(PayloadError, match="above this federation's limit"):
        case.inspect(max_norm=exact**0.5 * 0.99)


def test_each_check_speaks_in_its_turn(tmp_path: Path) -> None:
    """Everything is wrong at once; mending one thing after another shows the order of the checks."""
    case = Case(tmp_path)
    case.delta["head.bias"][0] = np.inf
    case.write()
    raw = case.path.read_bytes()
    wrong_name = raw.replace(b'"head.bias"', b'"head.bios"')
    case.path.write_bytes(wrong_name + b"!")
    good = name_of_file(case.path)
    unsigned = case.statement(payload=good)
    unsigned = read_statement(unsigned.raw, bytes(64))
    for statement, error, said in (
        (case.statement(size=5, payload="blob:" + "0" * 64), PayloadError, "statement says 5"),
        (case.statement(payload="blob:" + "0" * 64), PayloadError, "payload is not blob:"),
        (unsigned, ProtocolError, "signature"),
        (case.statement(payload=good), PayloadError, "end at byte"),
    ):
        with pytest.raises(error, match=said):
            case.inspect(statement)
    case.path.write_bytes(wrong_name)
    case.digest = name_of_file(case.path)
    with pytest.raises(PayloadError, match=r"'head\.bias' is missing"):
        case.inspect()
    case.path.write_bytes(raw)
    case.digest = name_of_file(case.path)
    with pytest.raises(PayloadError, match="NaN or an infinity"):
        case.inspect(max_norm=1e-9)


def test_no_flipped_byte_gets_in(tmp_path: Path) -> None:
    case = Case(tmp_path)
    raw, seed = case.path.read_bytes(), random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)
    statement = case.statement()
    for at in [*range(0, 300, 7), *(rng.randrange(len(raw)) for _ in range(20))]:
        bad = bytearray(raw)
        bad[at] ^= 1 << rng.randrange(8)
        case.path.write_bytes(bad)
        with pytest.raises(PayloadError, match="payload is not blob:"):
            case.inspect(statement)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"samples": 0}, "0 samples"), ({"samples": 10**10}, "samples"), ({"steps": 0}, "0 steps"),
     ({"size": -1}, "no count"), ({"size": 1.0}, "no count"), ({"size": True}, "no count"),
     ({"node": 3}, "text"), ({"node": "x" * 200}, "text"),
     ({"payload": "md5:0"}, "not a blob's name"), ({"extra": 1}, "other fields"), ({"loss_last": "x"}, "loss"),
     ({"loss_last": 10**400}, "loss")],
)  # fmt: skip
def test_bad_statements(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        Case(tmp_path).statement(**changes)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"{" * 3000, b'{"a": 1}', b'{"a":NaN}', b"\xff", b"x" * 5000])
def test_statements_that_are_none(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_statement(raw, b"")


def test_statement_of_another_signer(tmp_path: Path) -> None:
    case = Case(tmp_path)
    statement = case.statement()
    check_signature(statement, case.certificate)
    other = NodeIdentity.create(tmp_path / "other")
    with pytest.raises(ProtocolError, match="signature"):
        check_signature(read_statement(statement.raw, other.sign(UPDATE_PREFIX + statement.raw)), case.certificate)
    with pytest.raises(ProtocolError, match="signature"):  # signed for another purpose
        check_signature(read_statement(statement.raw, case.node.sign(statement.raw)), case.certificate)


def test_quarantine_is_bounded_and_says_why(tmp_path: Path) -> None:
    case = Case(tmp_path)
    for i in range(admission.QUARANTINED + 5):
        admission.quarantine(tmp_path / "q", case.path, case.statement(samples=i + 1), f"reason {i}")
    records = list((tmp_path / "q").glob("*.json"))
    assert len(records) == admission.QUARANTINED == len(list((tmp_path / "q").glob("*.payload")))
    assert json.loads(records[0].read_text())["reason"].startswith("reason ")
    admission.quarantine(tmp_path / "q", tmp_path / "absent", case.statement(), "no bytes came")


def test_receipts_are_fixed_by_their_update(tmp_path: Path) -> None:
    key = ReceiptKey.create(tmp_path / "keys")
    update = {"federation": "f", "node": "node-1", "digest": "d", "payload": "p", "base_version": 0, "samples": 3,
              "statement": b'{"steps": 5}', "size": 9, "norm": 0.5}  # fmt: skip
    made = [ReceiptKey.load(tmp_path / "keys").make(update, 12.5, 1, 0.25), key.make(update, 12.5, 1, 0.25)]
    assert made[0] == made[1]
    assert json.loads(made[0][0])["admitted_at"] == "1970-01-01T00:00:12Z"
    assert (tmp_path / "keys" / "receipt.key").stat().st_mode & 0o777 == 0o600


def test_sum_order_is_the_given_order(tmp_path: Path) -> None:
    """The hub gives updates in node order; that this order matters at all is why it must be fixed."""
    spec = make_parts(tmp_path / "p")
    first_master(spec, tmp_path / "p" / "exchange.safetensors", tmp_path / "p" / "base.safetensors", tmp_path / "m")
    paths = []
    for i, delta in enumerate(deltas(spec, 3)):
        paths.append((tmp_path / f"u{i}", (0.2, 0.3, 0.5)[i]))
        write_exchange(paths[-1][0], spec, lambda n, d=delta: d[n])
    same = {merge(spec, before(tmp_path), paths, tmp_path / "n", tmp_path / "w") for _ in range(3)}
    assert len(same) == 1
    for order in itertools.permutations(paths):  # differs at most by the last bit of float64, so almost never
        made = merge(spec, before(tmp_path), order, tmp_path / "n2", tmp_path / "w2")
        with Master(tmp_path / "n2", tmp_path / "w2") as a, Master(tmp_path / "n", tmp_path / "w") as b:
            np.testing.assert_allclose(a.tensor("head.weight"), b.tensor("head.weight"), rtol=1e-6, atol=1e-7)
        assert made.size == next(iter(same)).size
