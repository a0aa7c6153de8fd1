"""Telling the kernel to begin writing a growing file out, so that the fsync at its end finds little left to do.

Only a hint: nothing is durable by it, and where the C library has no such call nothing happens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import cast

_WRITE = 2  # SYNC_FILE_RANGE_WRITE: begin, do not wait


def _find() -> Callable[[int, int, int, int], int] | None:
    try:
        found = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    found.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return cast(Callable[[int, int, int, int], int], found)


_sync_file_range = _find()


def start_writeback(fd: int, offset: int, size: int) -> None:
    """Begin writing `size` bytes from `offset` of an open file to the disk, in the background."""
    if _sync_file_range is not None:
        _sync_file_range(fd, offset, size, _WRITE)
