"""The node's watch over the hub's receipt log: each receipt proved to be in it, each head to continue the last.

A hub that shows a shrunken or forked log is not believed: the kept head stays, the refused one is kept as evidence, and
the operator is told. `verify` works on what is stored, without the hub. The mathematics is zk0d/link/merkle.py.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from zk0d.daemon.receipt_tables import Entry, Head
from zk0d.errors import ProtocolError, RefusedError, UsageError
from zk0d.link import merkle

if TYPE_CHECKING:
    from zk0d.daemon.store import Hub, Store
    from zk0d.link.node import NodeLink

RECEIPT_PREFIX = b"zk0 receipt v1\0"
HEAD_PREFIX = b"zk0 tree head v1\0"
REFUSAL_PREFIX = b"zk0 refusal v1\0"
_LOOK_AGAIN_S = 3600.0
"""A head is asked for this often even when nothing of ours is new, so that a fork is seen by a node that is idle."""
PER_TURN = 16
"""Updates asked about in one turn."""


def verify_signature(key: bytes, data: bytes, signature: bytes) -> None:
    """`signature.verify`, loaded when the first signature is to be checked."""
    from zk0d.link.signature import verify

    verify(key, data, signature)


class Evidence:
    """Asks for heads and proofs over the open link and keeps what is good."""

    def __init__(self, store: Store, on_change: Callable[[], None], clock: Callable[[], float] = time.time) -> None:
        self._store, self._on_change, self._now = store, on_change, clock
        self._next = 0.0
        self._settled: dict[str, int | None] = {}

    async def turn(self, link: NodeLink, hub: Hub) -> None:
        """Prove what is not proved yet. LinkLostError goes to the caller; all else is told to the operator."""
        wanted = self._wanted()
        if not wanted and self._now() < self._next:
            return
        known = self._known()
        # Looked at before the head is asked for: a push may bring one that the head lacks.
        due = {e.leaf for e in self._store.entries() if e.position is None and e.set_aside is None}
        try:
            reply = await link.request("log.head", {"size": known.size if known else 0})
            head = self._accept(reply, hub, known)
            for update in wanted[:PER_TURN]:
                await self._prove(link, hub, update, head, due)
        except RefusedError as error:
            if error.reason == "unknown_type":
                self._say("this hub keeps no receipt log: its receipts stand by their signatures alone", "absent")
            self._settle(wanted)
        except ProtocolError as error:
            self._say(error.message, "refused")
            self._settle(wanted)
        else:
            if self._store.get("log", {}).get("state") != "good":
                self._store.put("log", {"state": "good", "text": "", "at": self._now()})
                self._on_change()
        self._next = self._now() + _LOOK_AGAIN_S

    def look_again(self) -> None:
        """The hub may be another state of itself: a new link, or a person says that it was restored."""
        self._next = 0.0

    def received(self, update: str) -> None:
        """A receipt came: there is something to prove, also of an update that the log had lost before."""
        self._settled.pop(update, None)

    async def agreed(self, link: NodeLink, hub: Hub) -> float:
        """Until when the hub's past is the one that this node has seen (seconds since the epoch): what it told later
        may be lost, and made anew under the same number. Infinity where its log is believed, 0 where nothing is left.
        Raises RefusedError, and ProtocolError for an answer that is no head."""
        if self._store.get("log", {}).get("state") != "refused":
            return math.inf
        heads = self._store.heads()
        good, end = 0, len(heads)  # the first `good` are continued; from `end` on none is
        while good < end:
            middle = (good + end) // 2
            if await self._continued(link, hub, heads[middle]):
                good = middle + 1
            else:
                end = middle
        until = math.inf if not heads else heads[good - 1].stored_at if good else 0.0
        # A receipt that is lacking may be older than a head that was had after the hub was restored.
        unproved = (e.stored_at for e in self._store.entries() if e.position is None and e.set_aside is None)
        return min([until, *unproved])

    async def _continued(self, link: NodeLink, hub: Hub, old: Head) -> bool:
        shown = _head(await link.request("log.head", {"size": old.size}), hub.receipt_key, self._now())
        try:
            merkle.verify_consistency(old.size, shown.size, old.root, shown.root, shown.consistency)
        except ProtocolError:
            return False
        return True

    async def accept(self, link: NodeLink, hub: Hub) -> dict[str, Any]:
        """On the operator's word: go on from the head that the hub shows now → the two sizes.

        The former heads and the conflict stay as evidence; receipts that the log has lost keep their signatures.
        """
        if self._store.get("log", {}).get("state") != "refused":
            raise UsageError("the hub's log is believed: there is nothing to accept", "zk0ctl receipts verify")
        known = self._known()
        shown = _head(await link.request("log.head", {"size": 0}), hub.receipt_key, self._now())
        now, conflict = self._now(), self._store.get("log_conflict")
        with self._store.transaction():
            self._store.accept_shorter(replace(shown, consistency=()), now)
            if conflict is not None:
                self._store.put("log_conflicts_past", [*self._store.get("log_conflicts_past", []), conflict])
                self._store.put("log_conflict", None)
            self._store.put("log", {"state": "good", "text": "", "at": now})
        before = known.size if known else 0
        self._store.event("log", f"the operator accepted the hub's log of {shown.size} entries in place of {before}")
        self._settled.clear()
        self._next = 0.0
        self._on_change()
        return {"kept": before, "accepted": shown.size}

    def _known(self) -> Head | None:
        heads = self._store.heads()
        return heads[-1] if heads else None

    def _wanted(self) -> list[str]:
        """Updates with an unproved receipt, and those whose merge may have happened since they were last asked for."""
        versions = {f.name: f.version for f in self._store.federations()}
        found: dict[str, None] = {}
        final: set[str] = set()
        open_updates: dict[str, int | None] = {}
        for entry in self._store.entries():
            value = json.loads(entry.receipt)
            if entry.position is None and self._settled.get(entry.update, 0) != -1:
                found[entry.update] = None
            if value.get("new_version") is not None:
                if entry.set_aside is None:  # else the same update may have been given, and merged, again
                    final.add(entry.update)
            else:
                open_updates[entry.update] = versions.get(str(value.get("federation")))
        for update, version in open_updates.items():
            if update not in final and self._settled.get(update, -2) not in (-1, version):
                found[update] = None
        return list(found)

    def _settle(self, updates: Sequence[str]) -> None:
        for update in updates:
            self._settled[update] = -1  # not again until the program starts anew: the hub has no better answer

    def _say(self, text: str, state: str) -> None:
        if self._store.get("log", {}).get("text") != text:
            self._store.put("log", {"state": state, "text": text, "at": self._now()})
            self._store.event("log", text)
            self._on_change()

    def _accept(self, reply: dict[str, Any], hub: Hub, known: Head | None) -> Head:
        """The hub's head, stored, when it continues the last one. Raises ProtocolError, having kept the evidence."""
        head = _head(reply, hub.receipt_key, self._now())
        try:
            old = (known.size, known.root) if known else (0, merkle.EMPTY)
            merkle.verify_consistency(old[0], head.size, old[1], head.root, head.consistency)
        except ProtocolError as error:
            if self._store.get("log_conflict") is None and known is not None:
                shown = {"kept": known.head.decode(), "kept_signature": known.signature.hex(),
                         "shown": head.head.decode(), "shown_signature": head.signature.hex(),
                         "consistency": [h.hex() for h in head.consistency], "at": self._now()}  # fmt: skip
                self._store.put("log_conflict", shown)
            raise ProtocolError(error.message, "ask the maintainer: the hub has signed two histories") from None
        if head.size:
            self._store.add_head(head)
        return head

    async def _prove(self, link: NodeLink, hub: Hub, update: str, head: Head, due: set[str]) -> None:
        own = {e.leaf: e for e in self._store.entries() if e.update == update}
        try:
            reply = await link.request("log.proof", {"update": update, "size": head.size})
        except RefusedError:
            if not all(e.set_aside for e in own.values()):
                raise
            self._settle([update])  # the operator knows that the log has lost it
            return
        entries = reply.get("entries")
        if not isinstance(entries, list) or len(entries) > 64:
            raise ProtocolError("the hub's proof has no entries")
        missing = own.keys() & due
        for found in entries:
            entry = _entry(found, update, hub, head)
            if entry.leaf not in own and is_final(entry.receipt):
                current = next((u for u in self._store.updates() if u.digest == update), None)
                if current is not None:
                    self._store.add_receipt(update, current.federation, entry.receipt, entry.signature)
            assert entry.position is not None
            self._store.set_proof(entry.leaf, entry.position, head.size, entry.path)
            self._store.found_again(entry.leaf)
            missing.discard(entry.leaf)
        if missing:
            raise ProtocolError("the hub's log lacks a receipt that it signed for this node")
        versions = {f.name: f.version for f in self._store.federations()}
        federation = next((u.federation for u in self._store.updates() if u.digest == update), "")
        self._settled[update] = versions.get(federation)
        self._on_change()


