"""The node's durable state in one SQLite file: enrolment, federations, datasets, tasks, updates, receipts, versions.

Written only by the daemon; `Store.read` lets zk0ctl look at it while the daemon is down. Standard library only.
Not for blobs, models and datasets themselves, which are files.
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zk0d.daemon.receipt_tables import ReceiptTables
from zk0d.daemon.schema import MIGRATIONS, VERSION
from zk0d.errors import DatasetError, UnknownStateError

EVENTS_KEPT = 2000


@dataclass(frozen=True)
class Hub:
    """The hub this node is enrolled at. `receipt_key` is the PEM public key that signs receipts."""

    name: str
    host: str
    port: int
    node_id: str
    receipt_key: bytes
    enrolled_at: float


@dataclass(frozen=True)
class Federation:
    name: str
    state: str
    """ "joining" (asked, hub not reached yet), "gathering", "open" or "finished"."""
    spec_digest: str
    version: int | None
    """Newest version the hub told of."""
    reason: str
    joined_at: float


@dataclass(frozen=True)
class Dataset:
    """A LeRobot dataset folder on this machine. `rename` maps its feature names to the federation's."""

    name: str
    root: Path
    episodes: int
    frames: int
    fps: int
    features: dict[str, Any]
    tasks: tuple[str, ...]
    """Kept here only; never sent."""
    units: str
    rename: dict[str, str]
    train: bool
    added_at: float


@dataclass(frozen=True)
class Task:
    """A training task of the hub. `state`: "fetching", "ready", "trained" (its update is kept), "given_up" (a person is
    to look at it), "dropped" (for a reason that is nobody's fault, or forgiven: it may be taken anew)."""

    id: str
    federation: str
    body: dict[str, Any]
    state: str
    deaths: int
    retry_at: float
    step: int
    reason: str
    created_at: float

    @property
    def version(self) -> int:
        return int(self.body["version"])


@dataclass(frozen=True)
class Update:
    """A signed update. `state`: "waiting" (until the receipt is stored), "receipted", "refused"."""

    digest: str
    task: str | None
    """None: its hub lost it after the receipt, and it answers no task any more (`forget_task_of`)."""
    federation: str
    statement: bytes
    signature: bytes
    payload: str
    size: int
    state: str
    reason: str
    created_at: float


@dataclass(frozen=True)
class Version:
    federation: str
    number: int
    digest: str
    spec_digest: str
    base_digest: str
    metrics: dict[str, Any]
    at: float
    fetched: bool


@dataclass(frozen=True)
class Session:
    """A recording session. `state`: "running", "done", "stopped", "cut" (the daemon died in it), "failed"."""

    id: int
    dataset: str
    task: str
    by: str
    goal: int
    """Episodes that the dataset was to have at the end."""
    saved: int
    state: str
    reason: str
    started_at: float
    ended_at: float | None


