"""What the node tells the hub of itself: hello, and a membership with coarse statistics; what it hears of federations.

No task text, no name of a file, user or host (docs/protocol.md §7). Not for tasks and updates (uplink.py, exchange.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog

from zk0d import __version__
from zk0d.daemon import datasets
from zk0d.daemon.store import Federation, Store
from zk0d.errors import DatasetError, RefusedError
from zk0d.link.node import NodeLink

log = structlog.get_logger("membership")


class Membership:
    """The node's federations, as said and heard over one link."""

    def __init__(self, store: Store, on_change: Callable[[], None]) -> None:
        self._store, self._on_change = store, on_change
        self._joined_as: dict[str, Any] = {}
        self.heard = 0
        """How often the hub told of its federations."""

    def forget(self) -> None:
        """A new link: everything is said again."""
        self._joined_as.clear()

    async def tell(self, link: NodeLink) -> None:
        """Say hello and (re)join. LinkLostError goes to the caller."""
        await self._hello(link)
        for federation in self._store.federations():
            await self._join(link, federation)

    async def part(self, link: NodeLink) -> None:
        """Tell the hub what was left, once no update of it waits any more. LinkLostError goes to the caller."""
        waiting = {u.federation for u in self._store.updates("waiting")}
        for name in self._store.leaving():
            if name in waiting:
                continue
            try:
                await link.request("federation.leave", {"federation": name})
            except RefusedError as error:
                if error.reason not in ("unknown_type", "no_federation"):
                    log.info("the hub does not hear that a federation was left", federation=name, why=error.message)
                    continue
                # An older hub does not know the word: this node asks it for nothing more.
            self._joined_as.pop(name, None)
            if self._store.federation(name) is None:  # else it was joined again while the hub was told
                self._store.left(name)
                self._store.event("federation", f"left federation {name}", federation=name)

    async def _hello(self, link: NodeLink) -> None:
        names = [f.name for f in self._store.federations()]
        reply = await link.request("hello", {"software": f"zk0d/{__version__}", "federations": names})
        offered = [
            dict(f) for f in reply.get("federations", []) if isinstance(f, dict) and isinstance(f.get("name"), str)
        ]
        for found in offered:
            if not isinstance(found.get("version"), int) or found["version"] < 0:
                found["version"] = None  # it gathers: there is no version yet
        self.heard += 1
        self._store.put("offered", [{k: f.get(k) for k in ("name", "state", "version")} for f in offered])
        for gone in self._joined_as.keys() - {f["name"] for f in offered}:
            del self._joined_as[gone]  # removed at the hub: to be joined anew if another of this name comes
        for found in offered:
            known = self._store.federation(found["name"])
            if known is not None and known.state != "joining":
                self._set_federation(known, found)

    def _set_federation(self, known: Federation, found: dict[str, Any]) -> None:
        fields: dict[str, Any] = {}
        if found.get("state") in ("gathering", "open", "finished"):
            fields["state"] = found["state"]
        if isinstance(found.get("spec_digest"), str):
            fields["spec_digest"] = found["spec_digest"]
        if isinstance(found.get("version"), int) and found["version"] >= 0:
            fields["version"] = found["version"]
        if fields:
            if fields.get("state", known.state) != known.state:
                self._store.event("federation", f"federation {known.name} is {fields['state']}", federation=known.name)
            self._store.set_federation(known.name, **fields)
            self._on_change()

    async def _join(self, link: NodeLink, federation: Federation) -> None:
        """Tell the hub that we are a member, with coarse statistics; again when they changed, and on a new link."""
        own = [d for d in self._store.datasets() if d.train and d.episodes]
        try:
            stats = datasets.coarse_statistics(own)
        except DatasetError as error:  # a disk that is not plugged in must not hold up updates and versions
            self._joined_as.pop(federation.name, None)
            self._store.set_federation(federation.name, reason=error.message)
            return
        body = {
            "federation": federation.name,
            "stats": stats,
            "datasets": [
                {
                    "uuid": self._store.wire_id(d.name, federation.name),
                    "episodes": d.episodes,
                    "frames": datasets.coarse_count(d.frames),
                }
                for d in own
            ],
        }
        if self._joined_as.get(federation.name) == body and federation.state != "joining":
            return  # one that was left and is joined again says it again
        if not own and federation.state == "joining":
            there = [str(f["name"]) for f in self._store.get("offered", [])]
            reason = "waits for a dataset to train on"
            if federation.name not in there:
                reason = f"the hub refuses: it has no federation {federation.name!r}, but: {', '.join(there) or 'none'}"
            self._store.set_federation(federation.name, reason=reason)
            return
        try:
            reply = await link.request("federation.join", body)
        except RefusedError as error:
            self._store.set_federation(federation.name, reason=f"the hub refuses: {error.message}")
            return
        self._joined_as[federation.name] = body
        if federation.state == "joining":
            self._store.event("federation", f"joined federation {federation.name}", federation=federation.name)
        self._store.set_federation(federation.name, reason="")
        self._set_federation(federation, reply)
