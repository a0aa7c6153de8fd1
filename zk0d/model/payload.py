"""Payloads: safetensors files, read lazily through a memory map and written tensor by tensor.

Stricter than the safetensors library: one layout, no gaps, no doubles, nothing after the end. Bytes from the network
come here only after their size, digest and signature were checked. Not for blob storage (blobs.py). No torch here.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from zk0d.durable import fsync_dir
from zk0d.errors import PayloadError, Zk0Error
from zk0d.model.codec import BLOCK, Float32, Uint16, decode_bfloat16, encode_bfloat16, is_finite, sum_of_squares
from zk0d.model.header import MAX_HEADER, Entry, parse_header, short
from zk0d.model.leaves import Leaves
from zk0d.model.manifest import CHUNK, Manifest
from zk0d.model.spec import ModelSpec
from zk0d.model.writeback import start_writeback

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"), "BOOL": np.dtype("?"),
}  # fmt: skip
"""safetensors name → numpy dtype. BF16 is read as bit patterns."""
WIRE = {"float32": "F32", "bfloat16": "BF16"}
"""A spec's dtype → safetensors name."""


class Payload:
    """A safetensors file, header checked, tensors mapped. `Payload.open(path)`; the file must not change under it."""

    def __init__(
        self, path: Path, entries: dict[str, Entry], metadata: dict[str, str], data: mmap.mmap, offset: int, fd: int
    ) -> None:
        self.path = path
        self.entries = entries
        self.metadata = metadata
        self._map: mmap.mmap | None = data
        self._offset, self._fd = offset, fd
        self._close_fd = weakref.finalize(self, os.close, fd)  # also where nobody closes, as with the map

    @classmethod
    def open(cls, path: Path, max_header: int = MAX_HEADER) -> Payload:
        """Map `path` and check its header. Raises PayloadError saying what is wrong; no tensor is read yet.

        Zk0Error when this machine cannot read a file that is there.
        """
        try:
            with path.open("rb") as f:
                size = os.fstat(f.fileno()).st_size
                if size < 8 + 2:
                    raise PayloadError(f"{path.name}: {size} bytes is too short for a safetensors file")
                (length,) = struct.unpack("<Q", f.read(8))
                if length > max_header or length > size - 8:
                    raise PayloadError(f"{path.name}: header of {length} bytes, file of {size} (limit {max_header})")
                header = f.read(length)
                data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
                fd = os.dup(f.fileno())
        except OSError as error:
            # All but its absence is this machine's trouble (descriptors, memory, disk): no reason to judge the bytes.
            kind = PayloadError if isinstance(error, FileNotFoundError) else Zk0Error
            raise kind(f"{path}: cannot be read: {error.strerror or error}") from error
        try:
            entries, metadata = parse_header(header, size - 8 - length)
        except PayloadError as error:
            data.close()
            os.close(fd)
            raise PayloadError(f"{path.name}: {error.message}", error.hint) from None
        return cls(path, entries, metadata, data, 8 + length, fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up the map. Arrays handed out keep it alive until they go."""
        data, self._map = self._map, None
        if data is not None:
            self._close_fd()
            try:
                data.close()
            except BufferError:
                pass  # a tensor still points into it; freed with the last one

    @property
    def names(self) -> list[str]:
        """Tensor names, sorted."""
        return sorted(self.entries)

    def tensor(self, name: str) -> NDArray[Any]:
        """The tensor as it lies in the file, without a copy, read-only; BF16 as uint16 bit patterns."""
        entry = self.entries.get(name)
        if entry is None:
            raise PayloadError(f"{self.path.name}: has no tensor {name!r}")
        if self._map is None:
            raise ValueError(f"{self.path.name}: payload is closed")
        flat = np.frombuffer(self._map, DTYPES[entry.dtype], entry.elements, self._offset + entry.start)
        return flat.reshape(entry.shape)

    def read(self, name: str, start: int, into: NDArray[Any]) -> None:
        """Fill `into`, flat and of the tensor's dtype, with its elements from `start` on: read, so that no page of the
        file counts as this process's memory. Zk0Error where the disk does not give them."""
        place = self._offset + self.entries[name].start + start * into.itemsize
        left = memoryview(into).cast("B")
        while left:
            try:
                n = os.preadv(self._fd, [left], place)
            except OSError as error:
                raise Zk0Error(f"{self.path}: cannot be read: {error.strerror or error}") from error
            if not n:
                raise Zk0Error(f"{self.path}: is shorter than it was", "restore it from a backup")
            left, place = left[n:], place + n

    def float32(self, name: str) -> Float32:
        """The tensor as float32: a view for F32, a decoded copy for BF16, F16, F64; others raise PayloadError."""
        values = self.tensor(name)
        dtype = self.entries[name].dtype
        if dtype == "BF16":
            return decode_bfloat16(values)
        if dtype not in ("F32", "F16", "F64"):
            raise PayloadError(f"{self.path.name}: tensor {name!r} is {dtype}, not floating point")
        return values.astype(np.float32, copy=False)

    def release(self, name: str = "", start: int = 0, stop: int = 0) -> None:
        """Let the kernel drop the pages read so far (they stay valid, and are read again when touched): all of them, or
        those of a tensor's elements from `start` to `stop` (all but the last page, which others may be reading)."""
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        if not name:
            self._map.madvise(mmap.MADV_DONTNEED)
            return
        entry = self.entries[name]
        size = DTYPES[entry.dtype].itemsize
        first, end = (self._offset + entry.start + n * size for n in (start, stop))
        first, end = (n - n % mmap.PAGESIZE for n in (first, end))
        if end > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, end - first)

    def check_against(self, spec: ModelSpec) -> None:
        """Raise PayloadError unless names, shapes and dtype are exactly the spec's exchange set."""
        wanted = {t.name: t.shape for t in spec.exchange}
        missing, extra = sorted(wanted.keys() - self.entries.keys()), sorted(self.entries.keys() - wanted.keys())
        if missing:
            raise PayloadError(f"tensor {missing[0]!r} is missing ({len(missing)} of {len(wanted)} are)")
        if extra:
            raise PayloadError(f"tensor {short(extra[0])!r} is not in the exchange set ({len(extra)} are not)")
        for name, shape in wanted.items():
            entry = self.entries[name]
            if entry.shape != shape:
                raise PayloadError(f"tensor {name!r} has shape {list(entry.shape)}, the spec says {list(shape)}")
            if entry.dtype != WIRE[spec.dtype]:
                raise PayloadError(f"tensor {name!r} has dtype {entry.dtype}, the spec says {WIRE[spec.dtype]}")

    def check_finite(self) -> None:
        """Raise PayloadError naming the first F32 or BF16 tensor with a NaN or an infinity."""
        for name in self.names:
            if self.entries[name].dtype in ("F32", "BF16") and not is_finite(self.tensor(name)):
                raise PayloadError(f"tensor {name!r} holds a NaN or an infinity")
            self.release()

    def norm(self) -> float:
        """Euclidean norm over all F32 and BF16 tensors, summed in float64 in name order."""
        floats = (n for n in self.names if self.entries[n].dtype in ("F32", "BF16"))
        return math.sqrt(sum(sum_of_squares(self.tensor(n)) for n in floats))


