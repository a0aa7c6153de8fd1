"""Whose file is to blame when updates cannot be merged: one that this machine lost or spoilt is no fault of its node.

What is merged was verified when it was admitted and is not hashed again (aggregate.py): only a merge that failed looks.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path

from zk0d.errors import PayloadError, Zk0Error, os_reason
from zk0d.model.leaves import name_of_file

_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR)
"""What says nothing of the one file that could not be read."""


class DamagedError(PayloadError):
    """The file of update `number` of a merge is not what was admitted: this disk's fault, and no other update's."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(f"the hub has lost its bytes: {message}")
        self.number = number


class UnreadableError(Zk0Error):
    """The file of update `number` of a merge is there and cannot be read: its owner, its mode or a bad sector. A
    maintainer may mend that."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number = number


def blamed(number: int, path: Path, error: Zk0Error) -> Zk0Error:
    """`error`, met while update `number` was read from `path`, as what it says of that update; else itself. Its node
    is told the reason, so no path of this machine is in it."""
    if isinstance(error, PayloadError):
        return DamagedError(number, error.message.removeprefix(f"{path}: ").removeprefix(f"{path.name}: "))
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno not in _OF_THE_MACHINE:
        return UnreadableError(number, os_reason(cause))
    return error


def check(
    updates: Sequence[tuple[Path, str]], own: Sequence[tuple[Path, str]], cancelled: Callable[[], bool] = lambda: False
) -> None:
    """Read whole files against the blob names they go by, after a merge of them failed; the first that differs is told.

    `own`: what the hub itself merged onto. Raises Zk0Error for one of these, DamagedError or UnreadableError for one
    of `updates`; nothing where all are as they were, or once `cancelled`.
    """
    for path, name in own:
        try:
            whole = name_of_file(path) == name
        except OSError as error:
            raise Zk0Error(f"the hub's own file: {path}: {os_reason(error)}", "mend it, or roll back") from error
        if not whole:
            raise Zk0Error(f"the hub's own file: {path} is damaged", "restore it from a backup, or roll back")
    for number, (path, name) in enumerate(updates):
        if cancelled():
            return
        try:
            whole = name_of_file(path) == name
        except FileNotFoundError:
            raise DamagedError(number, "the file is gone") from None
        except OSError as error:
            if error.errno in _OF_THE_MACHINE:
                raise Zk0Error(f"{path}: cannot be read: {os_reason(error)}") from error
            raise UnreadableError(number, os_reason(error)) from error
        if not whole:
            raise DamagedError(number, "the file is not what was admitted")
