"""`python tests/faults/fuzz_guided.py TARGET FOLDER -max_total_time=60`: the parsers of the link, guided by coverage.

By hand and in an environment of its own, with `pip install atheris` beside the project's dependencies: it is none of
ours. Seeds are tests/vectors; a crash is written to the working folder. Not for states and sequences: fuzz.py has those.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris  # type: ignore[import-not-found]
import structlog

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
with atheris.instrument_imports(include=["zk0d"]):
    from fuzz_targets import _ENROL, _HEADERS, _MESSAGES, _RECORDS, _STATEMENTS, _ZMTP

    from zk0d.errors import PayloadError, ProtocolError
    from zk0d.hub.receipts import read_statement
    from zk0d.link.buffers import Buffers
    from zk0d.link.enroll import serve_enroll
    from zk0d.link.gate import Gate, GateError, RefusalScanner
    from zk0d.link.lane import Lane, Splitter
    from zk0d.link.messages import MessageError, decode, unpack
    from zk0d.link.rates import Rate
    from zk0d.model import tensors
    from zk0d.model.payload import parse_header


def gate(data: bytes) -> None:
    split = Splitter(lambda frames: None, Buffers())
    it = Gate("kitchen", beyond=split.feed)
    cut = data[0] % max(1, len(data)) if data else 0  # in two pieces, anywhere
    for piece in (data[:cut], data[cut:]):
        it.feed(piece)


def scanner(data: bytes) -> None:
    it = RefusalScanner()
    out = bytes(it.feed(data))
    assert it.refusal is None or len(out) in (0, 10, 11, 64)


def lane(data: bytes) -> None:
    """What a peer sends after its greeting, and what comes from libzmq."""
    gathered: list[list[Any]] = []
    Splitter(gathered.append, Buffers()).feed(data)
    assert all(1 <= len(frames) <= 2 for frames in gathered)
    Lane(memoryview(bytearray(1 << 20)), lambda: True, skip=0).pass_through(data)


def message(data: bytes) -> None:
    size = data[0] if data else 0
    decode([data[1:]] if size % 2 else [data[1 : 1 + size], memoryview(data)[1 + size :]])


def enrolment(data: bytes) -> None:
    async def answer(request: dict[str, Any]) -> dict[str, Any]:
        return {"state": "pending"}

    assert unpack(asyncio.run(serve_enroll(data, "203.0.113.7:4", answer)))


def header(data: bytes) -> None:
    """The first two bytes say how much data is declared to follow."""
    entries, _ = parse_header(data[2:], size := int.from_bytes(data[:2], "little"))
    assert sum(e.end - e.start for e in entries.values()) == size


def pieces(data: bytes) -> None:
    size = int.from_bytes(data[:4], "little")
    assert all(0 <= p.start <= p.end <= size for p in tensors.unpack(data[4:], size))


def statement(data: bytes) -> None:
    read_statement(data, bytes(64))


def rate(data: bytes) -> None:
    try:
        value = json.loads(data)
    except ValueError:
        return
    try:
        Rate.parse(value)
    except ValueError:
        pass  # the refusal that is declared


REFUSALS = (GateError, MessageError, PayloadError, ProtocolError)
TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "gate": (gate, _ZMTP),
    "scanner": (scanner, [bytes(at) + r for at in (0, 10, 11, 64) for r in _RECORDS]),
    "lane": (lane, [z[64:] for z in _ZMTP]),
    "message": (message, [b"\x01" + m[0] for m in _MESSAGES]),
    "enrolment": (enrolment, _ENROL),
    "header": (header, [n.to_bytes(2, "little") + h.encode(errors="replace") for h, n in _HEADERS if 0 <= n < 65536]),
    "pieces": (pieces, [(100).to_bytes(4, "little") + bytes(8) + (100).to_bytes(8, "big") + bytes(32)]),
    "statement": (statement, _STATEMENTS),
    "rate": (rate, [b'"20 MB/s"', b'[{"from": "08:00", "to": "22:00", "rate": "2 MB/s"}, {"rate": "unlimited"}]']),
}


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    run, seeds = TARGETS[name]
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (folder / f"seed-{number}").write_bytes(seed)

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))

    def one(data: bytes) -> None:
        try:
            run(data)
        except REFUSALS:
            pass

    atheris.Setup([sys.argv[0], str(folder), "-max_len=4096", *sys.argv[3:]], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
