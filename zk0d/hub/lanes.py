"""A merge's outputs: blocks worked out on several cores, each file's hashed and written in order by its own thread.

Buffers are a fixed number of slots that go round, so memory does not depend on the model's size. What is in a block is
blocks.py's business.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
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


class _Round:
    """A slot on its way: back among the free ones when the last file has it."""

    def __init__(self, slot: Slot, free: queue.LifoQueue[Slot], files: int) -> None:
        self.slot, self._free, self._left, self._lock = slot, free, files, threading.Lock()

    def written(self) -> None:
        with self._lock:
            self._left -= 1
            last = not self._left
        if last:
            self._free.put(self.slot)


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
    free: queue.LifoQueue[Slot] = queue.LifoQueue()  # the one that came back last is still in the cache
    for slot in slots:
        free.put(slot)
    failed = threading.Event()

    def make(block: Block, slot: Slot) -> None:
        if not failed.is_set():
            fill(block, slot)

    def put(made: Future[None], number: int, block: Block, going: _Round) -> None:
        try:
            made.result()
            if not number:
                passed(block)
            if not failed.is_set():
                files[number].append(block.name, going.slot.outputs[number][: block.stop - block.start])
        except BaseException:
            failed.set()
            raise
        finally:
            going.written()

    with ExitStack() as stack:
        makers = stack.enter_context(ThreadPoolExecutor(cores, "merge"))
        lanes = [stack.enter_context(ThreadPoolExecutor(1, "merge-write")) for _ in files]
        puts: list[Future[None]] = []
        for block in blocks:
            going = _Round(free.get(), free, len(files))
            if failed.is_set():
                break
            made = makers.submit(make, block, going.slot)
            puts += [lane.submit(put, made, number, block, going) for number, lane in enumerate(lanes)]
            if len(puts) > 64 * len(files) and puts[0].done():
                puts = [p for p in puts if not p.done() or p.exception() is not None]
        for done in puts:
            done.result()
        for closing in [lane.submit(file.close) for lane, file in zip(lanes, files, strict=True)]:
            closing.result()
