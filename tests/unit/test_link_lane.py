"""The lane: what passes to libzmq, what is gathered, what goes first, however the bytes are cut."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0d.errors import PayloadError
from zk0d.link.buffers import SLICE, Buffers
from zk0d.link.gate import GateError
from zk0d.link.lane import WAITING_IN, WAITING_OUT, Inbox, Lane, Splitter
from zk0d.link.messages import MAX_BULK, MAX_ENVELOPE, Frame
from zk0d.link.soon import Soon
from zk0d.model.blobs import BlobStore

READY = b"\x04\x06\x05READY"


def frame(body: bytes, flags: int = 0) -> bytes:
    if len(body) > 255 or flags & 2:
        return bytes([flags | 2]) + len(body).to_bytes(8, "big") + body
    return bytes([flags, len(body)]) + body


def message(parts: list[bytes]) -> bytes:
    return b"".join(frame(part, int(i < len(parts) - 1)) for i, part in enumerate(parts))


MESSAGES = st.lists(
    st.one_of(
        st.tuples(st.binary(max_size=300)), st.tuples(st.binary(max_size=300), st.binary(max_size=20_000)), st.just(())
    ).map(list),
    max_size=6,
)


@given(MESSAGES, st.lists(st.integers(1, 30_000), max_size=20), st.booleans())
def test_whatever_the_cuts_messages_are_gathered_and_commands_pass(
    messages: list[list[bytes]], cuts: list[int], direct: bool
) -> None:
    """An empty message stands for a command here."""
    command = frame(b"\x04PING\0\0", 4)
    stream = b"G" * 64 + READY + b"".join(message(m) if m else command for m in messages)
    got: list[list[bytes]] = []
    split = Splitter(lambda frames: got.append([bytes(f) for f in frames]), Buffers(), skip=64)
    passed, at, steps = b"", 0, iter(cuts)
    while at < len(stream):
        n = next(steps, 5000)
        into = split.wanted() if direct else None
        if into is not None:
            n = min(n, len(into), len(stream) - at)
            into[:n] = stream[at : at + n]
            split.filled(n)
        else:
            passed += bytes(split.feed(stream[at : at + n]))
        at += n
    assert got == [m for m in messages if m]
    assert passed == b"G" * 64 + READY + command * messages.count([])
    assert split.spoken


@pytest.mark.parametrize(
    "bad",
    [
        message([b"a", b"b", b"c"]),
        frame(b"a", 1) + frame(b"\x04PING", 4),
        b"\x02" + (MAX_BULK + 1).to_bytes(8, "big"),
        b"\x03" + (MAX_ENVELOPE + 1).to_bytes(8, "big"),
        b"\x80\x00",
        b"\x06" + (1 << 20).to_bytes(8, "big"),
    ],
)
def test_what_no_peer_may_send(bad: bytes) -> None:
    split = Splitter(lambda frames: None, Buffers())
    with pytest.raises(GateError):
        split.feed(READY + bad)


class Loan:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def read_into(self, at: int, into: memoryview) -> None:
        into[:] = self.data[at : at + len(into)]


def lane(spoken: bool = True) -> Lane:
    made = Lane(memoryview(bytearray(SLICE)), lambda: spoken, skip=0)
    made.pass_through(READY)
    return made


def drain(made: Lane, pieces: int = 10**6) -> bytes:
    out = b""
    while made.ready and pieces:
        out += bytes(made.next())
        pieces -= 1
    return out


@pytest.mark.parametrize("size", [0, 1, 255, 256, SLICE - 20, SLICE, 3 * SLICE + 17])
def test_lent_and_given_bulk_are_the_same_on_the_wire(size: int) -> None:
    data = bytes(i * 7 % 251 for i in range(size))
    for bulk in (data, Loan(data)):
        made = lane()
        assert made.offer([b"envelope", bulk])
        assert drain(made) == message([b"envelope", data])


def test_control_overtakes_bulk_that_has_not_begun_but_never_cuts_a_message() -> None:
    made, data = lane(), b"x" * (2 * SLICE)
    assert made.offer([b"one", data]) and made.offer([b"two", Loan(data)])
    out = drain(made, 2)
    assert made.within and not made.urgent
    made.offer([b"quick"])
    made.offer([b"brown"])
    out += drain(made)
    assert out == message([b"one", data]) + message([b"quick"]) + message([b"brown"]) + message([b"two", data])


def test_nothing_is_said_before_ready_nor_within_a_command_of_libzmq() -> None:
    quiet = lane(spoken=False)
    quiet.offer([b"a"])
    assert not quiet.ready and not quiet.urgent
    made = Lane(memoryview(bytearray(SLICE)), lambda: True, skip=64)
    made.offer([b"a"])
    for byte in b"G" * 64 + READY:
        assert not made.ready
        made.pass_through(bytes([byte]))
    assert made.ready
    made.pass_through(b"\x04\x06\x04PI")
    assert not made.ready
    made.pass_through(b"NG\0\0"[:3])
    assert made.ready


def test_what_waits_is_bounded_and_room_is_told() -> None:
    made, told = lane(), []
    made.on_room = lambda: told.append(1)
    while made.offer([b"e", b"x" * (1 << 20)]):
        pass
    assert len(drain(made, 2)) > 1 and not told, "nothing has gone yet"
    lent = lane()
    assert [lent.offer([b"e", Loan(b"x")]) for _ in range(WAITING_OUT + 1)] == [True] * WAITING_OUT + [False]
    controls: list[Frame] = [b"x" * 200_000]
    while made.offer(controls):
        pass
    drain(made)
    assert told and made.offer(controls)


def test_an_inbox_is_full_by_number_and_by_size() -> None:
    woken: list[int] = []
    inbox = Inbox(lambda: woken.append(1))
    for _ in range(WAITING_IN):
        assert not inbox.full
        inbox.delivered(10)
    assert inbox.full
    inbox.handled(10)
    assert woken and not inbox.full
    inbox.delivered(32 << 20)
    assert inbox.full


def test_a_buffer_is_lent_again_only_when_nobody_sees_it() -> None:
    buffers = Buffers(most=1 << 20)
    first = buffers.take(1 << 19)
    part = first[100:200]
    first[:] = b"1" * (1 << 19)
    second = buffers.take(1 << 19)
    assert second.obj is not first.obj
    whose, again = first.obj, memoryview(b"")
    del first
    second = buffers.take(1 << 19)
    assert second.obj is not whose, "a view of a part still stands"
    assert bytes(part[:3]) == b"111"
    held = id(whose)
    del part, whose
    again = buffers.take((1 << 19) - 5)
    assert id(again.obj) == held and len(again) == (1 << 19) - 5
    buffers.trim()
    buffers.trim()
    assert id(again.obj) == held, "who has it keeps it"


def test_calls_into_the_loop_keep_their_order_and_share_wake_ups(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        got: list[int] = []
        wakes: list[int] = []
        real = os.eventfd_write
        monkeypatch.setattr(os, "eventfd_write", lambda fd, n: (wakes.append(threading.get_ident()), real(fd, n)))
        soon, all_in, seen = Soon(asyncio.get_running_loop()), threading.Event(), asyncio.Event()

        def give() -> None:
            for i in range(100):
                soon(got.append, i)
            soon(lambda: 1 / 0)
            soon(seen.set)
            all_in.set()

        thread = threading.Thread(target=give)
        thread.start()
        all_in.wait(60)  # the loop stands still meanwhile
        thread.join()
        await asyncio.wait_for(seen.wait(), 60)
        assert got == list(range(100))
        assert wakes.count(thread.ident or 0) == 1
        soon.close()
        soon.close()
        soon(got.append, 100)  # who comes late is not heard, and writes into nobody's file
        await asyncio.sleep(0)
        assert len(got) == 100

    asyncio.run(run())


def test_chunks_are_lent_as_they_lie(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, reserve=0)
    data = bytes(range(256)) * 40
    blob = store.lend(store.add_bytes(data))
    chunk = blob.chunk(2, 4096)
    if chunk is None:
        pytest.skip("this file system cannot say what is in memory")
    assert bytes(chunk) == data[8192:]
    for bad in (-1, 3):
        with pytest.raises(PayloadError):
            blob.chunk(bad, 4096)
    with pytest.raises(PayloadError):
        store.lend("blob:" + "0" * 64)
