"""The node's certificate kept good without anyone's help: renewed over the live link before its last third.

One that expired while the machine was off, or that a restored hub has forgotten, is asked for again as in enrolment,
with the same key. Not for a first enrolment or a lost key (enrolment.py): these need the maintainer's word.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from zk0d.daemon.store import Hub, Store
from zk0d.errors import ConfigError, LinkClosedError, LinkLostError, ProtocolError, RefusedError, Zk0Error
from zk0d.link.lifetime import Lifetime
from zk0d.link.node import NodeLink
from zk0d.link.node_identity import NodeIdentity

log = structlog.get_logger("renewal")

_LOOK_S = 3600.0
_TRY_AGAIN_S = 60.0
_REFUSED = ("expired", "not_allowed")
"""Refusals of the link that another certificate may mend."""
_ASK_MIN_S, _ASK_MAX_S = 5.0, 3600.0


class Renewal:
    """Runs beside the link. `new_key`: each renewal takes another key."""

    def __init__(
        self,
        store: Store,
        link: NodeLink,
        identity: NodeIdentity,
        hub: Hub,
        *,
        new_key: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._link, self._identity, self._hub = store, link, identity, hub
        self._new_key, self._now = new_key, clock
        self._wake = asyncio.Event()
        self._asked, self._pause = 0.0, _ASK_MIN_S
        link.on_state.append(lambda state: self._wake.set())

    async def run(self) -> None:
        """Until the link is closed. What fails is told once and tried again."""
        told = ""
        while True:
            self._wake.clear()
            try:
                pause = await self._turn()
                told = ""
            except LinkClosedError:
                return
            except Zk0Error as error:
                pause = _TRY_AGAIN_S
                if str(error) != told:
                    told = str(error)
                    log.warning("no renewed certificate", error=told)
                    self._store.event("enrol", f"the certificate is not renewed: {error.message}")
            except Exception:
                log.exception("renewal met a defect")
                pause = _TRY_AGAIN_S
            try:
                await asyncio.wait_for(self._wake.wait(), pause)
            except TimeoutError:
                pass

    async def _turn(self) -> float:
        """Do what is due; seconds until the next look (a change of the link's state looks at once)."""
        try:
            life = Lifetime.of(self._identity.certificate)
        except (OSError, ValueError) as error:
            raise ConfigError(f"the node's certificate cannot be read: {error}", "enrol again") from None
        state, now = self._link.state, self._now()
        if state.phase == "refused" and state.code in _REFUSED:
            return await self._by_enrolment(now)
        self._pause = _ASK_MIN_S
        if not life.due(now):
            return min(_LOOK_S, max(0.1, life.due_at - now))
        if state.phase != "connected":
            return _TRY_AGAIN_S
        try:
            reply = await self._link.request("certificate.renew", {"csr": self._identity.csr(new_key=self._new_key)})
        except LinkLostError:
            return 1.0
        except RefusedError as error:
            if error.reason not in ("unknown_type", "not_due"):
                raise
            return _LOOK_S  # an older hub: its certificates last as long as they last
        self._install(reply.get("certificate"), self._identity.ca_path.read_bytes())
        self._link.renewed()
        return 1.0

    def _install(self, certificate: object, ca: bytes) -> None:
        if not isinstance(certificate, bytes):
            raise ProtocolError("the hub's answer holds no certificate")
        before = self._identity.fingerprint
        self._identity.install(certificate, ca, self._hub.node_id)
        until = time.strftime("%Y-%m-%d", time.gmtime(Lifetime.of(certificate).end))
        key = "a new key" if self._identity.fingerprint != before else "the same key"
        log.info("certificate renewed", until=until, key=key)
        self._store.event("enrol", f"the hub renewed this node's certificate, for {key}, until {until}")

    async def _by_enrolment(self, now: float) -> float:
        """Ask for a certificate as at first, with the key the hub knows."""
        if now < self._asked + self._pause:
            return self._asked + self._pause - now
        from zk0d.link.enroll import enroll
        from zk0d.link.identity import fingerprint

        self._asked, self._pause = now, min(_ASK_MAX_S, 2 * self._pause)
        ca = self._identity.ca_path.read_bytes()
        reply = await enroll(self._hub.host, self._hub.port, {"csr": self._identity.csr()}, fingerprint(ca))
        if reply.get("state") != "approved":
            raise RefusedError(
                "the hub does not know this node's key any more and waits for its maintainer's approval",
                f"tell the maintainer that this was node {self._hub.node_id}",
            )
        if reply.get("node_id") != self._hub.node_id:
            raise RefusedError(f"the hub names this node {reply.get('node_id')!r} now", "run `zk0ctl enroll` again")
        self._install(reply.get("certificate"), ca)
        self._link.retry_now()
        return self._pause
