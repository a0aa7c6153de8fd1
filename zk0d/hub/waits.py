"""How long things have waited, though the machine's clock is set while they do. No I/O, no clock of its own.

Deadlines are kept in seconds since the epoch, so that they pass while the hub is off or its machine sleeps. A clock
that is set back would put them off by as much: then the monotonic clock counts, from when a time was first seen here.
"""

from __future__ import annotations

from dataclasses import replace

from zk0d.hub.rounds import Snapshot


class Waits:
    """Of one federation, for as long as the hub runs."""

    def __init__(self) -> None:
        self._seen: dict[float, float] = {}
        """A time of the snapshot → the monotonic clock when it was first there."""

    def steady(self, snapshot: Snapshot, now: float, monotonic: float) -> Snapshot:
        """The snapshot with none of its times later than what has been waited since allows: those that came before
        `now` was set back are moved. Their order stays."""
        seen: dict[float, float] = {}

        def since(at: float) -> float:
            seen[at] = self._seen.get(at, monotonic)
            return min(at, now - (monotonic - seen[at]))

        made = replace(
            snapshot,
            opened_at=since(snapshot.opened_at),
            held_at=since(snapshot.held_at),
            buffer=tuple(replace(g, admitted_at=since(g.admitted_at)) for g in snapshot.buffer),
            refusals={node: (times, since(last)) for node, (times, last) in snapshot.refusals.items()},
        )
        self._seen = seen
        return made