def is_final(receipt: bytes) -> bool:
    """Whether a receipt names the version that its update was merged into."""
    return json.loads(receipt).get("new_version") is not None


def _hashes(value: Any) -> tuple[bytes, ...]:
    good = isinstance(value, list) and len(value) <= merkle.MAX_PATH
    if not good or not all(isinstance(v, bytes) and len(v) == 32 for v in value):
        raise ProtocolError("a proof that is no list of hashes")
    return tuple(value)


def _head(reply: dict[str, Any], key: bytes, now: float) -> Head:
    """A signed head from the hub's answer. Raises ProtocolError."""
    try:
        raw, signature = bytes(reply["head"]), bytes(reply["head_signature"])
        verify_signature(key, HEAD_PREFIX + raw, signature)
        value = json.loads(raw)
        size, root = value["size"], str(value["root"])
        if type(size) is not int or size < 0 or not root.startswith("sha256:") or len(bytes.fromhex(root[7:])) != 32:
            raise ValueError("size or root")
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"the hub's tree head cannot be read: {str(error)[:100]}") from None
    return Head(size, raw, signature, _hashes(reply.get("consistency", [])), now)


def check_refusal(key: bytes, refusal: bytes, signature: bytes, update: str) -> dict[str, Any]:
    """The hub's signed no to `update` as a map. Raises ProtocolError when it is not that."""
    verify_signature(key, REFUSAL_PREFIX + refusal, signature)
    try:
        value = json.loads(refusal)
        if value["update"] != update or not isinstance(value["reason"], str):
            raise ValueError("it is of another update")
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"the hub's refusal cannot be read: {str(error)[:100]}") from None
    return dict(value)


