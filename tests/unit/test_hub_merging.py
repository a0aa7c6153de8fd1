"""What a federation does when database or disk fail it around a merge. Not for merges themselves (rounds live)."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hub_cast import TOML, free_port
from still_hub import play_on

from zk0d.errors import ConfigError, PayloadError, WorkerError, Zk0Error
from zk0d.hub import lost, merging, rounds, stewardship
from zk0d.hub.admin import Admin
from zk0d.hub.aggregate import Merged
from zk0d.hub.discards import Discards, keep_all
from zk0d.hub.main import main
from zk0d.hub.service import Hub
from zk0d.model.blobs import BlobStore


def test_a_database_that_fails_once_is_told_and_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "_MERGE_RETRY_S", 0.02)

    async def play(hub: Hub) -> None:
        federation = hub.federations["fed"]
        with hub.store.write() as db:
            db.execute("ALTER TABLE merges RENAME TO merges_away")
        federation.consider()
        assert federation.problem == "the next merge cannot be begun: no such table: merges"
        await asyncio.sleep(0.05)  # it looks again, and goes on saying so
        assert federation.problem
        with hub.store.write() as db:
            db.execute("ALTER TABLE merges_away RENAME TO merges")
        async with asyncio.timeout(60):
            while federation.problem:  # nobody calls it: it looks by itself
                await asyncio.sleep(0.01)

    play_on(tmp_path, TOML.format(nodes=1, versions=0, dtype="bfloat16", deadline_s=600), play)


TWO = TOML.format(nodes=2, versions=0, dtype="bfloat16", deadline_s=600) + "[publish]\nkeep_last = 3\n"


def with_hub(folder: Path, play: Callable[[Hub], Awaitable[None]]) -> None:
    """Play on a hub that does not listen, with an open federation `fed` at version 0."""

    async def opened(hub: Hub) -> None:
        with hub.store.write() as db:
            row = hub.ledger.federation("fed")
            db.execute("UPDATE federations SET phase = 'open', spec = draft_spec")
            add_version(db, 0, row["exchange"])
        await play(hub)

    play_on(folder, TWO, opened)


def add_version(db: sqlite3.Connection, number: int, digest: str, master: str = "", moments: str = "[]") -> None:
    db.execute(
        "INSERT INTO versions (federation, number, digest, master, size, created_at, merge_s, updates, samples,"
        " evaluation, moments) VALUES ('fed', ?, ?, ?, 1, 1, 0, 0, 0, 'done', ?)",
        (number, digest, master or digest, moments),
    )


@pytest.mark.parametrize("trouble", ["database", "lock"])
def test_a_version_that_is_out_is_told_whatever_retention_cannot_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    async def play(hub: Hub) -> None:
        merges, backup = hub.federations["fed"]._merging, ExitStack()
        told: list[str] = []
        old = [hub.blobs.add_bytes(bytes([n]) * 64) for n in range(5)]
        with hub.store.write() as db:
            for number, digest in enumerate(old, 1):
                add_version(db, number, digest)

        async def made(merge: rounds.Merge) -> tuple[Merged, float]:
            return Merged("blob:" + "1" * 64, "blob:" + "2" * 64, 9), 0.1

        def fails(*_: object) -> list[str]:
            raise sqlite3.OperationalError("disk I/O error")

        monkeypatch.setattr(merges, "_aggregate", made)
        monkeypatch.setattr(merges, "consider", lambda: told.append("considered"))
        monkeypatch.setattr(hub.evaluations, "wake", lambda: told.append("woken"))
        if trouble == "database":
            monkeypatch.setattr(hub.ledger.retention, "retire", fails)
        else:
            backup.enter_context(keep_all(hub.directory))
        merge = rounds.Merge(6, ())
        hub.ledger.plans.begin("fed", merge)
        merges.busy = True
        await merges._merge(merge)
        assert told == ["woken", "considered"] and not merges.busy
        newest = hub.ledger.version("fed")
        assert newest is not None and newest["number"] == 6
        assert all(hub.blobs.has(d) for d in old)
        if trouble == "lock":  # once it can be, they go
            assert hub.ledger.retention.kept("fed") == [0, 4, 5, 6]
            backup.close()
            hub.discard.catch_up()
            assert [hub.blobs.has(d) for d in old] == [False] * 3 + [True] * 2

    with_hub(tmp_path, play)


def test_one_blob_that_cannot_be_deleted_holds_no_other_up(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs", reserve=0)
    names = sorted(blobs.add_bytes(bytes([n]) * 9) for n in range(3))
    stuck = blobs.path(names[0])
    stuck.unlink()
    stuck.mkdir()
    discard = Discards(tmp_path, blobs, lambda digest: False)
    for name in names:
        discard(name)
    assert [blobs.path(n).exists() for n in names] == [True, False, False]
    stuck.rmdir()
    for n in range(3):
        blobs.add_bytes(bytes([n]) * 9)
    discard.catch_up()  # it was kept in mind, and the others were not
    assert [blobs.has(n) for n in names] == [False, True, True]


def test_settings_given_during_a_merge_hold_when_it_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(hub: Hub) -> None:
        federation = hub.federations["fed"]
        merges = federation._merging
        merge = rounds.Merge(1, (rounds.Share("sha256:x", "a", 0, 1.0),))
        hub.ledger.plans.begin("fed", merge)
        merges.busy = True
        new = TWO.replace("deadline_s = 600", "deadline_s = 5")
        assert stewardship.change_settings(federation, new, "new.toml", "admin:me")[1] == []
        assert federation.rules.deadline_s == 600
        monkeypatch.setattr(hub.ledger, "update", lambda digest: {"norm": 1.0, "digest": digest})
        merges._give_up(merge, PayloadError("infinite"))
        assert not merges.busy and federation.rules.deadline_s == federation.config["rounds.deadline_s"] == 5

    with_hub(tmp_path, play)


def test_a_privacy_that_no_merge_can_hold_is_told_and_mended_at_once(tmp_path: Path) -> None:
    """Its version never comes, so settings that waited for it would never hold."""
    spoilt, mended = (TWO + f"[privacy]\nclip_norm = 1\nnoise_multiplier = {n}\n" for n in ("inf", "1"))

    async def play(hub: Hub) -> None:
        for waiting in (mended, ""):
            with hub.store.write() as db:
                db.execute("UPDATE federations SET config = ?, next_config = ?", (spoilt, waiting))
            hub.ledger.plans.begin("fed", rounds.Merge(1, ()))  # by the older hub
            hub.federations.pop("fed").close()
            hub.add("fed")  # it starts
            federation = hub.federations["fed"]
            federation.consider()
            if not waiting:
                assert federation.problem.startswith(
                    "the next merge cannot be begun: no merge can hold privacy.noise_multiplier = inf, which"
                )
                (line,) = [h for h in Admin(hub)._health([]) if "noise_multiplier" in h]
                assert "nothing holds: `zk0-hub federation set` another" in line
                changed, soon = stewardship.change_settings(federation, mended, "new.toml", "admin:me")
                assert soon == list(changed) == ["privacy.noise_multiplier"]
            assert not federation.problem and federation.config["privacy.noise_multiplier"] == 1
            assert hub.ledger.plans.unfinished("fed") is None and not federation.row["next_config"]

    with_hub(tmp_path, play)


def test_a_worker_that_goes_on_failing_has_the_files_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All updates and the hub's own files are gigabytes, and Flower may be lacking for days."""
    looked: list[str] = []
    check, says = lost.check, [""]
    error: list[type[Zk0Error]] = [WorkerError]

    def counted(*args: Any) -> None:
        looked.append(says[0])
        check(*args)

    async def fails(merge: rounds.Merge) -> tuple[Merged, float]:
        raise error[0](says[0])

    async def play(hub: Hub) -> None:
        merges = hub.federations["fed"]._merging
        monkeypatch.setattr(merges, "_aggregate", fails)
        monkeypatch.setattr(lost, "check", counted)
        for error[0], says[0] in (
            (WorkerError, "flwr is not installed"), (WorkerError, "flwr is not installed"), (WorkerError, "SIGKILL"),
            (PayloadError, "bad"), (PayloadError, "bad"),
        ):  # fmt: skip
            with pytest.raises(error[0], match=says[0]):
                await merges._made(rounds.Merge(1, ()))
        assert looked == ["flwr is not installed", "SIGKILL", "bad", "bad"]

    with_hub(tmp_path, play)


