"""What a hub does for itself, now and then: its server certificate, applications nobody looks at, late deletions.

Not for rounds (federation.py) nor evaluations.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from zk0d.errors import Zk0Error
from zk0d.link.identity import Authority, ServerIdentity
from zk0d.link.lifetime import Lifetime

log = structlog.get_logger("upkeep")

LOOK_S, RETRY_S = 600.0, 60.0


def fresh_server(authority: Authority, directory: Path, days: float) -> ServerIdentity:
    """The hub's server identity in `directory`, renewed first when less than a third of its life is left."""
    found = ServerIdentity.load(directory)
    try:
        due = Lifetime.of(found.certificate.read_bytes()).due(time.time())
    except ValueError:
        return found  # not a certificate: TLS says so, with the file's name
    if due:
        authority.renew_server(found, days)
        log.info("server certificate renewed", days=days)
    return found


class Upkeep:
    """`renewed(identity)` is called with a renewed server identity, `chores` are called at every look."""

    def __init__(
        self,
        authority: Authority,
        keys: Path,
        days: float,
        renewed: Callable[[ServerIdentity], None],
        chores: list[Callable[[], object]],
    ) -> None:
        self._authority, self._keys, self._days = authority, keys, days
        self._renewed, self._chores = renewed, chores

    async def run(self) -> None:
        """For ever; a chore that fails is told and tried again at the next look."""
        while True:
            await asyncio.sleep(self._pause())
            for chore in (self._certificate, *self._chores):
                try:
                    chore()
                except (Zk0Error, OSError) as error:
                    log.error("upkeep failed", error=str(error))
                except Exception:
                    log.exception("upkeep met a defect")

    def _pause(self) -> float:
        try:
            due = Lifetime.of((self._keys / "server.pem").read_bytes()).due_at
        except (OSError, ValueError):
            return LOOK_S
        left = due - time.time()
        return min(LOOK_S, max(0.05, left)) if left > 0 else RETRY_S  # it was due and could not be renewed

    def _certificate(self) -> None:
        before = (self._keys / "server.pem").read_bytes()
        identity = fresh_server(self._authority, self._keys, self._days)
        if identity.certificate.read_bytes() != before:
            self._renewed(identity)
