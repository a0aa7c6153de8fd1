"""The receiver machine, the token bucket and the fair queue: all without a clock or a socket."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zk0d.errors import PayloadError
from zk0d.link.state import LinkLimits
from zk0d.link.transfer import Bucket, FairQueue, Receiver
from zk0d.model.blobs import LEAF, Manifest
from zk0d.model.leaves import name_of_leaves

LIMITS = LinkLimits(reask_s=10, max_wrong=1000, window_max=4)


def manifest(chunks: int) -> Manifest:
    leaves = bytes(32 * chunks)
    return Manifest(name_of_leaves(chunks * LEAF, leaves), chunks * LEAF, LEAF, leaves)


class Transfer(RuleBasedStateMachine):
    """Whatever is lost, doubled, late or wrong: every chunk is asked for until it came, and the window holds."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.have = {0, 3}
        self.receiver = Receiver(manifest(12), self.have, LIMITS, self.now)
        self.flying: list[int] = []

    @rule(passed=st.floats(0, 25))
    def ask(self, passed: float) -> None:
        self.now += passed
        for index in self.receiver.asks(self.now):
            assert index not in self.have
            self.flying.append(index)

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), good=st.booleans(), twice=st.booleans())
    def arrive(self, data: st.DataObject, good: bool, twice: bool) -> None:
        index = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        if self.receiver.expects(index):
            for _ in range(1 + twice):
                self.receiver.arrived(index, good, self.now)
            if good:
                self.have.add(index)

    @precondition(lambda self: self.flying)
    @rule()
    def lose(self) -> None:
        self.flying.pop()

    @rule()
    def break_link(self) -> None:
        late = [i for i in self.flying if self.receiver.expects(i)]
        self.receiver.interrupted()
        self.flying.clear()
        if late:  # it was being stored when the link broke
            self.receiver.arrived(late[0], True, self.now)
            self.have.add(late[0])

    @precondition(lambda self: self.flying)
    @rule()
    def too_busy(self) -> None:
        self.receiver.unavailable(self.flying.pop())

    @invariant()
    def consistent(self) -> None:
        r = self.receiver
        assert r._done == self.have and r.done == (len(self.have) == 12)
        assert sorted([*r._missing, *r._asked, *r._done]) == list(range(12))
        assert 1 <= r.window <= LIMITS.window_max and len(r._asked) <= LIMITS.window_max
        assert r.done or r._asked or r._missing

    def teardown(self) -> None:
        for _ in range(200):
            self.now += 1000
            for index in self.receiver.asks(self.now):
                self.receiver.arrived(index, True, self.now)
        assert self.receiver.done


Transfer.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestTransfer = Transfer.TestCase


def test_silence_asks_again_and_not_before() -> None:
    receiver = Receiver(manifest(2), (), LIMITS, 0.0)
    assert receiver.asks(0.0) == [0, 1]
    assert receiver.next_look(0.0) == 10
    assert receiver.asks(9.9) == []
    assert receiver.asks(10.0) == [0]  # and the window is halved


def test_too_many_wrong_chunks_end_it() -> None:
    receiver = Receiver(manifest(3), (), LinkLimits(max_wrong=3), 0.0)
    for _ in range(2):
        receiver.asks(0.0)
        receiver.arrived(0, False, 0.0)
    receiver.asks(0.0)
    with pytest.raises(PayloadError):
        receiver.arrived(0, False, 0.0)


def test_the_window_follows_the_line() -> None:
    fast, slow = Receiver(manifest(50), (), LIMITS, 0.0), Receiver(manifest(50), (), LIMITS, 0.0)
    now = 0.0
    for _ in range(10):
        for receiver, seconds in ((fast, 0.01), (slow, 5.0)):
            for index in receiver.asks(now):
                receiver.arrived(index, True, now + seconds)
        now += 5
    assert fast.window == 4 and slow.window == 1


@given(st.floats(100, 1e6), st.lists(st.tuples(st.floats(0, 2), st.integers(1, 100_000)), min_size=1, max_size=40))
def test_the_bucket_keeps_the_rate(rate: float, sends: list[tuple[float, int]]) -> None:
    bucket, now, sent = Bucket(rate), 0.0, 0
    for wait, size in sends:
        now += wait
        now += bucket.delay(now)
        if bucket.delay(now) < 1e-6:
            assert sent <= rate * (now + 1) + 1  # what was sent before this one
            bucket.spend(size)
            sent += size
    assert Bucket(None).delay(5.0) == 0.0


def test_the_queue_is_fair_bounded_and_knows_no_doubles() -> None:
    queue = FairQueue(6)
    for index in range(4):
        assert queue.add("big", index, 1024, index)
    assert queue.add("small", 0, 1024, 9)
    assert queue.add("big", 0, 1024, 77)  # again: keeps its place
    assert queue.add("small", 1, 1024, 10)
    assert not queue.add("third", 0, 1024, 11)
    order = [queue.pop() for _ in range(len(queue))]
    assert [(d, i) for d, i, _, _ in order] == [
        ("big", 0), ("small", 0), ("big", 1), ("small", 1), ("big", 2), ("big", 3),
    ]  # fmt: skip
    assert order[0][3] == 77
    with pytest.raises(KeyError):
        queue.pop()