def test_an_old_federation_lets_few_versions_go_at_a_time(tmp_path: Path) -> None:
    async def play(hub: Hub) -> None:
        with hub.store.write() as db:
            for number in range(1, 41):
                add_version(db, number, hub.blobs.add_bytes(os.urandom(64)))
        left = []
        for _ in range(4):
            hub.version_made("fed")
            left.append(len(hub.ledger.retention.kept("fed")))
        assert left == [25, 9, 4, 4]  # 0 and the newest three
        assert len(list(hub.blobs.digests())) == 3 + 3  # spec, base and version 0

    with_hub(tmp_path, play)


def test_what_a_rollback_and_a_kill_left_goes(tmp_path: Path) -> None:
    async def play(hub: Hub) -> None:
        blobs = [hub.blobs.add_bytes(f"{n}".encode() * 99) for n in range(4)]
        old, new, payload, version = blobs
        with hub.store.write() as db:
            db.execute("INSERT INTO nodes (node, label, state, key, csr, address, requested_at)"
                       " VALUES ('a', 'a', 'approved', 'k', x'', '', 0)")  # fmt: skip
        hub.ledger.members.join("fed", "a", {}, [])
        zero = hub.ledger.version("fed")
        assert zero is not None
        task = hub.ledger.task("fed", "a", zero, {})
        with hub.store.write() as db:
            add_version(db, 1, "blob:" + "1" * 64, moments=json.dumps([old]))
            add_version(db, 2, zero["digest"])  # rolled back to
            add_version(db, 3, version, moments=json.dumps([new]))
            db.execute("INSERT INTO updates (digest, federation, task, node, base_version, payload, size, samples,"
                       " statement, signature, state, offered_at, new_version)"
                       " VALUES ('u', 'fed', ?, 'a', 0, ?, 1, 1, x'', x'', 'merged', 1, 1)", (task["id"], payload))  # fmt: skip
        hub.federations["fed"]._merging._prune(3)
        assert [hub.blobs.has(d) for d in blobs] == [False, True, False, True]
        hub.blobs.add_bytes(b"0" * 99)  # as if a kill had come before it went
        hub.aftermath.sweep()
        assert [hub.blobs.has(d) for d in blobs] == [False, True, False, True]

    with_hub(tmp_path, play)


