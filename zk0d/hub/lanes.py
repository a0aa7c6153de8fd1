"""A merge's outputs: blocks worked out on several cores, each file's hashed and written in order.

Buffers are a fixed number of slots that go round, so memory does not depend on the model's size. What is in a block is
blocks.py's business.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from zk0d.hub.blocks import Slot
from zk0d.model.payload import PayloadWriter


@dataclass(frozen=True)
class Block:
    """Elements `start` to `stop` of tensor `name`, the spec's number `tensor`; `last`: there are no more of it."""

    tensor: int
    name: str
    start: int
    stop: int
    last: bool


@dataclass
class _Made:
    """A block that was worked out, in its slot until the last file has it."""

    block: Block
    slot: Slot
    left: int


class _Lane:
    """One file. `next` is the number of the block that it lacks; whoever holds `busy` gives it what is ready."""

    def __init__(self, file: PayloadWriter, output: int) -> None:
        self.file, self.output, self.next, self.busy = file, output, 0, threading.Lock()


class _Run:
    """Shared by the threads of one merge, each of which works blocks out and gives files what is ready for them.

    No threads of their own for the files: more threads than cores would wait for each other after each call of numpy.
    """

    def __init__(
        self, fill: Callable[[Block, Slot], None], slots: Sequence[Slot], blocks: Iterable[Block],
        files: Sequence[PayloadWriter], passed: Callable[[Block], None],
    ) -> None:  # fmt: skip
        self._fill, self._passed = fill, passed
        self._blocks: Iterator[tuple[int, Block]] = iter(enumerate(blocks))
        self._free = list(slots)  # the one that came back last is taken first: it is still in the cache
        self._made: dict[int, _Made] = {}
        self._lanes = [_Lane(file, output) for output, file in enumerate(files)]
        self._change = threading.Condition()
        self._ended = self._failed = False

    def work(self) -> None:
        """One thread's part. Raises what broke in it; the others then end as well."""
        try:
            while (begun := self._begin()) is not None:
                number, block, slot = begun
                self._fill(block, slot)
                with self._change:
                    self._made[number] = _Made(block, slot, len(self._lanes))
                for lane in self._lanes:
                    self._feed(lane)
        except BaseException:
            with self._change:
                self._failed = True
                self._change.notify_all()
            raise

    def _begin(self) -> tuple[int, Block, Slot] | None:
        with self._change:
            while not (self._free or self._ended or self._failed):
                self._change.wait()
            found = None if self._ended or self._failed else next(self._blocks, None)
            if found is None:
                self._ended = True
                self._change.notify_all()
                return None
            return *found, self._free.pop()

    def _feed(self, lane: _Lane) -> None:
        """Write what is ready, unless another thread is at it; it looks again once it has let go."""
        while not self._failed and lane.next in self._made and lane.busy.acquire(blocking=False):
            try:
                while not self._failed and (made := self._made.get(lane.next)) is not None:
                    block = made.block
                    if not lane.output:
                        self._passed(block)
                    lane.file.append(block.name, made.slot.outputs[lane.output][: block.stop - block.start])
                    self._written(lane.next, made)
                    lane.next += 1
            finally:
                lane.busy.release()

    def _written(self, number: int, made: _Made) -> None:
        with self._change:
            made.left -= 1
            if not made.left:
                del self._made[number]
                self._free.append(made.slot)
                self._change.notify()


def run(
    fill: Callable[[Block, Slot], None],
    slots: Sequence[Slot],
    blocks: Iterable[Block],
    files: Sequence[PayloadWriter],
    cores: int,
    passed: Callable[[Block], None] = lambda block: None,
) -> None:
    """Fill slots with `blocks` on `cores` threads, and write each of a slot's outputs to its file, in order.

    `passed` hears of each block, in order, when it and all before it have been worked out.
    Ends when all is written, flushed and in its place, or with the first block's error once what was under way has
    ended.
    """
    going = _Run(fill, slots, blocks, files, passed)
    with ThreadPoolExecutor(max(cores, len(files)), "merge") as pool:
        for working in [pool.submit(going.work) for _ in range(cores)]:
            working.result()
        for closing in [pool.submit(file.close) for file in files]:
            closing.result()
