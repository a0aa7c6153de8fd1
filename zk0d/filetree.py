"""The regular files of a folder, as they go over the control socket in either direction, and the names they may have.

Nobody's link leads out of the folder. Not for sending or writing them (delivery.py and carrying.py of daemon and ctl).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from zk0d.errors import DatasetError, ProtocolError, os_reason

OURS = (".zk0", ".cache")
"""A recorder's and a download's own folders: they stay where they are."""
PART = ".zk0d-part"
"""Ends the name of a dataset that a worker is making, beside its place (a conversion adds `_v30`, `_old`)."""
_LONGEST = 4000
_DEEPEST = 32
"""A dataset has four or so; thousands, and whatever walks through them by recursion fails."""


def named(path: object) -> Path:
    """`path` as the relative path of a file below a folder. Raises ProtocolError for one that could lead elsewhere."""
    parts = path.split("/") if isinstance(path, str) and len(path.encode(errors="replace")) <= _LONGEST else []
    if not 0 < len(parts) <= _DEEPEST or any(
        p in ("", ".", "..") or "\0" in p or len(p.encode(errors="replace")) > 255 for p in parts
    ):
        raise ProtocolError(f"no file below a folder can have the name {str(path)[:200]!r}")
    return Path(*parts)


def regular(root: Path) -> Iterator[tuple[str, int]]:
    """Relative path and an open descriptor (closed afterwards) of every regular file below `root`, no link followed.

    Raises OSError when one cannot be read.
    """
    for folder, below, names, fd in os.fwalk(root, follow_symlinks=False):
        _sort(below, names)
        for name in names:
            try:
                opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
            except OSError:
                if os.path.islink(os.path.join(folder, name)):
                    continue
                raise
            try:
                if stat.S_ISREG(os.fstat(opened).st_mode):
                    yield os.path.relpath(os.path.join(folder, name), root), opened
            finally:
                os.close(opened)


def listed(root: Path, within: Path) -> dict[str, int]:
    """Relative path → bytes of every file below `root`, where each must be regular or a link to one below `within`.

    Raises DatasetError for what is neither: left out it would be missed, followed it would show what is elsewhere.
    """
    found: dict[str, int] = {}

    def refuse(error: OSError) -> None:
        raise DatasetError(f"{error.filename}: {os_reason(error)}", "may you read it?") from error

    for folder, below, names in os.walk(root, onerror=refuse, followlinks=False):
        _sort(below, names)
        for path in (os.path.join(folder, name) for name in below):
            if os.path.islink(path):
                raise _strange(path, root)
        for name in names:
            path = os.path.join(folder, name)
            if not stat.S_ISREG(_mode(path, within)):
                raise _strange(path, root)
            found[_nameable(path, root)] = os.stat(path).st_size
    return found


def _nameable(path: str, root: Path) -> str:
    relative = os.path.relpath(path, root)
    try:
        named(relative)
    except ProtocolError as error:
        raise DatasetError(
            f"{path[:300]} lies too deep, or has too long a name: {root} is not copied",
            f"no more than {_DEEPEST} folders deep, and {_LONGEST} bytes",
        ) from error
    return relative


def opened_within(path: str, within: Path) -> int:
    """A descriptor of the regular file `path`, which is in truth below `within` now. Raises DatasetError, OSError."""
    if stat.S_ISREG(_mode(path, within)):  # looked at first: to open a device may already do something
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        truly = os.readlink(f"/proc/self/fd/{fd}")  # and again, as a link may have been put there meanwhile
        if stat.S_ISREG(os.fstat(fd).st_mode) and Path(truly).is_relative_to(within):
            return fd
        os.close(fd)
    raise _strange(path, within)


def _mode(path: str, within: Path) -> int:
    """The mode of what `path` is or leads to; 0 when that is not there or not below `within`."""
    truly = os.path.realpath(path)
    try:
        return os.lstat(truly).st_mode if Path(truly).is_relative_to(within) else 0
    except FileNotFoundError:
        return 0


def _strange(path: str, root: Path) -> DatasetError:
    what = "a link that leads nowhere or out of it" if os.path.islink(path) else "no regular file"
    return DatasetError(
        f"{path} is {what}: {root} is not copied", f"remove it, or copy it with its links: cp -rL {root} DIR"
    )


def _sort(below: list[str], names: list[str]) -> None:
    below[:] = sorted(name for name in below if name not in OURS)
    names[:] = sorted(name for name in names if not name.endswith(".lock"))
