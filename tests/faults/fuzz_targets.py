"""What is fuzzed: each target makes one bad case, gives it to the real code, and judges what was accepted by rules of its own.

A target returns True (accepted, and an own look says rightly so) or False (refused the declared way); anything else raises.
Not a test itself: fuzz.py drives, test_fuzz.py is in the suite.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import tempfile
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import msgpack
from fuzz_mutate import NUMBERS, mutate_bytes, mutate_json, mutate_tree

from zk0d.errors import PayloadError, ProtocolError
from zk0d.hub.receipts import UPDATE_PREFIX, read_statement
from zk0d.link.answers import MAX_REMEMBERED
from zk0d.link.buffers import Buffers
from zk0d.link.enroll import serve_enroll
from zk0d.link.gate import GREETING, Gate, GateError, RefusalScanner
from zk0d.link.identity import verify
from zk0d.link.lane import Splitter
from zk0d.link.messages import MAX_BULK, MAX_ENVELOPE, TYPES, MessageError, decode, unpack
from zk0d.link.peer import MAX_CONTROL, Peer
from zk0d.link.serving import MAX_CHUNKS_WAITING
from zk0d.link.state import LinkLimits
from zk0d.link.transfer import Bucket
from zk0d.model.blobs import LEAF, BlobStore, Manifest, name_of
from zk0d.model.leaves import leaves_of, name_of_leaves
from zk0d.model.payload import DTYPES, parse_header

VECTORS = Path(__file__).parents[1] / "vectors"
Target = Callable[[random.Random], bool]


def _load(name: str) -> dict[str, Any]:
    return dict(json.loads((VECTORS / name).read_text()))


_ZMTP = [bytes.fromhex(r["hex"]) for k in ("accepted", "refused") for r in _load("zmtp.json")[k]]
_RECORDS = [bytes.fromhex(r["hex"]) for r in _load("zmtp.json")["refusal_records"]]
_MESSAGES = [[bytes.fromhex(f) for f in r["frames"]] for r in _load("messages.json")["accepted"]]
_MAPS: list[dict[str, Any]] = [msgpack.unpackb(m[0]) for m in _MESSAGES]
_ENROL = [
    bytes.fromhex(r["hex"])[4:]
    for r in [_load("enrolment.json")["request"], *_load("enrolment.json")["refused_requests"]]
]
_MANIFESTS = [r for k in ("accepted", "refused") for r in _load("manifests.json")[k]]
_HEADERS = [
    (r["header"], r["data_bytes"])
    for k in ("accepted", "refused")
    for r in _load("safetensors.json")[k]
    if len(r["header"]) < 5000
]
_SIGNED = _load("signatures.json")
_STATEMENTS = [bytes.fromhex(r["hex"]) for r in [_SIGNED["statement"], *_SIGNED["refused_statements"]]]


def _pieces(rng: random.Random, data: bytes) -> list[bytes]:
    """`data` as a network might deliver it."""
    if rng.randrange(3) == 0 or len(data) < 2:
        return [data]
    if rng.randrange(8) == 0:
        return [data[i : i + 1] for i in range(len(data))]
    cuts = sorted(rng.randrange(len(data)) for _ in range(rng.randrange(1, 5)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def gate(rng: random.Random) -> bool:
    """Bytes that a node with a good certificate sends instead of its greeting and READY."""
    data = mutate_bytes(rng, rng.choice(_ZMTP), rng.choice(_ZMTP))
    it, out = Gate("kitchen"), bytearray()
    try:
        for piece in _pieces(rng, data):
            out += it.feed(piece)
    except GateError:
        assert len(out) <= GREETING or _announces(bytes(out)), "READY went through before the gate refused"
        return False
    assert data.startswith(out), "the gate changed bytes"
    if not it.open:
        assert len(out) <= GREETING, "more than the greeting went through a closed gate"
        return False
    assert _announces(data), "the gate opened for another name"
    return True


def _announces(data: bytes) -> bool:
    """A second reader's view: the greeting's fields, then READY with this node's name as its only Identity."""
    head = data[GREETING : GREETING + 9]
    size, start = (head[1], GREETING + 2) if head[0] == 4 else (int.from_bytes(head[1:9], "big"), GREETING + 9)
    body = data[start : start + size]
    names = body.lower().count(b"\x08identity")
    return (
        data[0] == 255 and data[10] == 3 and data[12:32] == b"NULL".ljust(20, b"\0") and body[:6] == b"\x05READY"
        and b"\x08Identity\0\0\0\x07kitchen" in body and names >= 1 and b"\x0bSocket-Type\0\0\0\x06DEALER" in body
    )  # fmt: skip


