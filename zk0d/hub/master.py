"""A version's exact float32 values: a float32 file, or what was published in bfloat16 and the 16 bits that it lacks.

The second way takes half the writing and hashing of a merge. Not for nodes: they get what was published.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from zk0d.errors import PayloadError, Zk0Error
from zk0d.model.codec import Float32, Uint16, join_float32
from zk0d.model.payload import Payload
from zk0d.model.spec import ModelSpec


def rest_entries(spec: ModelSpec) -> dict[str, tuple[str, Iterable[int]]]:
    """Writer entries of the file of what rounding took away."""
    return {t.name: ("U16", t.shape) for t in spec.exchange}


class Master:
    """An open master: `path` as a merge or `first_master` wrote it, `published` the same version's published file.

    Zk0Error when one is damaged: no update is to blame, so none may be refused for it."""

    def __init__(self, path: Path, published: Path) -> None:
        self._file = own(path)
        self._rounded: Payload | None = None
        if any(e.dtype == "U16" for e in self._file.entries.values()):
            try:
                self._rounded = own(published)
            except BaseException:
                self._file.close()
                raise

    def block(self, name: str, start: int, stop: int, out: Float32, scratch: NDArray[np.int32]) -> Float32:
        """Elements `start` to `stop` of a tensor, flat: a view of the file, or worked out in `out`."""
        values = self._file.tensor(name).reshape(-1)[start:stop]
        if self._rounded is None:
            return values
        rounded = self._rounded.tensor(name).reshape(-1)[start:stop]
        join_float32(rounded, values, out[: stop - start], scratch)
        return out[: stop - start]

    def tensor(self, name: str) -> Float32:
        """The whole tensor."""
        shape = self._file.entries[name].shape
        size = self._file.entries[name].elements
        out, scratch = np.empty(size, np.float32), np.empty(size, np.int32)
        return self.block(name, 0, size, out, scratch).reshape(shape)

    def release(self, name: str, start: int, stop: int) -> None:
        for file in (self._file, self._rounded):
            if file is not None:
                file.release(name, start, stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._rounded is not None:
            self._rounded.close()


def own(path: Path) -> Payload:
    """A file of the hub's own. Zk0Error when it is damaged."""
    try:
        return Payload.open(path)
    except PayloadError as error:
        raise Zk0Error(f"the hub's own file: {error.message}", "restore it from a backup, or roll back") from None


def off_ties(exact: Float32, rounded: Uint16) -> Float32:
    """`exact`, one float32 step nearer to zero where it lies midway and `rounded` is the nearer to zero of the two.

    A version's values are rounded to even by whoever makes version 0, but away from zero by `split_float32`: without
    this, a merge of nothing would publish other bytes than version 0's.
    """
    bits = exact.view(np.uint32)
    tie = (bits & np.uint32(0xFFFF)) == np.uint32(0x8000)
    down = tie & ((bits >> np.uint32(16)) == rounded)
    return (bits - down.astype(np.uint32)).view(np.float32) if down.any() else exact
