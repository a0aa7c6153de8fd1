"""The errors a person can meet. Not for programming mistakes, which stay ordinary exceptions.

Each class owns its exit code; each instance says what went wrong and where (`message`) and what to do (`hint`).
The table of exit codes in docs/operator.md is checked against this module by a test.
"""

from __future__ import annotations

import errno
import os

EXIT_CODES = (
    (0, "healthy, done"),
    (1, "error"),
    (2, "degraded: it works, or worked, in part"),
    (3, "zk0d or the hub is not running"),
    (4, "unknown: the answer cannot be told"),
    (64, "the command line is not understood"),
    (78, "a setting cannot be used"),
    (130, "interrupted with Ctrl-C"),
)
"""What the exit codes of zk0ctl, zk0d and zk0-hub say; for help, man pages and the guide."""
_OS_HINTS = {
    errno.ENOENT: "is the path right, and does its folder exist?",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EEXIST: "choose a name that does not exist",
    errno.EACCES: "`ls -ld` shows who may; sudo helps where it is the system's",
    errno.EPERM: "`ls -ld` shows who may; sudo helps where it is the system's",
    errno.ENOSPC: "make room on the disk: `df -h`",
    errno.EROFS: "the disk is mounted read-only",
}

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar


class Zk0Error(Exception):
    """Something went wrong that a person can read about and act on."""

    exit_code: ClassVar[int] = 1
    """Exit status of the command that ends with this error."""
    code: ClassVar[str] = "error"
    """Stable machine-readable name, used on the wire and in `--json`."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


def os_reason(error: OSError) -> str:
    """The system's words for it, without Python's number and arguments ("Connection refused")."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)


def from_os(error: OSError, doing: str = "") -> Zk0Error:
    """What the system refused, as a sentence with the path and what to do; `doing` begins it ("cannot write")."""
    names = " → ".join(str(n) for n in (error.filename, error.filename2) if n is not None)
    message = ": ".join(part for part in (doing, names, os_reason(error)) if part)
    return Zk0Error(message, _OS_HINTS.get(error.errno or 0, ""))


class UsageError(Zk0Error):
    """The command line or a value in it is not understood (sysexits EX_USAGE)."""

    exit_code = 64
    code = "usage"


class NotRunningError(Zk0Error):
    """The daemon or the hub that a command needs does not answer."""

    exit_code = 3
    code = "not_running"


class DegradedError(Zk0Error):
    """The command worked in part: the message says which part did not."""

    exit_code = 2
    code = "degraded"


class UnknownStateError(Zk0Error):
    """The answer cannot be told, for example because a state file is unreadable."""

    exit_code = 4
    code = "unknown"


class ConfigError(Zk0Error):
    """A configuration file has a value that cannot be used; names the file, the key and what is accepted."""

    exit_code = 78
    code = "config"


class PayloadError(Zk0Error):
    """Bytes that claim to be a payload, manifest or spec are not acceptable."""

    code = "payload"


class ProtocolError(Zk0Error):
    """The peer sent something outside the protocol (docs/protocol.md)."""

    code = "protocol"


class LinkClosedError(Zk0Error):
    """The link is closed by our own shutdown."""

    code = "link_closed"


class LinkLostError(Zk0Error):
    """The peer went away, or never answered."""

    code = "link_lost"


class RefusedError(Zk0Error):
    """The peer understood and refused; `code` on the instance is the peer's own word for why."""

    code = "refused"

    def __init__(self, message: str, hint: str = "", reason: str = "refused") -> None:
        super().__init__(message, hint)
        self.reason = reason
        self.signed: tuple[bytes, bytes] | None = None
        """The refusal as a signed statement and its signature, where the hub gives one."""


class WorkerError(Zk0Error):
    """A worker process reported an error or died."""

    code = "worker"


class DatasetError(Zk0Error):
    """A dataset is missing, damaged, or does not fit what is asked of it."""

    code = "dataset"


class UnseenError(DatasetError):
    """A folder that the daemon cannot read, though whoever asked perhaps can: zk0ctl then copies it in."""

    code = "unseen"


class RobotError(Zk0Error):
    """An arm, a camera or the virtual bench does not do what was asked."""

    code = "robot"
