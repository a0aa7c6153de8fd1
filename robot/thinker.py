"""A policy on a thread of its own, one question at a time, so that a slow one never stops the loop that holds the arm.

Not for what to do when no answer comes (rollout.py).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Policy = Callable[[NDArray[np.float32], Mapping[str, NDArray[np.uint8]]], NDArray[np.float32]]
_Question = tuple[NDArray[np.float32], Mapping[str, NDArray[np.uint8]]]


class Thinker:
    """`ask` while not `busy`; `answer` waits. A policy that raised does so there."""

    def __init__(self, act: Policy) -> None:
        self.busy = False
        self.seconds: list[float] = []
        """How long each answer took."""
        self._act = act
        self._asked: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        self._said: queue.SimpleQueue[NDArray[np.float32] | Exception] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="policy", daemon=True).start()

    def ask(self, state: NDArray[np.float32], images: Mapping[str, NDArray[np.uint8]]) -> None:
        """Begin to think of these; frames are copied, as drivers reuse theirs."""
        self.busy = True
        self._asked.put((state.copy(), {name: image.copy() for name, image in images.items()}))

    def answer(self, timeout_s: float) -> NDArray[np.float32] | None:
        """The answer, (joints,) float32, once it is there; None when it is not within `timeout_s`."""
        if not self.busy:
            return None
        try:
            said = self._said.get(timeout=timeout_s) if timeout_s > 0 else self._said.get_nowait()
        except queue.Empty:
            return None
        self.busy = False
        if isinstance(said, Exception):
            raise said
        return said

    def close(self) -> None:
        """Ask nothing more. A policy that hangs keeps its thread, which ends with the process."""
        self._asked.put(None)

    def _run(self) -> None:
        while (question := self._asked.get()) is not None:
            began = time.perf_counter()
            try:
                said: NDArray[np.float32] | Exception = self._act(*question)
            except Exception as error:
                said = error
            self.seconds.append(time.perf_counter() - began)
            self._said.put(said)
