"""What is signed between hub and node: the node's update statement is read here, the hub's receipt is made here.

Both are canonical JSON under an Ed25519 signature with a purpose prefix (docs/architecture.md §6). A receipt means:
durable on the hub and admitted. Not for storing them (ledger.py).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from zk0d.durable import canonical_json, digest_of, write_bytes
from zk0d.errors import ConfigError, PayloadError, ProtocolError
from zk0d.link.identity import verify
from zk0d.model.blobs import hex_of

UPDATE_PREFIX = b"zk0 update v1\0"
RECEIPT_PREFIX = b"zk0 receipt v1\0"
REFUSAL_PREFIX = b"zk0 refusal v1\0"
MAX_STATEMENT = 4096
MAX_SAMPLES = 10**9
MAX_LOSS = 1e30


@dataclass(frozen=True)
class Statement:
    """A node's word about its update. `digest` names the update everywhere."""

    digest: str
    federation: str
    task: str
    node: str
    base_version: int
    payload: str
    size: int
    samples: int
    steps: int
    loss_first: float
    loss_last: float
    raw: bytes
    signature: bytes
    base: str = ""
    """Digest of the version that it was trained on; nodes before 0.2 do not state it."""


_TEXT = ("federation", "task", "node", "payload")
_COUNT = ("base_version", "size", "samples", "steps")
_LOSS = ("loss_first", "loss_last")


def read_statement(raw: bytes, signature: bytes) -> Statement:
    """Parse an update statement, strictly. Raises ProtocolError; the signature is not judged here."""
    if len(raw) > MAX_STATEMENT:
        raise ProtocolError(f"an update statement of {len(raw)} bytes, at most {MAX_STATEMENT}")
    try:
        value = json.loads(raw)
        canonical = canonical_json(value)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the update statement is not JSON: {str(error)[:100]}") from None
    if canonical != raw or not isinstance(value, dict):
        raise ProtocolError("the update statement is not canonical JSON")
    if value.keys() - {"base"} != {*_TEXT, *_COUNT, *_LOSS}:
        raise ProtocolError("the update statement has other fields than the protocol says")
    if not all(isinstance(v := value.get(k, ""), str) and len(v) <= 128 for k in (*_TEXT, "base")):
        raise ProtocolError("the update statement has a text that is none")
    if not all(type(value[k]) is int and 0 <= value[k] < 1 << 53 for k in _COUNT):
        raise ProtocolError("the update statement has a number that is no count")
    if not all(type(value[k]) in (int, float) and abs(value[k]) <= MAX_LOSS for k in _LOSS):  # not so for NaN
        raise ProtocolError("the update statement has a loss that is not finite")
    if not 1 <= value["samples"] <= MAX_SAMPLES or value["steps"] < 1:
        raise ProtocolError(f"an update of {value['samples']} samples and {value['steps']} steps")
    try:
        for named in (value["payload"], *([value["base"]] if "base" in value else [])):
            hex_of(named)
    except PayloadError as error:
        raise ProtocolError(error.message) from None
    return Statement(digest_of(raw), **value, raw=raw, signature=signature)


def check_signature(statement: Statement, certificate: bytes) -> None:
    """ProtocolError unless the node's certificate signed the statement."""
    verify(certificate, UPDATE_PREFIX + statement.raw, statement.signature)


class ReceiptKey:
    """The hub's receipt key: `receipt.key` (0600) in its keys folder. Nodes get `public` at enrolment."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @classmethod
    def create(cls, directory: Path) -> ReceiptKey:
        """A new key; ConfigError if there is one (nodes verify all receipts with it)."""
        path = directory / "receipt.key"
        if path.exists():
            raise ConfigError(f"{path} already exists", "load it")
        key = Ed25519PrivateKey.generate()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_bytes(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
        return cls(key)

    @classmethod
    def load(cls, directory: Path) -> ReceiptKey:
        path = directory / "receipt.key"
        try:
            key = load_pem_private_key(path.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{path} cannot be used: {error}", "it is made by zk0-hub init") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"{path} is not an Ed25519 key")
        return cls(key)

    def sign(self, data: bytes) -> bytes:
        """Ed25519 signature, 64 bytes; callers prefix `data` with what kind of statement it is."""
        return self._key.sign(data)

    def make(
        self,
        update: Any,
        admitted_at: float,
        new_version: int | None = None,
        weight: float | None = None,
        within_s: float | None = None,
    ) -> tuple[bytes, bytes]:
        """Receipt and signature for an admitted update: a row of `updates` (or anything with those keys).

        `claimed` is the node's word; `verified` is what the hub measured itself: bytes and norm of what arrived, and
        the seconds from handing the task out to the offer, which the work cannot have taken longer than.
        """
        steps = json.loads(update["statement"])["steps"]
        receipt = canonical_json(
            {
                "federation": update["federation"],
                "node": update["node"],
                "update": update["digest"],
                "payload": update["payload"],
                "base_version": update["base_version"],
                "new_version": new_version,
                "samples": update["samples"],
                "weight": weight,
                "admitted_at": timestamp(admitted_at),
                "claimed": {"samples": update["samples"], "steps": steps},
                "verified": {
                    "bytes": update["size"],
                    "norm": None if update["norm"] is None else round(update["norm"], 6),
                    "within_s": None if within_s is None else round(within_s, 3),
                },
            }
        )
        return receipt, self.sign(RECEIPT_PREFIX + receipt)

    def refuse(self, update: Any, code: str, reason: str, at: float) -> tuple[bytes, bytes]:
        """A signed no to an update (a Statement's fields, or a row of `updates`), and its signature.

        The same decision gives the same bytes, so nothing of it need be kept.
        """
        names = ("federation", "node", "digest", "payload")
        told = {k: getattr(update, k) if isinstance(update, Statement) else update[k] for k in names}
        told["update"] = told.pop("digest")
        refusal = canonical_json({**told, "code": code, "reason": reason[:1000], "at": timestamp(at)})
        return refusal, self.sign(REFUSAL_PREFIX + refusal)


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339, UTC, whole seconds."""
    return dt.datetime.fromtimestamp(int(seconds), dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def task_id(federation: str, node: str, version: int, base: str, attempt: int) -> tuple[str, int]:
    """A task's name and the seed of its randomness, both fixed by what the task is. `base`: the version's digest, as a
    hub restored from a backup makes another version of the same number."""
    digest = hashlib.sha256(canonical_json([federation, node, version, base, attempt])).digest()
    return f"task-{digest[:8].hex()}", int.from_bytes(digest[8:12], "big") >> 1