_WRITEBACK = 8 << 20
"""Bytes after which the kernel is told to begin writing a file out, so that the flush at the end has little left."""


class PayloadWriter:
    """Writes a safetensors file tensor by tensor: `write` in sorted name order, then `close` makes it appear durably.

    `entries` maps each name to (safetensors dtype, shape). Equal entries, metadata and tensors give equal bytes.
    As a context manager it closes on success and leaves nothing behind on an exception. `digest` (its name as a
    blob), `size` and `manifest` are known after close.
    """

    def __init__(
        self, path: Path, entries: Mapping[str, tuple[str, Iterable[int]]], metadata: dict[str, str] | None = None
    ):
        self.path = path
        self.digest = ""
        self.size = 0
        self._started = 0  # bytes the kernel was told to begin writing out
        self._tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._entries = {n: Entry(d, tuple(map(int, s))) for n, (d, s) in sorted(entries.items())}
        self._left = list(reversed(self._entries))
        self._done = 0  # elements of the tensor that is being written
        self._leaves = Leaves()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._tmp.open("wb")
        header = self._header(metadata or {})
        self._put(struct.pack("<Q", len(header)) + header)

    def _header(self, metadata: dict[str, str]) -> bytes:
        value: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
        position = 0
        for name, entry in self._entries.items():
            end = position + entry.bytes
            value[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [position, end]}
            position = end
        text = json.dumps(value, separators=(",", ":")).encode()
        return text + b" " * (-len(text) % 8)  # tensors begin aligned, as the format asks

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._leaves.update(data)
        self.size += len(data)
        if self.size - self._started >= _WRITEBACK:
            self._file.flush()
            start_writeback(self._file.fileno(), self._started, self.size - self._started)
            self._started = self.size

    def write(self, name: str, values: NDArray[Any]) -> None:
        """Append the next tensor, in the entry's dtype (uint16 for BF16); float32 given for a BF16 entry is encoded."""
        if not self._left or self._left[-1] != name:
            raise ValueError(f"next tensor is {self._left[-1] if self._left else 'none'}, not {name}")
        entry = self._entries[name]
        if values.shape != entry.shape:
            raise ValueError(f"{name}: shape {values.shape} is not {entry.shape}")
        encode = entry.dtype == "BF16" and values.dtype == np.float32
        if not encode and values.dtype != DTYPES[entry.dtype]:
            raise ValueError(f"{name}: dtype {values.dtype} is not {entry.dtype}")
        flat = np.ascontiguousarray(values).reshape(-1)
        if not flat.size:
            self._left.pop()
        for start in range(0, flat.size, BLOCK):
            block: NDArray[Any] = flat[start : start + BLOCK]
            self.append(name, encode_bfloat16(block) if encode else block)

    def append(self, name: str, block: NDArray[Any]) -> None:
        """The next elements of tensor `name`, flat and contiguous, in the entry's dtype; the last ones complete it."""
        if not self._left or self._left[-1] != name:
            raise ValueError(f"next tensor is {self._left[-1] if self._left else 'none'}, not {name}")
        entry, self._done = self._entries[name], self._done + block.size
        if block.dtype != DTYPES[entry.dtype] or self._done > entry.elements:
            raise ValueError(f"{name}: {block.size} elements of {block.dtype} do not fit")
        self._put(memoryview(block).cast("B"))
        if self._done == entry.elements:
            self._done = 0
            self._left.pop()

    def close(self) -> None:
        """Make the file durable and visible at `path`, once. Raises ValueError if tensors are missing."""
        if self.digest:
            return
        if self._left:
            self.abort()
            raise ValueError(f"tensor {self._left[-1]} was not written")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._tmp.replace(self.path)
        fsync_dir(self.path.parent)
        self.digest = self._leaves.name

    @property
    def manifest(self) -> Manifest:
        """What the closed file is made of, for `BlobStore.place`."""
        return Manifest(self.digest, self.size, CHUNK, self._leaves.digests)

    def abort(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        self._tmp.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def exchange_entries(spec: ModelSpec, dtype: str | None = None) -> dict[str, tuple[str, Iterable[int]]]:
    """Writer entries for the spec's exchange set, in the spec's dtype or in `dtype` ("float32", "bfloat16")."""
    return {t.name: (WIRE[dtype or spec.dtype], t.shape) for t in spec.exchange}


def write_exchange(
    path: Path, spec: ModelSpec, tensor: Callable[[str], Float32 | Uint16], dtype: str | None = None
) -> Manifest:
    """Write the spec's exchange set, asking `tensor(name)` for one float32 array at a time → the file's manifest.

    Values are encoded in the spec's dtype (or `dtype`). No metadata is written, so equal tensors give equal bytes.
    """
    with PayloadWriter(path, exchange_entries(spec, dtype)) as out:
        for t in spec.exchange:
            out.write(t.name, tensor(t.name))
    return out.manifest
