"""The status document: what zk0d says about itself, from its store and, while it runs, from its live parts.

The same document whether the daemon runs or zk0ctl reads the state file of one that does not. Standard library only.
The schema is zk0d/ctl/status.schema.json.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from zk0d import __version__
from zk0d.daemon import torque
from zk0d.daemon.store import Store
from zk0d.moments import clock

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class LiveParts:
    """What only a running daemon knows; plain values, ready for JSON."""

    pid: int
    started_at: float
    state: dict[str, Any]
    link: dict[str, Any] | None
    training: dict[str, Any]
    session: dict[str, Any] | None
    transfers: list[dict[str, Any]] = field(default_factory=list)
    bytes_total: tuple[int, int] = (0, 0)
    misfits: tuple[str, ...] = ()
    unable: str = ""
    unable_hint: str = ""
    no_link: str = ""
    """Why there can be no link to the hub that this node is enrolled at."""


def status(store: Store, live: LiveParts | None) -> dict[str, Any]:
    """The whole document. Times are seconds since the epoch."""
    hub = store.hub()
    task = store.task_at_hand()
    receipts = store.receipts()
    bytes_up, bytes_down = live.bytes_total if live else store.get("bytes", [0, 0])
    waiting = store.updates("waiting")
    seen = store.get("seen", 0.0)
    newest = store.events(1)
    return {
        "schema_version": SCHEMA_VERSION,
        "software": f"zk0d/{__version__}",
        "running": live is not None,
        "as_of": time.time() if live else max(seen, newest[0]["at"] if newest else 0.0),
        "pid": live.pid if live else None,
        "started_at": live.started_at if live else None,
        "state": live.state if live else _down(),
        "health": health(store, live),
        "hub": None if hub is None else {
            "name": hub.name, "address": f"{hub.host}:{hub.port}", "node_id": hub.node_id,
            "enrolled_at": hub.enrolled_at,
        },
        "link": live.link if live else None,
        "bytes": {"up": bytes_up, "down": bytes_down},
        "federations": [_federation(store, f.name) for f in store.federations()],
        "training": {
            "task": None if task is None else {
                "id": task.id, "federation": task.federation, "version": task.version, "state": task.state,
                "step": task.step, "steps": task.body.get("local_steps"), "deaths": task.deaths, "reason": task.reason,
            },
            "override": _override(store),
            **(live.training if live else {"trainer": "none", "progress": {}}),
        },
        "updates_waiting": [
            {"federation": u.federation, "size": u.size, "since": u.created_at, "reason": u.reason} for u in waiting
        ],
        "session": live.session if live else None,
        "datasets": [
            {"name": d.name, "episodes": d.episodes, "frames": d.frames, "fps": d.fps, "train": d.train}
            for d in store.datasets()
        ],
        "transfers": live.transfers if live else [],
        "last_receipt": _receipt(receipts[-1]) if receipts else None,
        "receipts": len(receipts),
    }  # fmt: skip


def _down() -> dict[str, Any]:
    return {"action": "none", "word": "not running", "sentence": "zk0d is not running", "reason": "", "waits_for": "",
            "rule": "down"}  # fmt: skip


def _override(store: Store) -> dict[str, Any] | None:
    value: dict[str, Any] | None = store.get("override")
    return value if value and value["until"] > time.time() else None


def _receipt(value: dict[str, Any]) -> dict[str, Any]:
    keys = ("federation", "base_version", "new_version", "samples", "weight", "admitted_at", "stored_at", "update")
    return {k: value.get(k) for k in keys}


def _federation(store: Store, name: str) -> dict[str, Any]:
    federation = store.federation(name)
    assert federation is not None
    versions = store.versions(name)
    here = [v.number for v in versions if v.fetched]
    return {
        "name": name,
        "state": federation.state,
        "version": federation.version,
        "here": here[-1] if here else None,
        "metrics": versions[-1].metrics if versions else {},
        "receipts": sum(1 for r in store.receipts() if r.get("federation") == name),
        "reason": federation.reason,
    }


def _problem(level: str, code: str, message: str, hint: str) -> dict[str, str]:
    return {"level": level, "code": code, "message": message, "hint": hint}


def _arm(store: Store, live: LiveParts | None) -> list[dict[str, str]]:
    """How the servos are while a session runs, and whether the last one had to let the arm go."""
    if left := torque.problem(store, session=bool(live and live.session)):
        return [_problem("error", "arm", *left)]
    let_go = store.get("arm_let_go")
    if let_go:
        at = clock(let_go["at"])
        hint = "let it rest; `zk0ctl robot doctor`; the next session that opens the arm clears this"
        return [_problem("degraded", "arm", f"the arm was let go at {at}: {let_go['text']}", hint)]
    care = (live.session or {}).get("progress", {}).get("care", {}) if live else {}
    if care.get("level") in ("warn", "slow"):
        what = "the arm is slowed" if care["level"] == "slow" else "the arm needs care"
        return [_problem("degraded", "arm", f"{what}: {care['reason']}", "rest it, or free the joint")]
    return []


def health(store: Store, live: LiveParts | None) -> list[dict[str, str]]:
    """What is wrong, worst first; empty when all is good."""
    found: list[dict[str, str]] = []
    link = live.link if live else None
    if link and link["phase"] == "refused":
        found.append(_problem("error", "link", f"no link: {link['reason']}", "ask the maintainer"))
    elif link and link["phase"] in ("waiting", "connecting") and time.time() - link["since"] > 30:
        found.append(
            _problem("degraded", "link", f"the hub is not reached: {link['reason']}", "recording goes on without it")
        )
    if live and live.no_link:
        found.append(
            _problem("error", "link", live.no_link, "then `zk0ctl enroll` with a token of `zk0-hub nodes reenrol`")
        )
    log = store.get("log", {})
    if log.get("state") == "refused":
        found.append(_problem("error", "log", f"the hub's receipt log is not believed: {log['text']}",
                              "ask the maintainer; the evidence is kept: `zk0ctl receipts verify --json`"))  # fmt: skip
    if live and live.unable:
        what = f"{live.unable}: no recording, rollout or training; status, enrolment and transfers work"
        found.append(_problem("degraded", "runtime", what, f"waits for {live.unable_hint}"))
    for text in live.misfits if live else ():
        found.append(_problem("degraded", "dataset", text, "it is not trained on until then"))
    for dataset in store.datasets():
        if dataset.train and not (dataset.root / "meta" / "info.json").exists():
            found.append(_problem("degraded", "dataset", f"dataset {dataset.name} is not at {dataset.root}",
                                  "put it back, or `zk0ctl dataset add` it where it is now"))  # fmt: skip
    for federation in store.federations():
        if federation.reason.startswith("the hub refuses"):
            hint = f"`zk0ctl federation list` has the hub's; `zk0ctl federation leave {federation.name}` takes it back"
            found.append(_problem("degraded", "federation", f"{federation.name}: {federation.reason}", hint))
        last = store.last_task(federation.name)
        if last is not None and (times := store.losses(federation.name, last.id)) > 1:  # once: it was restored
            what = f"the hub has confirmed and then lost the update to version {last.version} of {federation.name}"
            found.append(_problem("degraded", "update", f"{what} {times} times: it is trained anew each time",
                                  "ask the maintainer; its receipts are kept: `zk0ctl receipts`"))  # fmt: skip
        if last is not None and last.state == "given_up":
            found.append(_problem("degraded", "training", f"task of version {last.version} given up: {last.reason}",
                                  "`zk0ctl logs --worker trainer`, then `zk0ctl train now`"))  # fmt: skip
    found += _arm(store, live)
    updates = store.updates()
    if updates and updates[-1].state == "refused":
        found.append(_problem("degraded", "update", f"the hub refused the last update: {updates[-1].reason}", ""))
    session = next(iter(store.sessions(1)), None)
    if session is not None and session.state in ("cut", "failed") and not (live and live.session):
        have = next((d.episodes for d in store.datasets() if d.name == session.dataset), None)
        task = " --task TEXT" if have is None else ""  # one that is not there has none; texts are in no status
        how = "was cut" if session.state == "cut" else "failed"
        saved = f"{have or 'no'} episode{' is' if have == 1 else 's are'} saved"
        hint = f"{saved}; `zk0ctl record --dataset {session.dataset}{task} --until {session.goal}` goes on"
        if (have or 0) < session.goal:
            found.append(_problem("degraded", "record", f"the last recording {how}: {session.reason}", hint))
    return sorted(found, key=lambda p: p["level"] != "error")
