"""One federation's shared state on the hub: its name, settings, rules and spec, and what it needs of the hub.

Intake (intake.py), merging (merging.py) and the answers to nodes (federation.py) share one. No rule is here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol

from zk0d.durable import write_text
from zk0d.errors import Zk0Error
from zk0d.hub import recipe, rounds
from zk0d.hub.config import Config, parse_federation
from zk0d.hub.ledger import Ledger
from zk0d.hub.receipts import ReceiptKey, Statement
from zk0d.hub.refusals import Aftermath
from zk0d.hub.store import Row, Store
from zk0d.hub.waits import Waits
from zk0d.model.blobs import BlobStore
from zk0d.model.spec import ModelSpec


class HubServices(Protocol):
    """What a federation needs of the hub around it."""

    directory: Path
    config: Config
    ledger: Ledger
    store: Store
    blobs: BlobStore
    receipt_key: ReceiptKey
    aftermath: Aftermath

    def now(self) -> float: ...
    def stopping(self) -> bool: ...
    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None: ...
    def signer(self, statement: Statement) -> bytes: ...
    def check_quota(self, node: str, size: int) -> None: ...
    def discard(self, digest: str) -> None: ...
    def still_allowed(self, node: str) -> bool: ...
    async def push(self, node: str, kind: str, body: dict[str, Any]) -> None: ...
    async def fetch(self, node: str, digest: str, limit: int) -> Path: ...
    def version_made(self, federation: str) -> None: ...
    def settled(self, federation: str, config: Config) -> None: ...


class FederationState:
    """What the parts of one federation share."""

    def __init__(self, name: str, hub: HubServices) -> None:
        self.name, self.hub, self.ledger = name, hub, hub.ledger
        self.problem = ""
        """Why it does not go on, for status; "" when it does."""
        self._spec: ModelSpec | None = None
        self._waits = Waits()
        self.config: Config
        self.rules: rounds.Rules
        self.settle()

    def settle(self) -> None:
        """Go by the settings in the ledger from now on. [rounds] of new ones holds before the next version, which may
        be waiting for just that, and what is beside the rounds holds for the versions that are out as well."""
        row = self.row
        self.config = parse_federation(row["config"], f"federation {self.name}", stored=True)
        waiting = row["next_config"]
        new = f"new settings of federation {self.name}"
        rule = parse_federation(waiting, new, stored=True) if waiting else self.config
        self.rules = rounds.Rules(
            *(
                rule[f"rounds.{k}"]
                for k in ("min_nodes", "target", "quorum", "deadline_s", "versions", "max_staleness", "mode")
            )
        )
        self.hub.settled(self.name, self.config.beside(rule))
        self._show(row["config"])

    def _show(self, toml: str) -> None:
        """Have federation.toml say what holds; it is for people to read, and nothing depends on it."""
        path = self.hub.directory / "federations" / self.name / "federation.toml"
        with contextlib.suppress(OSError):  # a full disk
            if not path.exists() or path.read_bytes() != toml.encode():
                write_text(path, toml)

    def snapshot(self) -> rounds.Snapshot:
        """As the rounds look at it now, whatever was done to the clock."""
        return self._waits.steady(self.ledger.snapshot(self.name), self.hub.now(), time.monotonic())

    @property
    def merge_room(self) -> int:
        """Bytes of disk that the next merge takes: a version, its master, the optimiser's state."""
        if self.row["phase"] != "open":
            return 0
        try:
            size = self.spec.payload_bytes
        except (Zk0Error, OSError):  # its own trouble, which says so itself: the others' updates arrive
            return 0
        return (3 + 2 * recipe.from_config(self.config, "").moments) * size

    @property
    def row(self) -> Row:
        return self.ledger.federation(self.name)

    @property
    def spec(self) -> ModelSpec:
        """The fixed spec, or the draft without statistics while it gathers."""
        if self._spec is None or self._spec.stats is None:
            row = self.row
            self._spec = ModelSpec.load(self.hub.blobs.path(row["spec"] or row["draft_spec"]))
        return self._spec
