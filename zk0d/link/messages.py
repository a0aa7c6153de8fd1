"""What may be said over the link: a closed set of message types, strict to parse, stricter to send.

One message is one msgpack map `{v, t, id, re?, body?}`, and for two types one more frame of raw bytes. No I/O here.
docs/protocol.md is the specification; a test holds the two against each other.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard, runtime_checkable

import msgpack  # type: ignore[import-untyped]

from zk0d.errors import ProtocolError

VERSION = 2
MAX_ENVELOPE = 256 * 1024
"""Bytes of one msgpack envelope."""
MAX_BULK = (4 << 20) + 1024
"""Bytes of one raw frame: the largest chunk, or the leaves of the largest manifest (4 MiB)."""
MAX_DEPTH = 8
MAX_STR = 64 * 1024
MAX_ITEMS = 4096
"""Of one list or map."""
MAX_VALUES = 16384
"""Of one envelope, whatever they lie in: a quarter of a million empty lists is work for the one who reads them."""

Body = dict[str, Any]


@runtime_checkable
class Lent(Protocol):
    """Bytes of a blob that are read only when they go: a chunk on its way out costs no memory."""

    def __len__(self) -> int: ...

    def read_into(self, at: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `at` on; OSError when they are no longer there."""


Frame = bytes | Lent
"""One frame of a message that is sent; only the raw one may be lent."""


@dataclass(frozen=True)
class Field:
    """One field of a body: the types it may have (None in `types` means nil is allowed), and what is inside."""

    types: tuple[type, ...]
    optional: bool = False
    inside: Mapping[str, Field] | None = field(default=None, repr=False)
    """For a map, or for each map in a list: its fields. None: not looked into."""
    each: Mapping[str, Field] | None = field(default=None, repr=False)
    """For a map from names to maps: the fields of each of these."""


TEXT, INT, BYTES, LIST, MAP = Field((str,)), Field((int,)), Field((bytes,)), Field((list,)), Field((dict,))
NUMBER = Field((int, float))

REQUESTS: dict[str, dict[str, Field]] = {
    "hello": {"software": TEXT, "federations": LIST},
    "federation.join": {
        "federation": TEXT,
        "stats": Field((dict,), each=dict.fromkeys(("mean", "std", "min", "max", "count"), LIST)),
        "datasets": Field((list,), inside={"uuid": TEXT, "episodes": INT, "frames": INT}),
    },
    "federation.leave": {"federation": TEXT},
    "task.request": {"federation": TEXT},
    "update.offer": {"statement": BYTES, "signature": BYTES, "size": INT},
    "receipt.get": {"update": TEXT},
    "log.head": {"size": INT},
    "log.proof": {"update": TEXT, "size": INT},
    "version.latest": {"federation": TEXT},
    "certificate.renew": {"csr": BYTES},
}
"""Federation layer, node to hub; each is answered by `reply` or `error`."""

PUSHES: dict[str, dict[str, Field]] = {
    "version.new": {"federation": TEXT, "number": INT, "digest": TEXT},
    "receipt": {"receipt": BYTES, "signature": BYTES},
    "refusal": {"refusal": BYTES, "signature": BYTES},
}
"""Federation layer, hub to node, unanswered. A push may carry further fields."""

LINK: dict[str, dict[str, Field]] = {
    "ping": {},
    "pong": {},
    "reply": {},
    "error": {
        "code": TEXT,
        "message": TEXT,
        "hint": Field((str,), optional=True),
        "refusal": Field((bytes,), optional=True),
        "refusal_signature": Field((bytes,), optional=True),
    },
    "manifest.get": {"digest": TEXT, "tensors": Field((int,), optional=True)},
    "manifest": {"digest": TEXT, "size": INT, "chunk_size": INT, "tensors": Field((bytes,), optional=True)},
    "chunk.get": {"digest": TEXT, "index": INT, "chunk_size": INT},
    "chunk": {"digest": TEXT, "index": INT},
}
"""Link layer, both ways."""