class Store(ReceiptTables):
    """Opens or creates the state file. Refuses one written by a newer zk0d."""

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        super().__init__(path, readonly=readonly)
        self.tell: Callable[[str, str, dict[str, Any]], None] = lambda kind, text, fields: None
        found = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if found > VERSION:
            self._db.close()
            raise UnknownStateError(
                f"{path} has schema {found}, this zk0d knows up to {VERSION}", "start the newer zk0d that wrote it"
            )
        if found < VERSION and readonly:
            self._copy()
        if found < VERSION:
            with self.transaction():
                for statements in MIGRATIONS[found:]:
                    for statement in statements:
                        self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={VERSION}")
                self.enter_old_receipts()

    def _copy(self) -> None:
        """Go on with a copy in memory: a file that an older zk0d left is read as the daemon will see it, and stays."""
        memory = sqlite3.connect(":memory:", isolation_level=None)
        self._db.backup(memory)
        self._db.close()
        self._db = memory
        self._db.row_factory = sqlite3.Row

    @classmethod
    def read(cls, path: Path) -> Store:
        """Open for reading only, while no daemon runs. Raises UnknownStateError when there is nothing to read."""
        try:
            if not path.exists():
                raise UnknownStateError(f"{path} does not exist", "name the daemon's folder with --state")
            return cls(path, readonly=True)
        except PermissionError as error:
            raise UnknownStateError(f"{path} is not yours to read", "members of group zk0 ask the daemon") from error
        except sqlite3.Error as error:
            raise UnknownStateError(f"{path} cannot be read: {error}") from error

    # -- single values ---------------------------------------------------------------------------------------------

    def get(self, key: str, default: Any = None) -> Any:
        row = self._row("SELECT value FROM meta WHERE key=?", key)
        return default if row is None else json.loads(row[0])

    def put(self, key: str, value: Any) -> None:
        self._do("INSERT OR REPLACE INTO meta VALUES (?,?)", key, json.dumps(value))

    def event(self, kind: str, text: str, **fields: Any) -> None:
        """Add to the history that `zk0ctl logs` and `why` show. `text` is a sentence for a person.

        `fields` (federation, version …) go, with it, only to `tell`: the journal, or the daemon's log.
        """
        self.tell(kind, text, fields)
        with self.transaction():
            number = self._do("INSERT INTO events (at, kind, text) VALUES (?,?,?)", time.time(), kind, text)
            self._do("DELETE FROM events WHERE id<=?", number - EVENTS_KEPT)

    def events(self, count: int = 20, after: int = 0) -> list[dict[str, Any]]:
        """The newest `count` events with an id above `after`, oldest first."""
        rows = self._rows("SELECT * FROM events WHERE id>? ORDER BY id DESC LIMIT ?", after, count)
        return [dict(r) for r in reversed(rows)]

    # -- hub and federations -----------------------------------------------------------------------------------------

    def hub(self) -> Hub | None:
        row = self._row("SELECT * FROM hubs ORDER BY enrolled_at DESC LIMIT 1")
        return None if row is None else Hub(**dict(row))

    def set_hub(self, hub: Hub) -> None:
        with self.transaction():
            self._do("DELETE FROM hubs")
            self._do(
                "INSERT INTO hubs VALUES (?,?,?,?,?,?)",
                hub.name, hub.host, hub.port, hub.node_id, hub.receipt_key, hub.enrolled_at,
            )  # fmt: skip

    def federations(self) -> list[Federation]:
        return [Federation(**dict(r)) for r in self._rows("SELECT * FROM federations ORDER BY name")]

    def federation(self, name: str) -> Federation | None:
        return next((f for f in self.federations() if f.name == name), None)

    def join(self, name: str) -> None:
        with self.transaction():
            self.left(name)  # what is joined again is not left any more
            self._do("INSERT OR IGNORE INTO federations VALUES (?,'joining','',NULL,'',?)", name, time.time())

    def leave(self, name: str) -> None:
        """Be a member no more; the hub is still to be told (`leaving`)."""
        with self.transaction():
            self._do("DELETE FROM federations WHERE name=?", name)
            self.put("leaving", sorted({*self.leaving(), name}))

    def leaving(self) -> list[str]:
        """Federations that were left and whose hub does not know yet."""
        return list(self.get("leaving", []))

    def left(self, name: str) -> None:
        """The hub knows, or need not."""
        if name in (names := self.leaving()):
            self.put("leaving", [n for n in names if n != name])

    def set_federation(self, name: str, **fields: Any) -> None:
        """Set any of state, spec_digest, version, reason."""
        self._set("federations", "name", name, fields)

    # -- datasets ----------------------------------------------------------------------------------------------------

    def datasets(self) -> list[Dataset]:
        return [_dataset(r) for r in self._rows("SELECT * FROM datasets ORDER BY name")]

    def dataset(self, name: str) -> Dataset:
        """Raises DatasetError, naming those there are, when there is none of that name."""
        row = self._row("SELECT * FROM datasets WHERE name=?", name)
        if row is None:
            known = ", ".join(d.name for d in self.datasets()) or "none yet"
            raise DatasetError(f"there is no dataset {name!r}", f"known: {known}")
        return _dataset(row)

    def put_dataset(self, d: Dataset) -> None:
        self._do(
            "INSERT OR REPLACE INTO datasets VALUES (?,?,?,?,?,?,?,?,?,?,?)",
            d.name, str(d.root), d.episodes, d.frames, d.fps, json.dumps(d.features), json.dumps(d.tasks), d.units,
            json.dumps(d.rename), int(d.train), d.added_at,
        )  # fmt: skip

    def wire_id(self, dataset: str, federation: str) -> str:
        """The random UUID that stands for a dataset in one federation, made at first use."""
        with self.transaction():
            fresh = str(uuid.uuid4())
            self._do("INSERT OR IGNORE INTO wire_ids VALUES (?,?,?)", dataset, federation, fresh)
            row = self._row("SELECT uuid FROM wire_ids WHERE dataset=? AND federation=?", dataset, federation)
        assert row is not None
        return str(row[0])

    # -- tasks, updates, receipts, versions --------------------------------------------------------------------------

    def task_at_hand(self) -> Task | None:
        """The task being fetched or trained: at most one."""
        row = self._row("SELECT * FROM tasks WHERE state IN ('fetching','ready') ORDER BY created_at LIMIT 1")
        return None if row is None else _task(row)

    def task(self, task_id: str) -> Task | None:
        row = self._row("SELECT * FROM tasks WHERE id=?", task_id)
        return None if row is None else _task(row)

    def last_task(self, federation: str) -> Task | None:
        row = self._row("SELECT * FROM tasks WHERE federation=? ORDER BY created_at DESC LIMIT 1", federation)
        return None if row is None else _task(row)

    def add_task(self, body: dict[str, Any]) -> None:
        """Take a task at hand; one seen before and given up starts afresh."""
        self._do(
            "INSERT OR REPLACE INTO tasks VALUES (?,?,?,'fetching',0,0,0,'',?)",
            body["id"], body["federation"], json.dumps(body), time.time(),
        )  # fmt: skip

    def set_task(self, task_id: str, **fields: Any) -> None:
        """Set any of state, deaths, retry_at, step, reason."""
        self._set("tasks", "id", task_id, fields)

    def add_update(self, u: Update) -> None:
        """Store a signed update and close its task in one step, so that a task is trained exactly once."""
        assert u.task is not None
        with self.transaction():
            self._do(
                "INSERT INTO updates VALUES (?,?,?,?,?,?,?,?,?,?) ON CONFLICT (digest) DO UPDATE SET"
                " task=excluded.task, signature=excluded.signature, state=excluded.state, reason='',"
                " created_at=excluded.created_at WHERE updates.task IS NOT excluded.task ON CONFLICT (task) DO NOTHING",
                u.digest, u.task, u.federation, u.statement, u.signature, u.payload, u.size, u.state, u.reason,
                u.created_at,
            )  # fmt: skip
            self.set_task(u.task, state="trained")

    def forget_task_of(self, digest: str) -> None:
        """An update that its hub has lost answers its task no more: the task can be trained anew, to the same bytes."""
        self._do("UPDATE updates SET task=NULL WHERE digest=?", digest)

    def count_loss(self, federation: str, task: str) -> int:
        """The hub has lost a confirmed update to this task → how many times in a row."""
        times = self.losses(federation, task) + 1
        self.put("losses", {**self.get("losses", {}), federation: {"task": task, "times": times}})
        return times

    def losses(self, federation: str, task: str) -> int:
        """How many times in a row the hub has lost a confirmed update to this task, the federation's last."""
        last = self.get("losses", {}).get(federation, {})
        return int(last["times"]) if last.get("task") == task else 0

    def updates(self, state: str | None = None) -> list[Update]:
        rows = self._rows("SELECT * FROM updates ORDER BY created_at")
        return [Update(**dict(r)) for r in rows if state is None or r["state"] == state]

    def set_update(self, digest: str, **fields: Any) -> None:
        """Set state or reason."""
        self._set("updates", "digest", digest, fields)

    def put_version(self, v: Version) -> None:
        self._do(
            "INSERT INTO versions VALUES (?,?,?,?,?,?,?,?) ON CONFLICT (federation, number) DO UPDATE SET"
            " metrics=excluded.metrics, fetched=max(fetched, excluded.fetched)",
            v.federation, v.number, v.digest, v.spec_digest, v.base_digest, json.dumps(v.metrics), v.at, int(v.fetched),
        )  # fmt: skip

    def set_fetched(self, federation: str, number: int, fetched: bool) -> None:
        self._do("UPDATE versions SET fetched=? WHERE federation=? AND number=?", int(fetched), federation, number)

    def forget_version(self, federation: str, number: int) -> None:
        self._do("DELETE FROM versions WHERE federation=? AND number=?", federation, number)

    def versions(self, federation: str | None = None) -> list[Version]:
        rows = self._rows("SELECT * FROM versions ORDER BY federation, number")
        return [_version(r) for r in rows if federation is None or r["federation"] == federation]

    # -- recording sessions ------------------------------------------------------------------------------------------

    def begin_session(self, dataset: str, task: str, by: str, goal: int) -> int:
        return self._do(
            "INSERT INTO sessions (dataset, task, by, goal, saved, state, reason, started_at)"
            " VALUES (?,?,?,?,0,'running','',?)",
            dataset, task, by, goal, time.time(),
        )  # fmt: skip

    def set_session(self, number: int, **fields: Any) -> None:
        """Set any of saved, state, reason, ended_at."""
        self._set("sessions", "id", number, fields)

    def sessions(self, count: int = 20) -> list[Session]:
        """The newest `count`, newest first."""
        return [Session(**dict(r)) for r in self._rows("SELECT * FROM sessions ORDER BY id DESC LIMIT ?", count)]


def _dataset(row: sqlite3.Row) -> Dataset:
    values = dict(row)
    values["root"] = Path(values["root"])
    for key in ("features", "rename"):
        values[key] = json.loads(values[key])
    values["tasks"] = tuple(json.loads(values["tasks"]))
    values["train"] = bool(values["train"])
    return Dataset(**values)


def _task(row: sqlite3.Row) -> Task:
    values = dict(row)
    values["body"] = json.loads(values["body"])
    return Task(**values)


def _version(row: sqlite3.Row) -> Version:
    values = dict(row)
    values["metrics"] = json.loads(values["metrics"])
    values["fetched"] = bool(values["fetched"])
    return Version(**values)
