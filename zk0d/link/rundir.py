"""A private folder (0700) for the unix socket between ZeroMQ and TLS, whatever the length of its path.

Both ends of these sockets are in one process. Not for the sockets that people and other programs connect to.
"""

from __future__ import annotations

import os
from pathlib import Path

_LONGEST = 100
"""Bytes that surely fit into sockaddr_un (108 with the terminator, and libzmq adds to it)."""


class RunDir:
    """Makes the folder; `socket(name)` is a path to bind or connect to until `close`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # whoever reaches these sockets has passed no gate
        self.folder = folder.resolve()
        self._fd = os.open(self.folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def socket(self, name: str) -> Path:
        """A path to `name` in the folder that fits; a leftover of an earlier run is removed by `clear`."""
        path = self.folder / name
        return path if len(os.fsencode(path)) <= _LONGEST else Path(f"/proc/self/fd/{self._fd}") / name

    def clear(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._fd)