def test_blobs_of_an_earlier_layout_are_refused_before_the_database_is_touched(tmp_path: Path) -> None:
    assert main(["--dir", str(tmp_path), "init", "--listen", f"127.0.0.1:{free_port()}", "--name", "t"]) == 0
    (tmp_path / "hub.db").unlink(missing_ok=True)
    (tmp_path / "blobs" / "sha256").mkdir(parents=True)
    with pytest.raises(ConfigError, match="earlier zk0d"):
        Hub(tmp_path)
    assert not (tmp_path / "hub.db").exists()


def test_a_file_that_is_never_readable_again_holds_nobody_up_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "_MERGE_RETRY_S", 0.02)

    async def play(hub: Hub) -> None:
        federation = hub.federations["fed"]
        zero = hub.ledger.version("fed")
        assert zero is not None
        for number, node in enumerate("ab"):
            payload = hub.blobs.add_file(tmp_path / "parts" / "exchange.safetensors")
            if number:
                payload = "blob:" + "1" * 64
                hub.blobs.path(payload).mkdir(parents=True)
            with hub.store.write() as db:
                db.execute("INSERT INTO nodes (node, label, state, key, csr, address, requested_at)"
                           " VALUES (?, ?, 'approved', ?, x'', '', 0)", (node, node, node))  # fmt: skip
            hub.ledger.members.join("fed", node, {}, [])
            task = hub.ledger.task("fed", node, zero, {})
            with hub.store.write() as db:
                db.execute("INSERT INTO updates (digest, federation, task, node, base_version, payload, size, samples,"
                           " statement, signature, state, offered_at, decided_at)"
                           " VALUES (?, 'fed', ?, ?, 0, ?, 1, 1, x'', x'', 'admitted', 1, ?)",
                           (f"sha256:{node * 64}", task["id"], node, payload, hub.now()))  # fmt: skip
        federation.consider()
        told = set()
        async with asyncio.timeout(60):
            while (row := hub.ledger.update(f"sha256:{'b' * 64}")) and row["state"] == "admitted":
                told.add(federation.problem.partition("; else")[0])
                await asyncio.sleep(0.005)
        assert row and (row["reason"], row["fault"]) == (
            "it could not be merged: the hub has lost its bytes: their file cannot be read: Is a directory", 0)  # fmt: skip
        path = hub.blobs.path("blob:" + "1" * 64)
        assert (
            f"version 1 cannot be merged: the update of b cannot be read: {path}: Is a directory (mend the file, or"
            " `zk0-hub federation drop fed bbbbbbbbbbbb` goes on without it"
        ) in told
        assert federation.problem == "" and len(hub.ledger.snapshot("fed").buffer) == 1

    with_hub(tmp_path, play)


def test_a_drain_names_whom_it_waits_for_and_ends_without_him(tmp_path: Path) -> None:
    async def play(hub: Hub) -> None:
        federation, zero = hub.federations["fed"], hub.ledger.version("fed")
        assert zero is not None
        with hub.store.write() as db:
            db.execute("INSERT INTO nodes (node, label, state, key, csr, address, requested_at)"
                       " VALUES ('gone', 'a', 'approved', 'k', x'', '', 0)")  # fmt: skip
        hub.ledger.members.join("fed", "gone", {}, [])
        hub.ledger.task("fed", "gone", zero, {})
        stewardship.hold(federation, "draining", "admin:me")
        assert federation.headline() == (
            "version 0 is out; 0 of 2 updates for the next, draining: waits for gone, at most 10 min more"
        )
        hub.now = lambda: hub.store.now() + 601
        assert federation.headline() == "drained at version 0 without gone, who gave nothing: `thaw` goes on"
        stewardship.hold(federation, "", "admin:me")
        assert "draining" not in federation.headline()

    with_hub(tmp_path, play)
