"""Messages: a closed set, strict on the way out, unbreakable on the way in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0d.errors import ProtocolError
from zk0d.link import messages
from zk0d.link.messages import VERSION, Message, MessageError, decode, encode

DOCUMENT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()

VALUES: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.binary(max_size=300), st.one_of(st.none(), st.binary(max_size=50)))
def test_no_bytes_break_the_parser(envelope: bytes, bulk: bytes | None) -> None:
    try:
        decode([envelope] if bulk is None else [envelope, bulk])
    except MessageError as error:
        assert error.wire_code in messages.ERROR_CODES


@given(
    st.dictionaries(st.sampled_from(["v", "t", "id", "re", "body", "x"]), VALUES),
    st.sampled_from(sorted(messages.TYPES)),
)
def test_no_map_breaks_the_parser(envelope: dict[str, Any], kind: str) -> None:
    for more in ({}, {"v": VERSION, "t": kind, "id": 7}):
        try:
            message = decode([msgpack.packb({**envelope, **more})])
        except MessageError as error:
            assert error.wire_code in messages.ERROR_CODES
        else:
            assert message.type in messages.TYPES


@given(st.integers(0, 2**63 - 1), st.text(max_size=20), st.integers(0, 2**40))
def test_round_trip(ident: int, text: str, number: int) -> None:
    for message in (
        Message("task.request", ident, {"federation": text}),
        Message("error", ident, {"code": "busy", "message": text, "hint": ""}, 5),
        Message("chunk", ident, {"digest": text, "index": number}, 6, b"bulk"),
        Message("reply", ident, {"task": None, "reason": text, "n": [1, {"a": b"b"}]}, 7),
    ):
        assert decode(list(encode(message))) == message


def test_nothing_undeclared_is_said() -> None:
    good = {"federation": "f", "stats": {}, "datasets": [{"uuid": "u", "episodes": 1, "frames": 2}]}
    encode(Message("federation.join", 1, good))
    for body in (
        {**good, "hostname": "den"},
        {**good, "datasets": [{"uuid": "u", "episodes": 1, "frames": 2, "path": "/home/me"}]},
        {**good, "stats": {"action": {"mean": [], "std": [], "min": [], "max": [], "count": [], "raw": []}}},
        {**good, "datasets": ["name"]},
        {**good, "federation": True},
        {"federation": "f"},
    ):
        with pytest.raises(ProtocolError):
            encode(Message("federation.join", 1, body))
    for bad in (
        Message("gossip", 1, {}),
        Message("ping", 1, {"x": 1}),
        Message("chunk", 1, {"digest": "d", "index": 1}, 2),
        Message("task.request", 1, {"federation": "f"}, None, b"bulk"),
        Message("task.request", 1, {"federation": "f" * messages.MAX_ENVELOPE}),
    ):
        with pytest.raises(ProtocolError):
            encode(bad)


def pack(**fields: Any) -> bytes:
    return bytes(msgpack.packb({"v": VERSION, "t": "ping", "id": 7, **fields}))


@pytest.mark.parametrize(
    ("frames", "code", "re"),
    [
        ([pack(t="gossip")], "unknown_type", 7),
        ([pack(v=VERSION + 1)], "unsupported_version", 7),
        ([pack(t="task.request", body={})], "malformed", 7),
        ([pack(t="task.request", body={"federation": 5})], "malformed", 7),
        ([pack(t="pong")], "malformed", 7),
        ([pack(), b"bulk"], "malformed", 7),
        ([pack(t="chunk", body={"digest": "d", "index": 0})], "malformed", 7),
        ([pack(t="chunk", body={"digest": "d", "index": 0}), bytes(messages.MAX_BULK + 1)], "malformed", 7),
        ([pack(id=-1)], "malformed", None),
        ([pack(id=True)], "malformed", None),
        ([pack(body={1: 2})], "malformed", 7),
        ([pack(), b"", b""], "malformed", None),
        ([], "malformed", None),
        ([b"\x81" * 64], "malformed", None),
        ([msgpack.packb([1])], "malformed", None),
        ([pack(body={"a": [[[[[[[[[1]]]]]]]]]})], "malformed", None),
        ([pack() + b"trailing"], "malformed", None),
        ([b"\xdf\xff\xff\xff\xff"], "malformed", None),
        ([pack(body={"e": msgpack.ExtType(5, b"abc")})], "malformed", None),
        ([bytes(messages.MAX_ENVELOPE + 1)], "malformed", None),
    ],
)
def test_what_is_wrong_is_said(frames: list[bytes], code: str, re: int | None) -> None:
    with pytest.raises(MessageError) as refused:
        decode(frames)
    assert (refused.value.wire_code, refused.value.re) == (code, re)


def test_an_envelope_has_so_many_values_and_no_more() -> None:
    def said(lists: int) -> list[bytes]:
        body = {"x": [[[]] * (messages.MAX_ITEMS - 1)] * lists}
        return [msgpack.packb({"v": VERSION, "t": "reply", "id": 1, "re": 2, "body": body})]

    assert len(decode(said(3)).body["x"]) == 3
    with pytest.raises(MessageError, match=f"more than {messages.MAX_VALUES} values"):
        decode(said(5))


def test_an_unknown_field_is_dropped() -> None:
    assert decode([pack(x=1, body={"y": 2})]) == Message("ping", 7, {})


@pytest.mark.parametrize("name", sorted(messages.TYPES))
def test_the_specification_has_every_type_and_field(name: str) -> None:
    rows = [line for line in DOCUMENT.splitlines() if line.startswith(f"| `{name}` |")]
    assert len(rows) == 1
    for field, wanted in messages.TYPES[name].items():
        assert f"`{field}`" in rows[0], field
        for inner in wanted.inside or wanted.each or {}:
            assert f"`{inner}`" in rows[0], inner


def test_the_specification_has_every_error_code() -> None:
    for code in messages.ERROR_CODES:
        assert f"| `{code}` |" in DOCUMENT