def _entry(found: Any, update: str, hub: Hub, head: Head) -> Entry:
    """One proved entry from the hub's answer. Raises ProtocolError."""
    try:
        receipt, signature, index = bytes(found["receipt"]), bytes(found["signature"]), found["index"]
        path = _hashes(found["path"])
        verify_signature(hub.receipt_key, RECEIPT_PREFIX + receipt, signature)
        value = json.loads(receipt)
        if type(index) is not int or (value["update"], value["node"]) != (update, hub.node_id):
            raise ValueError("it is of another update")
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"a log entry cannot be read: {str(error)[:100]}") from None
    leaf = merkle.leaf_hash(receipt)
    merkle.verify_inclusion(leaf, index, head.size, path, head.root)
    return Entry(leaf.hex(), update, receipt, signature, 0.0, index, head.size, path)


@dataclass(frozen=True)
class Verdict:
    """What checking one stored receipt gave. `problem` is empty when all that is there is good."""

    entry: Entry
    receipt: dict[str, Any]
    logged: bool
    problem: str


def verify(key: bytes, entries: Sequence[Entry], heads: Sequence[Head]) -> tuple[list[Verdict], list[str]]:
    """Check stored receipts and heads again, without the hub → a verdict per receipt, and problems of the heads.

    `key` is the hub's receipt key (PEM). Needs nothing but what a state file holds.
    """
    problems, roots = [], {}
    before = (0, merkle.EMPTY)
    for head in heads:
        try:
            verify_signature(key, HEAD_PREFIX + head.head, head.signature)
            if json.loads(head.head)["size"] != head.size:
                raise ProtocolError("its size is not the one it is filed under")
            merkle.verify_consistency(before[0], head.size, before[1], head.root, head.consistency)
            roots[head.size] = head.root
            before = (head.size, head.root)
        except (ProtocolError, KeyError, TypeError, ValueError) as error:
            problems.append(f"tree head of {head.size} entries: {error}")
    return [_judge(key, entry, roots) for entry in entries], problems


def _judge(key: bytes, entry: Entry, roots: dict[int, bytes]) -> Verdict:
    value: dict[str, Any] = {}
    try:
        verify_signature(key, RECEIPT_PREFIX + entry.receipt, entry.signature)
        value = json.loads(entry.receipt)
        if entry.position is None or entry.size is None:
            return Verdict(entry, value, False, "")
        if entry.size not in roots:
            raise ProtocolError(f"the tree head of {entry.size} entries is not here, or not good")
        leaf = merkle.leaf_hash(entry.receipt)
        merkle.verify_inclusion(leaf, entry.position, entry.size, entry.path, roots[entry.size])
    except (ProtocolError, ValueError) as error:
        return Verdict(entry, value, False, str(error))
    return Verdict(entry, value, True, "")
