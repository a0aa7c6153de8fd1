"""Updates out, receipts and versions in: what must survive every crash between a finished training and the hub's word.

An update is kept, signed, until the hub's signed receipt is verified and stored; it is offered again until then.
Not for tasks and membership (uplink.py) nor for how bytes travel (zk0d.link).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from zk0d.daemon.evidence import PER_TURN, RECEIPT_PREFIX, Evidence, check_refusal, is_final, verify_signature
from zk0d.daemon.store import Hub, Store, Task, Update, Version
from zk0d.durable import canonical_json, digest_of
from zk0d.errors import LinkLostError, ProtocolError, RefusedError, UsageError, WorkerError
from zk0d.link.node import NodeLink
from zk0d.link.node_identity import NodeIdentity
from zk0d.model.blobs import BlobStore

log = structlog.get_logger("exchange")

UPDATE_PREFIX = b"zk0 update v1\0"
_FINAL = ("bad_update", "bad_statement", "bad_signature", "bad_payload", "too_large", "too_late", "task_answered",
          "unknown_base")  # fmt: skip
"""Refusals that are about the update itself. After any other (a full disk there, a task that the hub does not know) it
is kept and offered again: an update is never let go for a reason this program does not know."""


class Exchange:
    """Delivers updates and collects receipts and versions over an open link."""

    def __init__(self, store: Store, blobs: BlobStore, keep: int, on_change: Callable[[], None]) -> None:
        self._store, self._blobs, self._keep, self._on_change = store, blobs, keep, on_change
        self._link: NodeLink | None = None
        self._identity: NodeIdentity | None = None
        self._hub: Hub | None = None
        self._evidence = Evidence(store, on_change)
        self._asked: dict[str, Any] = {}
        self._unknown: set[str] = set()
        self.in_use: set[str] = set()
        """Blobs that a worker reads now: not to be pruned."""

    def open(self, link: NodeLink, identity: NodeIdentity, hub: Hub) -> None:
        """Use this link; what waits for a receipt may be taken by the hub from now on."""
        self._link, self._identity, self._hub = link, identity, hub
        for update in self._store.updates("waiting"):
            self._sign_again(update)
            if self._blobs.has(update.payload):
                link.share(update.payload)

    # -- updates -----------------------------------------------------------------------------------------------------

    async def keep(self, task: Task, result: dict[str, Any]) -> Update:
        """Make a finished training a durable, signed update. Raises WorkerError when the result cannot be one."""
        assert self._identity is not None and self._hub is not None
        path = Path(str(result.get("payload", "")))
        if not path.is_file():
            raise WorkerError(f"the trainer's payload {path} is not there")
        payload = await asyncio.to_thread(self._blobs.add_file, path)
        if payload != result.get("digest"):
            raise WorkerError(f"the trainer's payload is {payload}, it said {result.get('digest')}")
        statement = {
            "federation": task.federation,
            "task": task.id,
            "node": self._hub.node_id,
            "base_version": task.version,
            "payload": payload,
            "size": self._blobs.size(payload),
            "samples": int(result["samples"]),
            "steps": int(result["steps"]),
            "loss_first": float(result["loss_first"]),
            "loss_last": float(result["loss_last"]),
        }
        if task.body.get("state_base"):  # an older hub takes no field that it does not know
            statement["base"] = task.body["version_digest"]
        try:
            data = canonical_json(statement)
        except ValueError as error:
            raise WorkerError(f"the training diverged: {error}") from error
        update = Update(
            digest=digest_of(data),
            task=task.id,
            federation=task.federation,
            statement=data,
            signature=self._identity.sign(UPDATE_PREFIX + data),
            payload=payload,
            size=self._blobs.size(payload),
            state="waiting",
            reason="",
            created_at=time.time(),
        )
        self._store.add_update(update)
        self._store.event(
            "update", f"trained version {task.version} of {task.federation}: loss {result['loss_first']:.4g} →"
            f" {result['loss_last']:.4g}, update waits for the hub", federation=task.federation, version=task.version,
            task=task.id, update=update.digest,
        )  # fmt: skip
        return update

    def _sign_again(self, update: Update) -> None:
        """After a lost key: the work is this node's still, and the hub knows the new key only."""
        assert self._identity is not None and self._hub is not None
        data = UPDATE_PREFIX + update.statement
        try:
            verify_signature(self._identity.certificate, data, update.signature)
        except ProtocolError:
            if json.loads(update.statement)["node"] == self._hub.node_id:
                self._store.set_update(update.digest, signature=self._identity.sign(data))

    async def deliver(self) -> int:
        """Offer every waiting update and ask for its receipt. Gives how many still wait."""
        assert self._link is not None
        for update in self._store.updates("waiting"):
            self._link.share(update.payload)
            body = {"statement": update.statement, "signature": update.signature, "size": update.size}
            try:
                reply = await self._link.request("update.offer", body)
                self._take_reply(update, reply)
            except RefusedError as error:
                if error.reason in _FINAL:
                    self._refused(update, error.message, error.signed)
                else:
                    log.info("the hub takes the update later", update=update.digest, why=error.message)
                    self._store.set_update(update.digest, reason=error.message)
            except LinkLostError:
                break
            except ProtocolError as error:
                log.warning("the hub's word on an update is not accepted", update=update.digest, error=str(error))
                self._store.set_update(update.digest, reason=error.message)
        return len(self._store.updates("waiting"))

    def look_again(self) -> None:
        """Look at the hub's log with the next turn."""
        self._evidence.look_again()

    async def accept_head(self) -> dict[str, Any]:
        """Believe the hub's log from its present head on, though it does not continue the kept one, and forget the
        versions that the hub has lost, or may have made anew since: `versions`, how many. UsageError where there is
        neither. Where the log is believed, as nothing of ours was lost in it, the versions are told by the hub's newest
        alone: one that it has overtaken since cannot be."""
        if self._link is None or self._hub is None:
            raise UsageError("this node is not enrolled at a hub", "zk0ctl enroll first")
        if self._store.get("log", {}).get("state") != "refused":  # restored since the last look, perhaps
            self._evidence.look_again()
            await self.prove()
        agreed = await self._evidence.agreed(self._link, self._hub)
        versions = self._store.versions()  # one that comes while the hub is asked is not lost
        newest = await self._newest({v.federation for v in versions})
        believed: UsageError | None = None
        told: dict[str, Any] = {}
        try:
            told = await self._evidence.accept(self._link, self._hub)
        except UsageError as error:  # what this node has seen of the log the hub still has
            believed = error
        lost = self._forget_lost(versions, newest, agreed)
        if believed is not None and not lost:
            raise believed
        return {**told, "versions": lost}

    async def _newest(self, had: set[str]) -> dict[str, tuple[int, str]]:
        """Number and digest of the hub's newest version of each federation of `had` that we are in; -1: it has none, as
        it was restored from before that. Federations that it says nothing of are left out."""
        assert self._link is not None
        found: dict[str, tuple[int, str]] = {}
        for name in (f.name for f in self._store.federations() if f.name in had):
            try:
                reply = await self._link.request("version.latest", {"federation": name})
            except RefusedError as error:
                if error.reason != "no_federation":
                    log.warning("which versions are lost is not known", federation=name, why=error.message)
                    continue
                reply = {"number": None}
            number = reply.get("number")
            if number is None or isinstance(number, int):
                found[name] = (-1, "") if number is None else (number, str(reply.get("digest")))
        return found

    def _forget_lost(self, versions: list[Version], newest: dict[str, tuple[int, str]], agreed: float) -> int:
        """Forget versions that the restored hub has not got, or may have made anew: those from its newest on that are
        not that, and older ones that were first seen after `agreed` → how many."""
        count, task = 0, self._store.task_at_hand()
        for version in (v for v in versions if v.federation in newest):
            has = newest[version.federation]
            if (version.number, version.digest) != has and (version.number >= has[0] or version.at > agreed):
                if task is not None and (task.federation, task.version) == (version.federation, version.number):
                    self._store.set_task(task.id, state="dropped", reason="the hub has lost its version")
                self._store.forget_version(version.federation, version.number)
                if version.digest not in self.in_use and all(
                    v.digest != version.digest for v in self._store.versions()
                ):
                    self._blobs.delete(version.digest)
                count += 1
        return count

    async def prove(self) -> None:
        """See that the hub's log has our receipts and only ever grows."""
        assert self._link is not None and self._hub is not None
        await self._evidence.turn(self._link, self._hub)

    def _take_reply(self, update: Update, reply: dict[str, Any]) -> None:
        if reply.get("receipt") is not None:
            self.take_receipt(bytes(reply["receipt"]), bytes(reply["receipt_signature"]))
        elif reply.get("state") == "refused":
            signed = (reply.get("refusal"), reply.get("refusal_signature"))
            self._refused(update, str(reply.get("reason", "no reason given"))[:500], signed if all(signed) else None)
        else:
            self._store.set_update(update.digest, reason=str(reply.get("state", "offered"))[:100])

    def take_receipt(self, receipt: bytes, signature: bytes) -> None:
        """Verify and store a receipt; only then is its update let go. Raises ProtocolError when it is not for us."""
        assert self._hub is not None
        verify_signature(self._hub.receipt_key, RECEIPT_PREFIX + receipt, signature)
        try:
            value = json.loads(receipt)
            known = {u.digest: u for u in self._store.updates()}
            update = known[value["update"]]
            fits = (value["node"], value["federation"], value["payload"]) == (
                self._hub.node_id, update.federation, update.payload,
            )  # fmt: skip
        except (ValueError, KeyError, TypeError) as error:
            raise ProtocolError(f"a receipt for no update of ours: {error}") from error
        if not fits:
            raise ProtocolError(f"the receipt of update {update.digest} names another node, federation or payload")
        first = update.state != "receipted"
        self._store.add_receipt(update.digest, update.federation, receipt, signature)
        self._evidence.received(update.digest)
        self._unknown.discard(update.digest)
        if first:
            self._store.event("receipt", f"the hub confirms the update to version {value.get('base_version')}"
                              f" of {update.federation} ({update.size} bytes)", federation=update.federation,
                              version=value.get("base_version"), update=update.digest)  # fmt: skip
        self._release(update)
        self._on_change()

    async def ask_again(self) -> None:
        """What has become of updates whose receipt is not final: the hub may have refused them after all (a rollback,
        a federation's end) while this node was away. Once for each version, and after each start; the newest first, a
        few in a turn: after a hub was restored it may be the whole history, most of it unknown there for good."""
        assert self._link is not None
        final = {e.update for e in self._store.entries() if e.set_aside is None and is_final(e.receipt)}
        versions = {f.name: (f.state, f.version) for f in self._store.federations()}
        done, left = final | self._unknown, PER_TURN
        for update in reversed(self._store.updates("receipted")):
            now = versions.get(update.federation)
            if update.digest in done or self._asked.get(update.digest, ()) == now:
                continue
            if not left:
                return
            left -= 1
            try:
                self._take_reply(update, await self._link.request("receipt.get", {"update": update.digest}))
            except (RefusedError, ProtocolError) as error:
                log.info("no word on a receipted update", update=update.digest, why=error.message)
                if isinstance(error, RefusedError) and error.reason == "not_found":
                    self._unknown.add(update.digest)
            self._asked[update.digest] = now

    async def lost_by_hub(self, task: Task) -> bool:
        """Whether the hub, which gives this task though it has had our update, has lost that: it was restored from an
        older backup. Then the update answers the task no more; its receipts stay. One that the hub refused is not lost,
        though the hub may not know it: trained anew it would be the same, and refused again."""
        assert self._link is not None
        update = next((u for u in self._store.updates() if u.task == task.id), None)
        if update is None:  # we were killed between forgetting its task and taking that
            return True
        if update.state != "receipted":
            return False
        try:
            await self._link.request("receipt.get", {"update": update.digest})
        except RefusedError as error:
            if error.reason != "not_found":
                return False
        else:
            return False
        with self._store.transaction():
            self._store.forget_task_of(update.digest)
            times = self._store.count_loss(task.federation, task.id)
        often = "" if times == 1 else f" ({times} times by now; its receipts are kept: ask the maintainer)"
        self._store.event("update", f"the hub has lost the update to version {task.version} of {task.federation}, which"
                          f" it had confirmed{often}: it is trained anew", federation=task.federation,
                          version=task.version, update=update.digest)  # fmt: skip
        return True

    def answer(self, task: Task) -> str:
        """Why a task that was trained is not trained again, for a person."""
        update = next((u for u in self._store.updates() if u.task == task.id), None)
        if update is not None and update.state == "refused":
            return f"the hub refused the update to version {task.version}: {update.reason}"
        return "this node's update is on its way"

    def take_refusal(self, refusal: bytes, signature: bytes) -> None:
        """Keep a signed refusal that the hub sent by itself. Raises ProtocolError when it is not for us, or not due."""
        try:
            named = json.loads(refusal)["update"]
            update = next(u for u in self._store.updates() if u.digest == named)
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            raise ProtocolError(f"a refusal of no update of ours: {error!r}") from error
        if update.state != "refused":
            self._refused(update, "", (refusal, signature))

    def _refused(self, update: Update, reason: str, signed: tuple[Any, Any] | None) -> None:
        """Let the update go on the hub's word, which is kept. Raises ProtocolError when that is not good."""
        kept = (e for e in self._store.entries() if e.update == update.digest and e.set_aside is None)
        if any(is_final(e.receipt) for e in kept):
            raise ProtocolError(f"the hub refuses update {update.digest}, whose merge it has signed")
        if signed is not None:  # an older hub does not sign what it refuses
            assert self._hub is not None
            said = check_refusal(self._hub.receipt_key, bytes(signed[0]), bytes(signed[1]), update.digest)
            reason = reason or said["reason"]
            self._store.add_refusal(update.digest, bytes(signed[0]), bytes(signed[1]))
        self._store.set_update(update.digest, state="refused", reason=reason)
        self._store.event("update", f"the hub refused the update to {update.federation}: {reason}",
                          federation=update.federation, update=update.digest)  # fmt: skip
        self._release(update)
        self._on_change()

    def _release(self, update: Update) -> None:
        if any(u.payload == update.payload for u in self._store.updates("waiting")):
            return  # another update has the same bytes and still needs them
        if self._link is not None:
            self._link.unshare(update.payload)
        self._blobs.delete(update.payload)

    # -- versions ----------------------------------------------------------------------------------------------------

    async def latest(self, federation: str) -> None:
        """Learn of the newest version and fetch it; older ones beyond the number to keep go."""
        assert self._link is not None
        reply = await self._link.request("version.latest", {"federation": federation})
        if not isinstance(reply.get("number"), int) or not isinstance(reply.get("digest"), str):
            return
        known = {v.number: v for v in self._store.versions(federation)}
        number = int(reply["number"])
        if number in known and known[number].digest != reply["digest"]:
            raise ProtocolError(
                f"the hub now names another model as version {number} of {federation}",
                "ask the maintainer: a published version never changes; if they restored the hub from a backup:"
                " `zk0ctl receipts accept-head --yes`",
            )
        if number not in known:
            text = f"version {number} of {federation} is published"
            self._store.event("version", text, federation=federation, version=number)
        metrics = reply.get("metrics")
        version = Version(
            federation, number, reply["digest"], str(reply.get("spec_digest", "")), str(reply.get("base_digest", "")),
            metrics if isinstance(metrics, dict) else {}, time.time(), self._blobs.has(reply["digest"]),
        )  # fmt: skip
        self._store.put_version(version)
        self._store.set_federation(federation, version=number, spec_digest=version.spec_digest)
        self._on_change()
        await self.pull(version)
        self.prune(federation)

    async def pull(self, version: Version, *, base: bool = False) -> None:
        """Fetch a version with its spec, and its base if `base`."""
        assert self._link is not None
        for digest in (version.spec_digest, version.digest, version.base_digest if base else ""):
            if digest and not self._blobs.has(digest):
                await self._link.fetch(digest, self.relatives(version.federation, digest))
        if not version.fetched:
            self._store.set_fetched(version.federation, version.number, True)
            self._on_change()

    def relatives(self, federation: str, digest: str) -> list[str]:
        """Blobs here that a version `digest` may share tensors with: the newest other version, or else the base."""
        versions = self._store.versions(federation)
        if all(digest != v.digest for v in versions):
            return []  # a spec, a base
        here = [v.digest for v in versions if v.fetched and v.digest != digest]
        return here[-1:] or [v.base_digest for v in versions[-1:] if v.base_digest]

    def prune(self, federation: str) -> None:
        """Delete all but the newest versions' blobs; never one that a task at hand starts from."""
        versions = self._store.versions(federation)
        task = self._store.task_at_hand()
        needed = {v.digest for v in versions[-self._keep :]} | self.in_use
        needed |= {str(task.body[k]) for k in ("version_digest", "base_digest", "spec_digest")} if task else set()
        for old in versions[: -self._keep]:
            if old.fetched and old.digest not in needed:
                self._blobs.delete(old.digest)
                self._store.set_fetched(federation, old.number, False)
