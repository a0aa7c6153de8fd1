"""What all transfers may have asked for together: never more bytes than there are, and everybody in turn."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_link_lane import READY, message

from zk0d.link.alone import Alone
from zk0d.link.buffers import Buffers
from zk0d.link.expected import Expected
from zk0d.link.lane import Inbox, Skipped, Splitter
from zk0d.link.messages import MAX_BULK, MAX_ENVELOPE
from zk0d.link.rates import Pace
from zk0d.link.transfer import Credit


class Sim:
    """Transfers that all want more than there is. Each look is made later, as the event loop does."""

    def __init__(self, most: int, sizes: list[int]) -> None:
        self.credit, self.sizes, self.most = Credit(most), sizes, most
        self.held: list[int] = [0] * len(sizes)
        self.turns: list[int] = []
        self.soon: list[int] = []
        self.gone: set[int] = set()
        self.names = [self._again(i) for i in range(len(sizes))]

    def _again(self, i: int):  # type: ignore[no-untyped-def]
        return lambda: self.soon.append(i)

    def look(self, i: int) -> None:
        if i in self.gone:
            self.credit.leave(self.names[i])
        elif self.credit.take(self.names[i], self.sizes[i]):
            self.held[i] += 1
            self.turns.append(i)

    def settle(self) -> None:
        while self.soon:
            self.look(self.soon.pop(0))
        taken = sum(h * s for h, s in zip(self.held, self.sizes, strict=True))
        assert taken <= max(self.most, *self.sizes)


@given(
    st.integers(1, 40), st.lists(st.integers(1, 12), min_size=2, max_size=12),
    st.lists(st.tuples(st.sampled_from(["look", "give", "go", "come"]), st.integers(0, 11)), max_size=120),
)  # fmt: skip
def test_bytes_are_bounded_and_nobody_waits_for_ever(most: int, sizes: list[int], steps: list[tuple[str, int]]) -> None:
    sim = Sim(most, sizes)
    for what, which in steps:
        i = which % len(sizes)
        if what == "give" and sim.held[i]:
            sim.held[i] -= 1
            sim.credit.give(sizes[i])
        elif what == "go":
            sim.gone.add(i)
            sim.credit.leave(sim.names[i])
        elif what == "come":
            sim.gone.discard(i)
        else:
            sim.look(i)
        sim.settle()
    # From here on everybody wants one piece after the other, and gives it back: all have their turns.
    sim.gone.clear()
    for i in range(len(sizes)):
        sim.look(i)
        sim.settle()
    sim.turns.clear()
    for _ in range(40 * len(sizes)):
        for i in range(len(sizes)):
            if sim.held[i]:
                sim.held[i] -= 1
                sim.credit.give(sizes[i])
                sim.look(i)
                sim.settle()
    if sum(sizes) > max(most, *sizes):  # there is less than all want
        counts = Counter(sim.turns)
        assert all(counts[i] for i in range(len(sizes))), (counts, sizes)


def test_a_link_holds_what_was_asked_for_and_throws_the_rest_away() -> None:
    inbox, expected = Inbox(lambda: None), Expected()
    inbox.asked = 0
    expected.up(inbox)
    got: list[list[object]] = []

    def deliver(frames: list[object]) -> None:
        got.append(frames)
        inbox.delivered(sum(map(len, frames)))  # type: ignore[arg-type]

    split = Splitter(deliver, Buffers(), begins=inbox.begins)  # type: ignore[arg-type]
    assert bytes(split.feed(READY)) == READY
    chunk = b"c" * (1 << 20)
    stream = message([b"one", chunk])
    assert split.feed(stream[: len(stream) // 2]) == b"" and not expected.coming
    assert split.wanted() is None
    assert split.feed(stream[len(stream) // 2 :]) == b""
    assert isinstance(got[0][1], Skipped) and got[0][1].size == len(chunk) and got[0][1] == b""
    expected.add(len(chunk))
    split.feed(stream[:5000])
    assert expected.coming and split.wanted() is not None
    split.feed(stream[5000:])
    assert got[1][1] == chunk and not expected.coming
    assert split.feed(message([b"small", b"s" * 100])) == b"" and got[2][1] == b"s" * 100, "no accounts for trifles"
    split.feed(stream)
    assert isinstance(got[3][1], Skipped), "the one before it is still here"
    for frames in got:
        inbox.handled(sum(map(len, frames)))  # type: ignore[arg-type]
    split.feed(stream)
    assert got[4][1] == chunk
    expected.down()
    expected.add(-len(chunk))  # of a link that is gone
    assert inbox.asked == len(chunk)


def test_a_manifest_is_waited_for_over_links() -> None:
    expected, first, second = Expected(), Inbox(lambda: None), Inbox(lambda: None)
    first.asked = second.asked = 0
    expected.up(first)
    with expected.lasting(900_000):
        assert first.asked == 900_000
        expected.down()
        expected.up(second)
        assert second.asked == 900_000
    assert second.asked == 0 and first.begins(MAX_ENVELOPE) and not second.begins(MAX_BULK)
    expected.up(None)
    expected.add(5)
    assert not expected.coming


def test_a_frame_that_comes_too_slowly_is_seen() -> None:
    split = Splitter(lambda frames: None, Buffers())
    split.feed(READY)
    assert not split.overdue(1e9, 10.0)
    split.feed(message([b"e", b"x" * 160_000])[:100_000])
    begun = split._since
    assert not split.overdue(begun + 19, 10.0) and split.overdue(begun + 21, 10.0)  # 10 s at 16 kB/s


def test_a_pace_lets_a_burst_go_and_then_so_many_a_second() -> None:
    pace = Pace(2.0, 5)
    assert [pace.go(100.0) for _ in range(6)] == [True] * 5 + [False]
    assert [pace.go(101.0) for _ in range(3)] == [True, True, False]
    assert [pace.go(999.0) for _ in range(6)] == [True] * 5 + [False]
    assert all(Pace(None, 0).go(1.0) for _ in range(9))


@pytest.mark.parametrize("fails", [False, True])
def test_one_at_a_time_by_name_and_nothing_stays(fails: bool) -> None:
    import asyncio

    async def run() -> None:
        alone, inside, seen = Alone(), Counter[str](), 0

        async def one(name: str) -> None:
            nonlocal seen
            async with alone.of(name):
                inside[name] += 1
                assert inside[name] == 1
                await asyncio.sleep(0)
                inside[name] -= 1
                seen += 1
                if fails:
                    raise ValueError

        tasks = [asyncio.create_task(one(name)) for name in "aabbab"]
        waits = asyncio.create_task(one("a"))
        await asyncio.sleep(0)
        waits.cancel()
        await asyncio.gather(*tasks, waits, return_exceptions=True)
        assert seen == 6 and len(alone) == 0 and not alone._users

    asyncio.run(run())
