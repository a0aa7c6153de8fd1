"""Where the daemon is, and asking it. Standard library only, and of that only what is needed: `zk0ctl status` is fast.

Not for how commands are declared (command.py).
"""

from __future__ import annotations

import os

from zk0d.control import call
from zk0d.errors import NotRunningError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from socket import socket as Socket
    from typing import Any

DEFAULT_SOCKET = "/run/zk0d/control.sock"
DEFAULT_STATE = "/var/lib/zk0d"


class Context:
    """Where the daemon is. `state` is its folder as far as it can be told, for when the daemon is down."""

    def __init__(self, socket: str | Path, state: str | Path) -> None:
        self._socket, self._state = os.fspath(socket), os.fspath(state)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Context) and (self._socket, self._state) == (other._socket, other._state)

    def __hash__(self) -> int:
        return hash((self._socket, self._state))

    @property
    def socket(self) -> Path:
        from pathlib import Path

        return Path(self._socket)

    @property
    def state(self) -> Path:
        from pathlib import Path

        return Path(self._state)

    @classmethod
    def make(cls, socket: str | None, state: str | None) -> Context:
        """From --socket and --state, else ZK0_SOCKET and ZK0_STATE, else where the installed daemon is."""
        given_state = state or os.environ.get("ZK0_STATE")
        given_socket = socket or (None if state else os.environ.get("ZK0_SOCKET"))
        if given_socket:
            folder = os.path.dirname(given_socket) or "."
            beside = folder if os.access(os.path.join(folder, "zk0d.db"), os.F_OK) else DEFAULT_STATE
            return cls(given_socket, given_state or beside)
        if given_state:
            return cls(os.path.join(given_state, "control.sock"), given_state)
        return cls(DEFAULT_SOCKET, DEFAULT_STATE)

    def call(
        self,
        op: str,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        timeout: float | None = 30.0,
        feed: Callable[[Socket], None] | None = None,
        **request: Any,
    ) -> Any:
        """Ask the daemon. Raises NotRunningError with what to do, or the daemon's own error."""
        try:
            return call(self._socket, {"op": op, **request}, on_event, timeout, feed)
        except NotRunningError as error:
            hint = error.hint
            if "nothing listens" in error.message:
                hint = "start it with `systemctl start zk0d` (or `zk0d --foreground --state DIR`)"
            raise NotRunningError(f"zk0d is not running: {error.message}", hint) from error