TYPES: dict[str, dict[str, Field]] = {**LINK, **REQUESTS, **PUSHES}
WITH_BULK = frozenset({"manifest", "chunk"})
ANSWERS = frozenset({"pong", "reply", "error", "manifest"})
"""Types that must say what they answer (`re`)."""

ERROR_CODES: dict[str, str] = {
    "malformed": "the message could not be parsed or lacks a field",
    "unknown_type": "the type is not in this protocol version; the message names it",
    "unsupported_version": "the envelope's `v` is not one this end speaks",
    "busy": "too many requests or chunks of this peer are waiting; ask again later",
    "not_found": "the blob is not here, or not for you (the two are not told apart)",
    "refused": "the application refused; `message` says why",
    "internal": "this end failed while answering; its log says more",
}


@dataclass(frozen=True)
class Message:
    """One parsed message. `bulk` is set exactly for the types in WITH_BULK."""

    type: str
    id: int
    body: Body
    re: int | None = None
    bulk: memoryview | bytes | None = field(default=None, repr=False)


class MessageError(ProtocolError):
    """A message that cannot be accepted; carries the wire code and, when it could be read, the id to answer."""

    def __init__(self, code: str, message: str, re: int | None = None) -> None:
        super().__init__(message)
        self.wire_code = code
        self.re = re


def new_id() -> int:
    """Where an end starts counting its message ids: random, so that a restarted end never reuses one."""
    return secrets.randbits(62)


def encode(message: Message, lent: Lent | None = None) -> list[Frame]:
    """The frames of a message, with `lent` in the place of its bulk; ProtocolError if it would say anything that is not
    in the tables above.

    This is a wall, not a convenience: a field that is not declared does not leave this machine.
    """
    if message.type not in TYPES:
        raise ProtocolError(f"{message.type!r} is not a message type", "see zk0d/link/messages.py")
    problem = _check(
        TYPES[message.type],
        message.body,
        strict=message.type in REQUESTS or (message.type in LINK and message.type != "reply"),
    )
    if problem:
        raise ProtocolError(f"a {message.type} message {problem}", "see zk0d/link/messages.py and docs/protocol.md")
    bulk = lent if message.bulk is None else bytes(message.bulk)
    if (bulk is not None) != (message.type in WITH_BULK):
        raise ProtocolError(f"a {message.type} message {'needs' if bulk is None else 'has no'} raw bytes")
    envelope: Body = {"v": VERSION, "t": message.type, "id": message.id}
    if message.re is not None:
        envelope["re"] = message.re
    if message.body:
        envelope["body"] = message.body
    packed: bytes = msgpack.packb(envelope, use_bin_type=True)
    if len(packed) > MAX_ENVELOPE:
        raise ProtocolError(f"a {message.type} message of {len(packed)} bytes", f"at most {MAX_ENVELOPE}")
    return [packed] if bulk is None else [packed, bulk]


