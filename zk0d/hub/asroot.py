"""Copying and giving away a hub's files so that root can do it: whoever can write to these folders must not have root
read, overwrite or give away what is not theirs. Races included: a name may become a link at any moment.

For backup and restore. Not for what a running hub does, which has only its own user's rights.
"""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import stat
from collections.abc import Callable
from pathlib import Path, PurePath

from zk0d.errors import ConfigError, UsageError


def user_name(number: int) -> str:
    """A user's name, or the number where there is none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def require_place(path: Path) -> None:
    """As root: that nobody but root and who called sudo can put something else in the place of `path` while it is being
    written. Raises UsageError."""
    if os.geteuid() != 0:
        return
    called = os.environ.get("SUDO_UID", "")
    trusted = {0, int(called) if called.isdecimal() else 0}
    for folder in path.resolve().parents:
        if not folder.exists():
            continue
        found = folder.stat()
        others = found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and found.st_gid != 0)
        if found.st_uid not in trusted or (others and not found.st_mode & stat.S_ISVTX):
            whose = f"is {user_name(found.st_uid)}'s" if found.st_uid not in trusted else "can be written to by others"
            raise UsageError(
                f"{folder} {whose}: root writes nothing there that others could exchange meanwhile",
                f"choose a folder of root's, or do it as the user whose it is: sudo -u {user_name(found.st_uid)}",
            )


def require_file(path: Path) -> None:
    """As root: that `path` is a file, and no link to one. Raises ConfigError."""
    if os.geteuid() == 0 and not stat.S_ISREG(path.lstat().st_mode):
        raise _no_file(path)


def copy_tree(source: Path, target: Path, skip: Callable[[PurePath], bool]) -> None:
    """Copy what a folder holds, with its modes, but what `skip(path from source on)` is true for. As root no link is
    followed. Raises ConfigError for a link then, and for what is no file; OSError."""
    strict = os.geteuid() == 0
    top = source.resolve()
    for folder, folders, names, fd in os.fwalk(top, onerror=_raise, follow_symlinks=not strict):
        inner = PurePath(folder).relative_to(top)
        into = target / inner
        into.mkdir(mode=0o700, exist_ok=True)
        folders[:] = [name for name in folders if not skip(inner / name)]
        links = [name for name in folders if strict and os.path.islink(os.path.join(folder, name))]
        for name in [*links, *(name for name in names if not skip(inner / name))]:
            _copy_file(fd, name, into / name, Path(folder, name), strict)
        if inner.parts:
            into.chmod(stat.S_IMODE(os.fstat(fd).st_mode))


def _raise(error: OSError) -> None:
    raise error


def _copy_file(folder: int, name: str, target: Path, shown: Path, strict: bool) -> None:
    """Decided by what was opened, not by what the name was before: it may be another's by now."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_NOFOLLOW if strict else 0)
    try:
        fd = os.open(name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise _no_file(shown) from None
    with open(fd, "rb") as given:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _no_file(shown)
        with target.open("xb") as made:
            shutil.copyfileobj(given, made, 1 << 20)
            os.fchmod(made.fileno(), stat.S_IMODE(os.fstat(fd).st_mode))


def _no_file(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} is no plain file, and root follows no link",
        f"put the file itself there, or do it as the user whose link it is: sudo -u {user_name(path.lstat().st_uid)}",
    )


def give(top: Path, user: int, group: int) -> None:
    """All of a folder to a user. Not a file of more than one name: a blob that is a backup's as well, and perhaps
    another hub's, which everybody may read. The inner ones first, so that the user cannot change what is still to be
    given."""
    for _, folders, names, fd in os.fwalk(top, topdown=False):
        for name in [*folders, *names]:
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode) or found.st_nlink == 1:
                os.chown(name, user, group, dir_fd=fd, follow_symlinks=False)
    os.chown(top, user, group, follow_symlinks=False)
