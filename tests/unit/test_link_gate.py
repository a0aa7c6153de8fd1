"""The gate: what passes, what is held, what is refused, however the bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0d.link.gate import GREETING, Gate, GateError, RefusalScanner, ReverseHold, ready_properties, refusal_record
from zk0d.link.messages import MAX_BULK

SIGNATURE = b"\xff" + bytes(7) + b"\x01\x7f"


def greeting(major: int = 3, mechanism: bytes = b"NULL", server: int = 0) -> bytes:
    return SIGNATURE + bytes([major, 1]) + mechanism.ljust(20, b"\0") + bytes([server]) + bytes(31)


def properties(*pairs: tuple[bytes, bytes]) -> bytes:
    return b"".join(bytes([len(n)]) + n + len(v).to_bytes(4, "big") + v for n, v in pairs)


def ready(*pairs: tuple[bytes, bytes], long: bool = False, name: bytes = b"READY") -> bytes:
    body = bytes([len(name)]) + name + properties(*pairs)
    return b"\x06" + len(body).to_bytes(8, "big") + body if long else b"\x04" + bytes([len(body)]) + body


GOOD = (b"Socket-Type", b"DEALER"), (b"Identity", b"alice")


def feed(gate: Gate, data: bytes, cuts: list[int]) -> bytes:
    at, out = 0, b""
    for cut in sorted({c % (len(data) + 1) for c in cuts} | {len(data)}):
        out += bytes(gate.feed(data[at:cut]))
        at = cut
    return out


def frame(body: bytes, flags: int = 0) -> bytes:
    if len(body) > 255 or flags & 2:
        return bytes([flags | 2]) + len(body).to_bytes(8, "big") + body
    return bytes([flags, len(body)]) + body


MESSAGES = st.lists(
    st.one_of(
        st.binary(max_size=300).map(frame),
        st.tuples(st.binary(max_size=20), st.binary(max_size=600)).map(lambda m: frame(m[0], 1) + frame(m[1], 2)),
        st.just(frame(b"\x04PING\0\0", 4)),
    ),
    max_size=8,
).map(b"".join)


@pytest.mark.parametrize(
    "tail",
    [
        frame(b"a", 1) + frame(b"b", 1) + frame(b"c"),
        frame(b"", 1) * 3,
        b"\x03" + (1 << 40).to_bytes(8, "big"),
        b"\x02" + (MAX_BULK + 1).to_bytes(8, "big"),
        frame(bytes(2000), 4),
        b"\x10\x00",
    ],
)
@pytest.mark.parametrize("cut", range(1, 8))
def test_no_message_grows_without_end(tail: bytes, cut: int) -> None:
    """Else libzmq would gather its frames in the hub's memory."""
    gate = Gate("alice")
    assert feed(gate, greeting() + ready(*GOOD) + frame(b"x", 1) + frame(b"y"), [])
    with pytest.raises(GateError):
        feed(gate, tail, list(range(0, len(tail), cut)))


@given(st.lists(st.integers(0, 500), max_size=12), st.booleans(), MESSAGES)
def test_a_good_link_passes_unchanged(cuts: list[int], long: bool, rest: bytes) -> None:
    gate = Gate("alice")
    stream = greeting() + ready(*GOOD, long=long) + rest
    assert feed(gate, stream, cuts) == stream
    assert gate.open


def test_nothing_after_the_greeting_passes_before_ready_is_whole() -> None:
    gate = Gate("alice")
    assert bytes(gate.feed(SIGNATURE[:9])) == b""
    assert bytes(gate.feed(SIGNATURE[9:])) == SIGNATURE
    whole = ready(*GOOD)
    assert bytes(gate.feed(greeting()[10:] + whole[:-1])) == greeting()[10:]
    assert not gate.open
    assert bytes(gate.feed(whole[-1:] + frame(b"more"))) == whole + frame(b"more")


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", "bad_zmtp"),
        (greeting(major=2), "bad_zmtp"),
        (greeting(mechanism=b"CURVE"), "bad_zmtp"),
        (greeting(server=1), "bad_zmtp"),
        (greeting() + b"\x00\x05hello", "bad_zmtp"),
        (greeting() + ready(*GOOD, name=b"ERROR"), "bad_zmtp"),
        (greeting() + b"\x06" + (1 << 40).to_bytes(8, "big"), "bad_zmtp"),
        (greeting() + ready((b"Socket-Type", b"ROUTER"), GOOD[1]), "bad_zmtp"),
        (greeting() + ready(GOOD[0]), "identity_missing"),
        (greeting() + ready(GOOD[0], (b"Identity", b"")), "identity_missing"),
        (greeting() + ready(GOOD[0], (b"Identity", b"bob")), "identity_mismatch"),
        (greeting() + ready(GOOD[0], (b"Identity", b"alice\0")), "identity_mismatch"),
        (greeting() + ready(*GOOD, (b"Identity", b"bob")), "bad_zmtp"),
        (greeting() + ready(*GOOD, (b"identity", b"bob")), "bad_zmtp"),
        (greeting() + ready(GOOD[0], (b"IDENTITY", b"alice")), "bad_zmtp"),
        (greeting() + ready(*GOOD)[:-3] + b"", None),
    ],
)
def test_what_is_refused(stream: bytes, reason: str | None) -> None:
    gate = Gate("alice")
    if reason is None:
        gate.feed(stream)
        assert not gate.open
        return
    with pytest.raises(GateError) as refused:
        gate.feed(stream)
    assert refused.value.reason == reason


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=6))
def test_no_garbage_opens_the_gate_or_breaks_it(data: bytes, cuts: list[int]) -> None:
    for prefix in (b"", greeting()):
        gate = Gate("alice")
        try:
            feed(gate, prefix + data, cuts)
        except GateError:
            continue
        assert not gate.open


@given(st.binary(max_size=120))
def test_properties_parse_or_are_refused(data: bytes) -> None:
    try:
        found = ready_properties(data)
    except GateError:
        return
    assert properties(*found.items()) == data


@given(st.sampled_from([0, 10, 11, 64]), st.lists(st.integers(0, 300), max_size=8))
def test_a_refusal_is_found_where_the_hub_may_say_it(at: int, cuts: list[int]) -> None:
    scanner, hold = RefusalScanner(), ReverseHold()
    passed = bytes(hold.feed(greeting()[:at] + (ready(*GOOD) if at == GREETING else b"")))
    assert passed == greeting()[:at] and hold.can_refuse
    stream = passed + refusal_record("not_allowed", "grüße: no")
    out, position = b"", 0
    for cut in sorted({c % (len(stream) + 1) for c in cuts} | {len(stream)}):
        out += bytes(scanner.feed(stream[position:cut]))
        position = cut
    assert out == passed
    assert scanner.refusal == ("not_allowed", "grüße: no")


@given(st.binary(max_size=300), st.lists(st.integers(0, 400), max_size=8))
def test_a_link_that_is_not_refused_passes_the_scanner(rest: bytes, cuts: list[int]) -> None:
    scanner, hold = RefusalScanner(), ReverseHold()
    stream = greeting() + ready(*GOOD) + rest
    held = bytes(hold.feed(stream))
    assert held == greeting()
    held += hold.release()
    out, position = b"", 0
    for cut in sorted({c % (len(held) + 1) for c in cuts} | {len(held)}):
        out += bytes(scanner.feed(held[position:cut]))
        position = cut
    assert out == stream and scanner.refusal is None
