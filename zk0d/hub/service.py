"""The hub: one object that holds store, link, federations and evaluations together, and answers the nodes.

Everything a node may ask comes in at `_request`; everything a maintainer may ask is in admin.py. Imports no torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sqlite3
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import structlog

from zk0d.errors import ConfigError, LinkLostError, RefusedError, UsageError, Zk0Error
from zk0d.hub.config import Config, load_hub, parse_address
from zk0d.hub.discards import Discards
from zk0d.hub.evaluation import Evaluations
from zk0d.hub.federation import FederationRunner
from zk0d.hub.ledger import Ledger
from zk0d.hub.outlets import Outlets
from zk0d.hub.quotas import Quotas
from zk0d.hub.receipts import UPDATE_PREFIX, ReceiptKey, Statement, read_statement
from zk0d.hub.refusals import Aftermath
from zk0d.hub.registry import Bounds, Registry
from zk0d.hub.store import Store
from zk0d.hub.upkeep import Upkeep, fresh_server
from zk0d.invitation import Invitation
from zk0d.link.hub import HubLink
from zk0d.link.identity import Authority
from zk0d.link.rates import Rate
from zk0d.link.state import LinkLimits
from zk0d.model.blobs import BlobStore

log = structlog.get_logger("hub")

REQUESTS_PER_S = 20.0
"""Of one node in the long run; one that trains asks once in some seconds. Most requests cost a transaction."""


class Hub:
    """A running hub in `directory`. Make it inside an event loop, `start`, and `close`."""

    def __init__(self, directory: Path, limits: LinkLimits | None = None) -> None:
        self.directory = directory
        self.config = load_hub(directory)
        self.authority = Authority.load(directory / "ca")
        self.receipt_key = ReceiptKey.load(directory / "keys")
        self.blobs = BlobStore(directory / "blobs")  # refuses an older layout: before the database is migrated
        _require_memory(directory)
        self.store = Store(directory / "hub.db")
        self.now = self.store.now
        self.started_at = self.now()
        self.registry = Registry(self.store, self.authority, _bounds(self.config))
        self.registry.on_replaced = self._replaced
        self.ledger = Ledger(self.store, self.receipt_key)
        self.discard = Discards(directory, self.blobs, self.ledger.blob_needed)
        quota = (self.config["quota.updates_per_day"], self.config["quota.bytes_per_day"])
        self.check_quota = Quotas(self.store, *quota).check
        self._configs: dict[str, Config] = {}
        self.outlets = Outlets(directory, self.config, self.store, self._configs)
        self.evaluations = Evaluations(
            directory, self.config, self.ledger, self.blobs, self._configs, self.outlets.wake, self._merge_room
        )
        self.federations = {row["name"]: FederationRunner(row["name"], self) for row in self.ledger.federations()}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        listen = parse_address(self.config["hub.listen"])
        assert listen is not None
        self.link = HubLink(
            host=listen[0],
            port=listen[1],
            authority=self.authority,
            server_identity=fresh_server(self.authority, directory / "keys", self.config["certificates.server_days"]),
            run_dir=directory / "run",
            blobs=self.blobs,
            allowed=self.registry.allowed,
            on_request=self._request,
            may_fetch=self._may_fetch,
            on_enroll=self._enroll,
            limits=limits or _limits(self.config),
        )
        self.aftermath = Aftermath(self, self.ledger.refusals)
        self._upkeep = Upkeep(
            self.authority, directory / "keys", self.config["certificates.server_days"], self.link.use,
            [self.registry.forget_stale, self.discard.catch_up, self.aftermath.forget_parts],
        )  # fmt: skip

    async def start(self) -> None:
        """Take up what a stop or a kill interrupted, and listen. ConfigError if the address cannot be had."""
        self.aftermath.sweep()
        await self.link.start()
        for federation in self.federations.values():
            federation.resume()
        self.evaluations.start()
        self.outlets.start()
        self.spawn(self._upkeep.run(), "upkeep")
        log.info("hub serves", listen=self.config["hub.listen"], port=self.link.port, ca=self.authority.fingerprint,
                 federations=len(self.federations))  # fmt: skip

    async def close(self) -> None:
        """End links, workers and merges; everything committed is kept and the rest is taken up at the next start."""
        self._stopping = True
        for federation in self.federations.values():
            federation.close()
        await asyncio.gather(self.link.close(), self.evaluations.close(), self.outlets.close())
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=3.0)
        self.store.close()

    # -- what federations need (HubServices) -----------------------------------------------------------------------

    def stopping(self) -> bool:
        return self._stopping

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run `work` beside everything else; a defect in it is logged and harms nothing else."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a background task failed", task=task.get_name(), exc_info=error)

    def signer(self, statement: Statement) -> bytes:
        return self.registry.certificates.signer(
            statement.node, UPDATE_PREFIX + statement.raw, statement.signature
        )  # fmt: skip

    def still_allowed(self, node: str) -> bool:
        return self.registry.approved(node)

    async def push(self, node: str, kind: str, body: dict[str, Any]) -> None:
        """Tell a node; nothing happens when it is not linked (it asks when it is back)."""
        with contextlib.suppress(LinkLostError):
            await self.link.push(node, kind, body)

    async def fetch(self, node: str, digest: str, limit: int) -> Path:
        self.blobs.headroom = self._merge_room()
        self.blobs.require_arrival(digest, limit)  # before its node is asked for anything
        return await self.link.fetch(node, digest, limit)

    def _merge_room(self) -> int:
        return sum(f.merge_room for f in self.federations.values())

    def version_made(self, federation: str) -> None:
        """The version is committed: nothing that fails here may keep it from being told."""
        self.evaluations.wake()
        moving = {p.digest for transfers in self.link.transfers().values() for p in transfers}
        try:
            for digest in self.ledger.retention.retire(federation, self._configs[federation], moving):
                self.discard(digest)
        except (OSError, sqlite3.Error) as error:
            log.warning("old versions stay for now", federation=federation, error=str(error))

    def settled(self, federation: str, config: Config) -> None:
        """What is in force of its settings: versions are judged, kept and sent by these."""
        self._configs[federation] = config
        self.outlets.wake()

    # -- what nodes ask --------------------------------------------------------------------------------------------

    async def _enroll(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            reply = self.registry.enroll(request)
        except RefusedError as error:
            log.warning("enrolment refused", address=request.get("address"), reason=error.message)
            raise
        log.info("enrolment", state=reply["state"], node=reply["node_id"], address=request.get("address"))
        return {**reply, "receipt_key": self.receipt_key.public, "hub": self.config["hub.name"]}

    def _may_fetch(self, node: str, digest: str) -> bool:
        for name in self.ledger.published_in(digest):
            if self.ledger.members.has(name, node):
                if not self.ledger.assessments.took(node, digest):
                    with contextlib.suppress(sqlite3.Error):  # a full disk: bytes_down will lack it
                        self.ledger.assessments.downloaded(node, digest, name, self.blobs.size(digest))
                return True
        self.ledger.retention.refuse_retired(node, digest)
        return False

    async def _request(self, node: str, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        """Answer one request of a node. Raises RefusedError with the reason."""
        match kind:
            case "hello":
                return self._hello(node, body)
            case "federation.join":
                return self._federation(body["federation"]).join(node, body)
            case "federation.leave":
                return self._federation(body["federation"]).leave(node)
            case "task.request":
                return self._federation(body["federation"]).task(node)
            case "update.offer":
                return self._offer(node, body)
            case "receipt.get":
                return self._receipt(node, str(body["update"]))
            case "log.head":
                return self.ledger.log.head(body["size"])
            case "log.proof":
                return self._proof(node, body["update"], body["size"])
            case "version.latest":
                return self._federation(body["federation"]).latest()
            case "certificate.renew":
                return {"certificate": self.registry.renew(node, body["csr"])}
        raise RefusedError(f"{kind} is not something a node asks a hub", reason="unknown_type")

    def _hello(self, node: str, body: dict[str, Any]) -> dict[str, Any]:
        with contextlib.suppress(sqlite3.Error):  # a full disk: nothing depends on it
            self.registry.seen(node)
        log.info("hello", node=node, software=body["software"][:80])
        for federation in self.federations.values():
            federation.node_is_here(node)
        return {
            "node_id": node,
            "hub": self.config["hub.name"],
            "federations": [
                {"name": f.name, "spec_digest": f.row["spec"], "state": f.row["phase"],
                 "version": self.ledger.snapshot(f.name).version}
                for f in self.federations.values()
            ],
        }  # fmt: skip

    def _federation(self, name: str) -> FederationRunner:
        found = self.federations.get(name)
        if found is None:
            raise RefusedError(f"there is no federation {name[:80]!r} here", reason="no_federation")
        return found

    def _offer(self, node: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            statement = read_statement(body["statement"], body["signature"])
        except Zk0Error as error:
            raise RefusedError(error.message, reason="bad_statement") from None
        try:
            return self._federation(statement.federation).offer(node, statement)
        except RefusedError as no:
            no.signed = no.signed or self.receipt_key.refuse(statement, no.reason, no.message, self.now())
            raise

    def _receipt(self, node: str, update: str) -> dict[str, Any]:
        row = self.ledger.update(update)
        if row is None or row["node"] != node:
            raise RefusedError("the hub does not know this update: offer it", reason="not_found")
        if row["state"] == "refused":
            refusal, signature = self.ledger.refusals.signed(row)
            return {"state": "refused", "reason": row["reason"], "refusal": refusal, "refusal_signature": signature}
        return self._federation(row["federation"]).standing(node, update)

    def _proof(self, node: str, update: str, size: int) -> dict[str, Any]:
        row = self.ledger.update(update)
        if row is None or row["node"] != node:
            raise RefusedError("the hub does not know this update", reason="not_found")
        return {"entries": self.ledger.log.prove(update, size)}

    # -- what maintainers do ---------------------------------------------------------------------------------------

    def invitation(self, label: str, hours: float, actor: str, address: str = "", replaces: str = "") -> Invitation:
        """A new invitation. `address` HOST:PORT overrides what the settings advertise; `replaces`: a node's id."""
        told = address or self.config["hub.advertise"] or f"{self._reachable_host()}:{self.link.port}"
        found = parse_address(told)
        if found is None or found[1] == 0:
            raise UsageError(f"{told!r} is no address", "give HOST:PORT")
        return Invitation(*found, self.authority.fingerprint, self.registry.invite(label, hours, actor, replaces))

    def _reachable_host(self) -> str:
        listen = parse_address(self.config["hub.listen"])
        assert listen is not None
        host = listen[0] if listen[0] not in ("0.0.0.0", "::") else socket.getfqdn()
        return f"[{host}]" if ":" in host else host

    def revoke(self, node: str, reason: str, actor: str) -> str:
        """Lock a node out, close its link and refuse what of it is still arriving → its id."""
        row = self.registry.revoke(node, reason, actor)
        why = f"revoked: {reason or 'no reason given'}"
        self.link.disconnect(row["node"], why)
        self.ledger.refusals.of_node(row["node"], f"the node was {why}", actor)
        self._stop_receiving(row["node"])
        return str(row["node"])

    def _replaced(self, node: str) -> None:
        """The node has a new key: what the old one's link still brings is not taken."""
        self.link.disconnect(node, "the node has a new key")
        self._stop_receiving(node)

    def _stop_receiving(self, node: str) -> None:
        for task in self._tasks:
            if task.get_name().startswith(f"receive {node} "):
                task.cancel()
        for federation in self.federations.values():
            federation.consider()  # one that was admitted just now counts

    def add(self, name: str) -> None:
        """Serve a federation that is in the ledger."""
        self.federations[name] = FederationRunner(name, self)

    def forget(self, name: str) -> None:
        """Serve a federation no more that the ledger no longer has."""
        self.federations.pop(name).close()
        self._configs.pop(name, None)
        self.outlets.problems.pop(name, None)


def _require_memory(directory: Path) -> None:
    """ConfigError where `init` made a database and there is none any more: a new one would know no node, and begin a
    second log of receipts under the same key."""
    path = directory / "hub.db"
    if not path.exists() or not path.stat().st_size:
        raise ConfigError(
            f"{path} is {'empty' if path.exists() else 'missing'}: the hub has lost its nodes, versions and receipts",
            f"`zk0-hub --dir NEW restore BACKUP` makes a hub of a backup; to begin anew, move {directory} away and run"
            " `zk0-hub init`: every node then enrols again",
        )


def _bounds(config: Config) -> Bounds:
    keys = ("max_pending", "max_pending_per_address", "pending_days")
    return Bounds(config["certificates.node_days"], *(config[f"enrolment.{k}"] for k in keys))


def _limits(config: Config) -> LinkLimits:
    """The link's limits with the bandwidth that hub.toml allows."""
    upload, download, node_upload, node_download = (
        Rate.parse(config[f"link.{name}"]) for name in ("max_upload", "max_download", "node_upload", "node_download")
    )
    return LinkLimits(max_upload=upload, max_download=download, node_upload=node_upload, node_download=node_download,
                      requests_per_s=REQUESTS_PER_S)  # fmt: skip