def _frame(rng: random.Random) -> bytes:
    flags = rng.choice((0, 1, 0, 1, 4, rng.randrange(256)))
    body = rng.choice((b"", b"x" * rng.randrange(300), rng.choice(_MESSAGES)[0], rng.choice(_ZMTP)[GREETING:]))
    long = len(body) > 255 or rng.randrange(6) == 0
    size = rng.choice(NUMBERS) if rng.randrange(12) == 0 else len(body)
    if not 0 <= size < 1 << 64:
        size = len(body)
    head = bytes([flags | 2]) + size.to_bytes(8, "big") if long else bytes([flags & ~2, min(size, 255)])
    return head + body


def frames(rng: random.Random) -> bool:
    """What a node sends once the gate is open: walked and gathered by what production walks it with."""
    data = b"".join(_frame(rng) for _ in range(rng.randrange(1, 7)))
    if rng.randrange(2):
        data = mutate_bytes(rng, data, rng.choice(_ZMTP))

    def walked(pieces: list[bytes]) -> tuple[list[list[bytes]], bytes, str]:
        gathered: list[list[bytes]] = []
        split = Splitter(lambda message: gathered.append([bytes(f) for f in message]), Buffers())
        out = bytearray()
        try:
            for piece in pieces:
                out += split.feed(piece)
        except GateError as error:
            return gathered, b"", error.reason
        return gathered, bytes(out), ""

    whole = walked([data])
    assert walked(_pieces(rng, data)) == whole, "it depends on how the network cuts it"
    for message in whole[0]:
        assert 1 <= len(message) <= 2 and len(message[0]) <= MAX_ENVELOPE and len(message[-1]) <= MAX_BULK
        assert all(f in data for f in message), "it was not sent"
    return not whole[2]


def refusal(rng: random.Random) -> bool:
    """What a false hub says to a node in place of its greeting."""
    prefix = rng.choice((b"", bytes(10), bytes(11), bytes(64), bytes(12)))
    data = prefix + mutate_bytes(rng, rng.choice(_RECORDS), rng.choice(_ZMTP))
    scanner, out = RefusalScanner(), b""
    try:
        for piece in _pieces(rng, data):
            out += bytes(scanner.feed(piece))
    except GateError:
        return False
    if scanner.refusal is None:
        return False
    assert len(scanner.refusal[0]) <= 64 and len(scanner.refusal[1]) <= 512 and len(out) in (0, 10, 11, 64)
    return True


def message(rng: random.Random) -> bool:
    """Every message type, wounded in its bytes or in its map."""
    which = rng.randrange(len(_MESSAGES))
    frames: list[Any] = list(_MESSAGES[which])
    if rng.randrange(2):
        try:
            frames[0] = msgpack.packb(mutate_tree(rng, _MAPS[which]))
        except (ValueError, OverflowError):  # a number that msgpack has no form for
            return False
    else:
        frames[0] = mutate_bytes(rng, frames[0], rng.choice(_MESSAGES)[0])
    if rng.randrange(10) == 0:
        frames = rng.choice((frames[:1], [*frames, b"x"], frames[::-1], frames * 2))
    try:
        got = decode([memoryview(f) for f in frames])
    except MessageError as error:
        assert error.wire_code in ("malformed", "unknown_type", "unsupported_version") and len(error.message) < 400
        return False
    assert len(frames[0]) <= MAX_ENVELOPE and (got.bulk is None or len(got.bulk) <= MAX_BULK)
    assert 0 <= got.id < 1 << 63 and type(got.id) is int
    for name, field in TYPES[got.type].items():
        assert field.optional or name in got.body, "a field is missing"
        assert name not in got.body or type(got.body[name]) in field.types, "a field has another type"
    return True


