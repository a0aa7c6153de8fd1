"""`zk0ctl status`: the document against its schema, and how it reads for a person."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from status_schema import check

from zk0d.ctl.status_text import exit_code, text
from zk0d.daemon.report import LiveParts, health, status
from zk0d.daemon.store import Dataset, Hub, Store, Update, Version
from zk0d.durable import canonical_json

NOW = time.time()
STATE = {"action": "train", "word": "training", "sentence": "training: federation pick, version 3; then it goes",
         "reason": "federation pick, version 3", "waits_for": "then", "rule": "train"}  # fmt: skip
LINK = {"phase": "connected", "reason": "", "since": NOW - 60, "next_attempt": None}
TRANSFER = {"digest": "blob:abcdef0123", "direction": "down", "done": 45_000_000, "size": 90_000_000, "rate": 3e6,
            "remaining_s": 15.0}  # fmt: skip
LIVE = LiveParts(
    pid=1, started_at=NOW, state=STATE, link=LINK, session=None, bytes_total=(2_000_000, 3_000), transfers=[TRANSFER],
    training={"trainer": "running", "progress": {"step": 4, "steps": 9, "loss": 0.5}},
)  # fmt: skip
RECEIPT = {
    "federation": "pick",
    "base_version": 2,
    "new_version": 3,
    "samples": 400,
    "weight": 400.0,
    "admitted_at": "x",
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    s = Store(tmp_path / "zk0d.db")
    s.set_hub(Hub("hub", "hub.example", 7433, "node-3", b"k", NOW))
    s.join("pick")
    s.set_federation("pick", state="open", version=3)
    s.put_version(Version("pick", 3, "sha256:v", "s", "b", {"heldout_loss": 0.125}, NOW, True))
    (tmp_path / "d/meta").mkdir(parents=True)
    (tmp_path / "d/meta/info.json").write_text("{}")
    s.put_dataset(Dataset("lift", tmp_path / "d", 5, 400, 30, {}, ("secret",), "degrees", {}, True, NOW))
    s.add_task({"id": "t1", "federation": "pick", "version": 2})
    s.add_update(Update("sha256:u1", "t1", "pick", b"{}", b"s", "sha256:p", 500, "waiting", "", NOW))
    s.add_receipt("sha256:u1", "pick", canonical_json(RECEIPT), b"s")
    s.add_task({"id": "t2", "federation": "pick", "version": 3, "local_steps": 9})
    s.set_task("t2", state="ready")
    yield s
    s.close()


def test_document_fits_the_schema(store: Store) -> None:
    check(status(store, LIVE))
    check(status(store, None))


def test_schema_check_can_fail(store: Store) -> None:
    for change in ({"schema_version": 2}, {"extra": 1}, {"pid": "1"}, {"running": 1}):
        with pytest.raises(AssertionError):
            check({**status(store, LIVE), **change})


def test_how_it_reads(store: Store) -> None:
    lines = text(status(store, LIVE)).splitlines()
    assert lines[0] == "training: federation pick, version 3; then it goes"
    rest = "\n".join(lines)
    for part in ("hub.example:7433 as node-3, connected since", "2.0 MB up, 3.0 kB down",
                 "pick: open, version 3, held-out loss 0.125", "step 4 of 9, loss 0.5",
                 "lift: 5 episodes, 400 frames", "45.0 MB of 90.0 MB (50%), 3.0 MB/s, 15 s left",
                 "400 samples on version 2, merged into version 3"):  # fmt: skip
        assert part in rest, part
    assert exit_code(status(store, LIVE)) == 0


def test_task_texts_and_folders_are_not_in_it(store: Store) -> None:
    assert "secret" not in str(status(store, LIVE))


def changed(live: LiveParts, **fields: Any) -> LiveParts:
    return LiveParts(**{**copy.copy(live).__dict__, **fields})


def test_a_hint_is_a_command_that_works(store: Store) -> None:
    session = store.begin_session("cubes", "a secret", "alice", 2)
    store.set_session(session, state="failed", reason="no arm", ended_at=1.0)
    store.join("pick")
    store.set_federation("pick", reason="the hub refuses: there is no federation 'pick' here")
    hints = {p["code"]: p["hint"] for p in health(store, None)}
    # A dataset that is not there yet has no task of its own to go on with.
    assert hints["record"] == "no episodes are saved; `zk0ctl record --dataset cubes --task TEXT --until 2` goes on"
    assert "`zk0ctl federation leave pick` takes it back" in hints["federation"]


def test_exit_codes_follow_the_health(store: Store, tmp_path: Path) -> None:
    refused = changed(LIVE, link={**LINK, "phase": "refused", "reason": "revoked"})
    assert exit_code(status(store, refused)) == 1
    assert "error: no link: revoked" in text(status(store, refused))
    away = changed(LIVE, link={**LINK, "phase": "waiting", "reason": "connection refused", "next_attempt": NOW + 20})
    assert exit_code(status(store, away)) == 2
    assert "next attempt in " in text(status(store, away))
    (tmp_path / "d/meta/info.json").unlink()
    assert exit_code(status(store, LIVE)) == 2
    assert exit_code(status(store, None)) == 3


def test_given_up_and_refused_are_said(store: Store) -> None:
    store.set_task("t2", state="given_up", reason="the trainer died 5 times")
    store.set_update("sha256:u1", state="refused", reason="not finite")
    shown = text(status(store, LIVE))
    assert "task of version 3 given up: the trainer died 5 times" in shown
    assert "the hub refused the last update: not finite" in shown


def test_text_from_elsewhere_cannot_drive_the_terminal(store: Store) -> None:
    evil = changed(LIVE, link={**LINK, "phase": "waiting", "reason": "\x1b]0;owned\x07\x1b[2J"})
    assert "\x1b" not in text(status(store, evil)) and "\x07" not in text(status(store, evil))


def test_down(store: Store) -> None:
    assert text(status(store, None)).startswith("zk0d is not running (it never ran here)")
    store.event("daemon", "zk0d started")
    assert text(status(store, None)).startswith("zk0d is not running (state as of ")
