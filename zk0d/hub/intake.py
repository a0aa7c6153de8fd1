"""Taking updates in: offers judged, payloads fetched and inspected, admitted or refused. Nothing is dropped silently.

What may count is in rounds.py and admission.py, the merging in merging.py.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from typing import Any

import structlog

from zk0d.errors import LinkClosedError, LinkLostError, PayloadError, ProtocolError, RefusedError, Zk0Error
from zk0d.hub import admission, refusals, rounds
from zk0d.hub.receipts import Statement, check_signature, read_statement
from zk0d.hub.state import FederationState
from zk0d.model.blobs import DiskFullError

log = structlog.get_logger("federation")


class Intake:
    """One federation's door for updates. `admitted` is called after each update that counts."""

    def __init__(self, federation: FederationState, admitted: Callable[[], None]) -> None:
        self._fed, self._hub, self._ledger = federation, federation.hub, federation.ledger
        self._admitted = admitted

    def offer(self, node: str, statement: Statement) -> dict[str, Any]:
        """`update.offer`: note the update and begin to take it, or say what has become of it."""
        known = self._ledger.update(statement.digest)
        if known is None or known["node"] != node:
            self._check_offer(node, statement)
            self._ledger.offer(statement)
            log.info(
                "update offered", federation=self._fed.name, node=node, update=statement.digest, size=statement.size
            )
        answer = self.standing(node, statement.digest)
        if answer.get("state") == "receiving":
            self._hub.spawn(self.receive(statement), f"receive {node} {statement.digest}")
        return answer

    def _check_offer(self, node: str, s: Statement) -> None:
        """Everything that can be judged before a byte of the payload moves. Raises RefusedError."""
        base = self._ledger.version(self._fed.name, s.base_version) if s.base else None
        if s.base and (base is None or base["digest"] != s.base):
            raise RefusedError(
                f"it was trained on another version {s.base_version} than this hub's, which has been restored since",
                reason="unknown_base",
            )
        task = self._ledger.task_row(s.task)
        if s.node != node or task is None or (task["node"], task["federation"]) != (node, self._fed.name):
            raise RefusedError("the update answers no task of this node", reason="no_task")
        if s.base_version != task["version"]:
            raise RefusedError(f"the task was for version {task['version']}, not {s.base_version}", reason="no_task")
        if why := rounds.impossible(json.loads(task["body"]), s.steps, s.samples):
            raise RefusedError(f"the update is not accepted: {why}", reason="bad_statement")
        if self._ledger.update_of_task(s.task) is not None:
            raise RefusedError("this task has been answered by another update", reason="task_answered")
        if why := rounds.unacceptable(self._fed.rules, self._ledger.snapshot(self._fed.name), node, s.base_version):
            raise RefusedError(f"the update is not accepted: {why}", reason="too_late")
        if task["answered"]:
            raise RefusedError("this task ended when its node left the federation", reason="too_late")
        limit = admission.size_limit(self._fed.spec)
        if s.size > limit:
            raise RefusedError(
                f"a payload of {s.size} bytes; this federation's have at most {limit}", reason="too_large"
            )
        self._check_fresh(s)
        try:
            check_signature(s, self._hub.signer(s))
        except ProtocolError as error:
            raise RefusedError(error.message, reason="bad_signature") from None
        self._hub.check_quota(node, s.size)

    def _check_fresh(self, s: Statement) -> None:
        """The payload is this update's alone, so that no work is credited twice, nor without its bytes being sent."""
        had = self._ledger.payload_had(s.payload, s.node)
        if had == "nothing":
            return
        if had == "arriving":
            raise RefusedError("the same payload arrives just now", "offer it again later", reason="busy")
        if had:
            raise RefusedError("the payload has been given before, as another update", reason="bad_payload")
        if self._hub.blobs.has(s.payload):
            if self._ledger.blob_needed(s.payload):
                raise RefusedError("the payload is a published version, not a delta", reason="bad_payload")
            self._hub.discard(s.payload)  # of an offer that was refused, or withdrawn for a new key
            if self._hub.blobs.has(s.payload):
                raise RefusedError("a backup is being made", "offer it again later", reason="busy")

    def standing(self, node: str, digest: str) -> dict[str, Any]:
        """What has become of a node's update: its receipt, or `receiving`. RefusedError: it was refused, or unknown."""
        row = self._ledger.update(digest)
        if row is None or row["node"] != node:
            raise RefusedError("the hub does not know this update: offer it", reason="not_found")
        if row["state"] == "refused":
            no = RefusedError(f"the update is refused: {row['reason']}", reason=refusals.CODE)
            no.signed = self._ledger.refusals.signed(row)
            raise no
        receipt = self._ledger.receipt(digest)
        if receipt is None:
            return {"state": "receiving"}
        return {"state": row["state"], "receipt": receipt[0], "receipt_signature": receipt[1]}

    def node_is_here(self, node: str) -> None:
        """Take up what the node offered before its link or this hub went away."""
        for row in self._ledger.receiving(node):
            if row["federation"] == self._fed.name:
                statement = read_statement(bytes(row["statement"]), bytes(row["signature"]))
                self._hub.spawn(self.receive(statement), f"receive {node} {statement.digest}")

    async def receive(self, s: Statement) -> None:
        """Fetch an offered payload, judge it, and let it count or refuse it. Does nothing while that is under way."""
        if self._hub.aftermath.is_receiving(s.digest):
            return
        try:
            with self._hub.aftermath.receiving(s.digest):
                await self._receive(s)
        except (LinkLostError, LinkClosedError) as error:
            log.info("update not received yet; waits for the node", node=s.node, update=s.digest, why=str(error))
        except RefusedError as error:
            log.info("the node does not hand its update out yet", node=s.node, update=s.digest, why=str(error))
        except (PayloadError, ProtocolError) as error:
            self._ledger.refuse(s.digest, error.message, fault=True)
        except admission.CancelledError:
            pass
        except (Zk0Error, OSError, sqlite3.Error) as error:
            told, self._fed.problem = bool(self._fed.problem), f"an update cannot be received: {error}"
            if not told:  # all that wait offer again every few seconds
                log.error("update cannot be received", node=s.node, update=s.digest, error=str(error))
            if isinstance(error, DiskFullError):
                self._hub.aftermath.make_room()

    async def _receive(self, s: Statement) -> None:
        limit = min(s.size, admission.size_limit(self._fed.spec))
        hashed = not self._hub.blobs.has(s.payload)  # a transfer proves what comes by the name
        if hashed:
            path = await self._hub.fetch(s.node, s.payload, limit)
        else:
            path = self._hub.blobs.path(s.payload)
        certificate, max_norm = self._hub.signer(s), self._fed.config["admission.max_norm"]
        norm = await asyncio.to_thread(
            admission.inspect, path, s, certificate, self._fed.spec, max_norm, self._hub.stopping, hashed=hashed
        )
        if not self._hub.still_allowed(s.node):
            self._ledger.refuse(s.digest, "the node was revoked before its update was admitted", fault=False)
            return
        snapshot = self._ledger.snapshot(self._fed.name)
        if why := rounds.unacceptable(self._fed.rules, snapshot, s.node, s.base_version):
            self._ledger.refuse(s.digest, f"it came too late: {why}", fault=False)
            return
        row = self._ledger.update(s.digest)
        if row is None or row["state"] != "receiving":
            return
        receipt, signature = self._ledger.admit(s.digest, norm)
        self._fed.problem = ""
        log.info("update admitted", federation=self._fed.name, node=s.node, update=s.digest, norm=round(norm, 4))
        await self._hub.push(s.node, "receipt", {"receipt": receipt, "signature": signature})
        self._admitted()