def enrolment(rng: random.Random) -> bool:
    """What a stranger sends on the enrolment port."""
    seen: list[dict[str, Any]] = []

    async def answer(request: dict[str, Any]) -> dict[str, Any]:
        seen.append(request)
        return {"state": "pending", "phrase": "a b c"}

    raw = mutate_bytes(rng, rng.choice(_ENROL), rng.choice(_ENROL))
    coroutine = serve_enroll(raw, "203.0.113.7:4", answer)
    try:
        coroutine.send(None)
    except StopIteration as end:
        reply = unpack(end.value)
    if not seen:
        assert reply["state"] == "refused"
        return False
    (request,) = seen
    assert request.keys() <= {"csr", "secret", "label", "address"} and request["address"] == "203.0.113.7:4"
    assert type(request["csr"]) is bytes and len(request["csr"]) <= 4096
    assert all(type(request.get(k, "")) is str and len(request.get(k, "")) <= 256 for k in ("secret", "label"))
    return True


def manifest(rng: random.Random) -> bool:
    """Declared sizes that do not fit together, or are none; leaves that are not those of the name; names that are none.
    Half of the lies bring the name that would make them true: what is left then is what does not fit."""
    row = rng.choice(_MANIFESTS)
    size, chunk_size, digest = row["size"], row["chunk_size"], row["digest"]
    raw = bytes.fromhex("".join(row["leaves"]))
    kind = rng.randrange(6)
    if kind == 0:
        size = rng.choice((rng.choice(NUMBERS), size + rng.randrange(-2000, 2000)))
    elif kind == 1:
        chunk_size = rng.choice(
            (rng.choice(NUMBERS), chunk_size + rng.randrange(-2000, 2000), LEAF * rng.randrange(20))
        )
    elif kind == 2:
        raw = raw[: rng.randrange(len(raw) + 1)] + bytes(rng.randrange(65))
    elif kind == 3:
        raw *= rng.choice((0, 2, 100))
    elif kind == 4:
        raw = mutate_bytes(rng, raw, raw)
    else:
        digest = mutate_bytes(rng, digest.encode(), b"../../blob:").decode(errors="replace")
    if kind < 5 and rng.randrange(2) and type(size) is int and 0 <= size < 1 << 64:
        digest = name_of_leaves(size, raw)
    try:
        made = Manifest(digest, size, chunk_size, raw)
    except PayloadError:
        return False
    assert sum(made.length(i) for i in range(made.count)) == size >= 0
    assert LEAF <= chunk_size <= 4 << 20 and chunk_size % LEAF == 0
    assert len(digest) == 69 and "/" not in digest
    root = b"zk0 blob v1\0" + size.to_bytes(8, "big") + raw
    assert digest == "blob:" + hashlib.sha256(root).hexdigest() and len(raw) == -(-size // LEAF) * 32
    return True


def safetensors(rng: random.Random) -> bool:
    """The header of a payload whose digest and signature were right."""
    header, size = rng.choice(_HEADERS)
    text = mutate_json(rng, header).encode(errors="surrogateescape")
    if rng.randrange(4) == 0:
        size = max(0, rng.choice((rng.choice(NUMBERS), size + rng.randrange(-4, 5))))
    try:
        entries, metadata = parse_header(text, size)
    except PayloadError as error:
        assert len(error.message) < 400
        return False
    at = 0
    for entry in entries.values():
        count = DTYPES[entry.dtype].itemsize
        for side in entry.shape:
            assert type(side) is int and side >= 0
            count *= side
        assert (entry.start, entry.end) == (at, at + count), "a tensor that overlaps, leaves a gap or is not filled"
        at = entry.end
    assert at == size and all(type(v) is str for v in metadata.values())
    return True


def statement(rng: random.Random) -> bool:
    """An update statement that is not the signed one; nothing may pass both checks."""
    good = _STATEMENTS[0]
    raw = mutate_bytes(rng, rng.choice(_STATEMENTS[:1] * 9 + _STATEMENTS), rng.choice(_STATEMENTS))
    signature = bytes.fromhex(_SIGNED["statement"]["signature"])
    if rng.randrange(4) == 0:
        signature = mutate_bytes(rng, signature, signature)
    try:
        read = read_statement(raw, signature)
        assert json.dumps(json.loads(raw), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() == raw
        verify(_SIGNED["node_key"]["public_pem"].encode(), UPDATE_PREFIX + raw, signature)
    except ProtocolError:
        return False
    assert raw == good and read.node == "kitchen", "a statement passed that was never signed"
    return True


class _Here(Executor):
    """Runs what it is given at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class PeerTarget:
    """The hub's conversation with one node that says anything: wounded, replayed, reordered, answers to nothing asked."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.sent = 0
        self._queue: list[list[bytes]] = []
        self._heard = 0
        self.loop.run_until_complete(self._make())

    async def _make(self) -> None:
        blobs = BlobStore(Path(self._folder.name), reserve=0)
        self.blob = blobs.add_bytes(bytes(5000))

        async def transmit(frames: list[bytes]) -> None:
            self.sent += 1

        async def request(kind: str, body: dict[str, Any]) -> dict[str, Any]:
            return {"kind": kind}

        self.peer = Peer(
            "fuzz", transmit=transmit, blobs=blobs, pool=_Here(), may_take=lambda d: d == self.blob, limits=LinkLimits(),
            upload=Bucket(None), download=Bucket(None), on_request=request,
        )  # fmt: skip
        self.peer.up()

    def __call__(self, rng: random.Random) -> bool:
        which = rng.randrange(len(_MAPS))
        envelope = dict(_MAPS[which])
        envelope["id"] = rng.randrange(2000)
        if "digest" in envelope.get("body", {}) and rng.randrange(2):
            envelope["body"] = {
                **envelope["body"],
                "digest": self.blob,
                **({"index": rng.choice((0, 1, 4, 5, *NUMBERS))} if "index" in envelope["body"] else {}),
            }
        try:
            first = msgpack.packb(mutate_tree(rng, envelope) if rng.randrange(3) == 0 else envelope)
        except (ValueError, OverflowError):
            return False
        frames = [first, *_MESSAGES[which][1:]]
        if rng.randrange(8) == 0:
            frames[0] = mutate_bytes(rng, frames[0], _MESSAGES[0][0])
        self._queue.append(frames)
        if len(self._queue) > 64:  # replay and reorder: anything of the last 64 may come (again) now
            self._queue.pop(0)
        got = self.loop.run_until_complete(self._hear(list(rng.choice(self._queue))))
        self._heard += 1
        if self._heard % 4096 == 0:
            self.peer.down()
            self.peer.up()
        peer = self.peer
        assert len(peer._control) <= MAX_CONTROL and peer._serving.waiting <= MAX_CHUNKS_WAITING + 1
        assert peer._answers is not None and len(peer._answers._remembered) <= MAX_REMEMBERED
        assert len(peer._tasks) <= peer.limits.max_requests
        assert len(peer.progress) <= 2 * MAX_CHUNKS_WAITING and not peer._chunk_asks and not peer._questions._pending
        return got

    async def _hear(self, frames: list[bytes]) -> bool:
        return self.peer.heard(list(frames)) is not None

    def close(self) -> None:
        self.loop.run_until_complete(self.peer.close())
        self.loop.close()
        self._folder.cleanup()


class ChunkTarget:
    """Chunks that are not what the manifest says, into a partial on disk."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        blobs = BlobStore(Path(self._folder.name), reserve=0)
        last = random.Random(7).randbytes(700)
        self._blob = bytes(LEAF) + b"\1" * LEAF + last  # most cases are about the short chunk: the others take longer
        self._manifest = Manifest(name_of(self._blob), len(self._blob), LEAF, leaves_of(self._blob))
        self._partial = blobs.partial(self._manifest.digest, self._manifest)

    def __call__(self, rng: random.Random) -> bool:
        at = rng.choice((2,) * 30 + (0, 1))
        true = self._blob[LEAF * at :][:LEAF]
        index = rng.choice((at, at, at, *NUMBERS))
        data = true if rng.randrange(8) == 0 else mutate_bytes(rng, true, self._blob[-2000:])
        good = self._partial.write(index, data)
        assert good == (0 <= index < 3 and data == self._blob[LEAF * index :][:LEAF]), "a wrong chunk was taken"
        return good

    def close(self) -> None:
        self._partial.close()
        self._folder.cleanup()


SIMPLE: dict[str, Target] = {
    "gate": gate, "frames": frames, "refusal record": refusal, "message": message, "enrolment": enrolment, "manifest": manifest,
    "safetensors header": safetensors, "update statement": statement,
}  # fmt: skip