def decode(frames: list[Any]) -> Message:
    """Parse the frames of one message (bytes or memoryviews); MessageError says what is wrong and whom to answer.

    Undeclared fields are dropped (a newer peer may send them); declared ones must be there and have their type.
    """
    if not 1 <= len(frames) <= 2:
        raise MessageError("malformed", f"{len(frames)} frames, a message has one or two")
    if len(frames[0]) > MAX_ENVELOPE:
        raise MessageError("malformed", f"an envelope of {len(frames[0])} bytes, at most {MAX_ENVELOPE}")
    envelope = unpack(frames[0])
    ident, kind, re = envelope.get("id"), envelope.get("t"), envelope.get("re")
    if not _is_id(ident) or not isinstance(kind, str) or not (re is None or _is_id(re)):
        raise MessageError("malformed", "an envelope needs `t` (str) and `id` (integer 0…2^63-1), `re` is as `id`")
    if envelope.get("v") != VERSION:
        raise MessageError(
            "unsupported_version", f"protocol version {str(envelope.get('v'))[:20]}, this end speaks {VERSION}", ident
        )
    if kind not in TYPES:
        raise MessageError("unknown_type", f"unknown message type {kind[:64]!r}", ident)
    body = envelope.get("body", {})
    if not isinstance(body, dict) or not all(isinstance(k, str) for k in body):
        raise MessageError("malformed", f"the body of {kind} is not a map with text keys", ident)
    if problem := _check(TYPES[kind], body, strict=False):
        raise MessageError("malformed", f"a {kind} message {problem}", ident)
    if kind in ANSWERS and re is None and kind != "error":
        raise MessageError("malformed", f"a {kind} message without `re`", ident)
    bulk = frames[1] if len(frames) == 2 else None
    if (bulk is not None) != (kind in WITH_BULK):
        raise MessageError("malformed", f"a {kind} message {'lacks its' if bulk is None else 'has a'} raw frame", ident)
    if bulk is not None and len(bulk) > MAX_BULK:
        raise MessageError("malformed", f"a raw frame of {len(bulk)} bytes, at most {MAX_BULK}", ident)
    if (kind in LINK and kind != "reply") or kind in REQUESTS:
        body = {k: v for k, v in body.items() if k in TYPES[kind]}
    return Message(kind, ident, body, re, bulk)


def unpack(data: bytes | memoryview) -> Body:
    """One msgpack map within the limits on depth, length and item count; MessageError otherwise."""
    try:
        value = msgpack.unpackb(
            data, raw=False, strict_map_key=False, max_str_len=MAX_STR, max_bin_len=MAX_ENVELOPE,
            max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS, max_ext_len=0,
        )  # fmt: skip
        if not isinstance(value, dict):
            raise MessageError("malformed", f"an envelope is a map, not {type(value).__name__}")
        _walk(value, MAX_DEPTH)
    except MessageError:
        raise
    except Exception as error:  # msgpack raises many kinds; every one of them means the same here
        raise MessageError("malformed", f"not a msgpack map within the limits: {str(error)[:100]}") from None
    return value


def _walk(value: Any, left: int, values: int = 0) -> int:
    """How many values there are, `values` with them; MessageError where they are too many or lie too deep."""
    if isinstance(value, dict):
        children: Any = value.values()
    elif isinstance(value, list):
        children = value
    else:
        return values
    if left == 0:
        raise MessageError("malformed", f"nested deeper than {MAX_DEPTH}")
    values += len(value)
    if values > MAX_VALUES:
        raise MessageError("malformed", f"more than {MAX_VALUES} values")
    for child in children:
        values = _walk(child, left - 1, values)
    return values


def _is_id(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _check(fields: Mapping[str, Field], body: Mapping[str, Any], *, strict: bool) -> str:
    """What is wrong with `body`, in words that follow "a … message"; "" if nothing."""
    for name, wanted in fields.items():
        if name not in body:
            if wanted.optional:
                continue
            return f"lacks the field `{name}`"
        value = body[name]
        if not isinstance(value, wanted.types) or isinstance(value, bool):
            return f"has {type(value).__name__} as `{name}`, not {' or '.join(t.__name__ for t in wanted.types)}"
        inside = wanted.inside or wanted.each
        if inside is not None:
            items: list[Any] = [value]
            if isinstance(value, list):
                items = value
            elif isinstance(value, dict) and wanted.each is not None:
                items = list(value.values())
            for item in items:
                if not isinstance(item, dict):
                    return f"has a {type(item).__name__} in `{name}`, not a map"
                if problem := _check(inside, item, strict=strict):
                    return f"({name}) {problem}"
    if strict and (extra := [k for k in body if k not in fields]):
        return f"has undeclared fields: {', '.join(map(str, extra))}"
    return ""
