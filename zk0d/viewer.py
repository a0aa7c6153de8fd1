"""Where a Rerun viewer may be: on this machine only, for it is shown frames and joints, which leave it in no way.

Not for showing anything (robot/rerun_view.py).
"""

from __future__ import annotations

import ipaddress

from zk0d.errors import ConfigError


def place(where: str) -> tuple[str | None, int | None]:
    """Host and port of "HOST:PORT", both None for "spawn". Raises ConfigError for another machine's."""
    host, _, port = where.rpartition(":")
    if where == "spawn":
        return None, None
    if not (host and port.isdigit()):
        raise ConfigError(
            f"rerun: {where!r} is no place of a viewer", "spawn, or 127.0.0.1:PORT such as 127.0.0.1:9876"
        )
    try:
        here = host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        here = False
    if not here:
        raise ConfigError(
            f"rerun: {host} is not this machine, and frames and joints do not leave it",
            "127.0.0.1:PORT; to look from elsewhere, make a tunnel yourself: ssh -R PORT:127.0.0.1:PORT",
        )
    return host, int(port)
