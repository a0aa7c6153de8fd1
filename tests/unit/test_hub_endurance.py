"""What keeps a hub going for a year: a full disk, a database that fails, files that are damaged, nodes that ask too much.

Around a merge: test_hub_merging.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from pathlib import Path

import pytest
from test_hub_merging import add_version, with_hub

from zk0d.errors import PayloadError, RefusedError
from zk0d.hub import metrics, refusals, rounds
from zk0d.hub.aggregate import merge
from zk0d.hub.federation import LEAVES
from zk0d.hub.lost import DamagedError
from zk0d.hub.service import Hub
from zk0d.model.blobs import LEAF, Manifest, name_of
from zk0d.model.leaves import leaves_of


def test_a_full_disk_costs_the_parts_that_nobody_sends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_IDLE_S", 5.0)

    async def play(hub: Hub) -> None:
        parts = {}
        for name in ("idle", "fresh", "sent"):
            digest = name_of(name.encode() * LEAF)
            manifest = Manifest(digest, LEAF * len(name), LEAF, leaves_of(name.encode() * LEAF))
            hub.blobs.partial(digest, manifest).close()
            parts[name] = hub.blobs.partials / f"{digest.removeprefix('blob:')}.part"
            if name != "fresh":
                os.utime(parts[name], (1e9, 1e9))
        monkeypatch.setattr(
            hub.ledger, "update", lambda d: {"payload": f"blob:{parts['sent'].stem}"} if d == "u" else None
        )
        with hub.aftermath.receiving("u"):
            hub.aftermath.make_room()
        assert {name: part.exists() for name, part in parts.items()} == {"idle": False, "fresh": True, "sent": True}
        assert not hub.blobs._arriving

    with_hub(tmp_path, play)


def test_a_merge_of_a_damaged_file_refuses_that_update_and_no_other(tmp_path: Path) -> None:
    async def play(hub: Hub) -> None:
        merges = hub.federations["fed"]._merging
        refused: list[tuple[list[str], str, bool]] = []
        spec = hub.federations["fed"].spec
        row = hub.ledger.federation("fed")
        shares = tuple(rounds.Share(f"update {n}", f"node{n}", 0, 0.5) for n in range(2))
        good = hub.blobs.path(row["exchange"])
        with pytest.raises(DamagedError) as found:
            merge(spec, (good, good), [(good, 0.5), (tmp_path / "gone", 0.5)], tmp_path / "m", tmp_path / "p")
        assert found.value.number == 1
        rows = {s.update: {"digest": s.update, "norm": 9.0 - n} for n, s in enumerate(shares)}
        hub.ledger.update = rows.get  # type: ignore[method-assign,assignment]

        def drop(name: str, version: int, updates: list[str], reason: str, *, fault: bool) -> None:
            refused.append((updates, reason, fault))

        hub.ledger.plans.drop = drop  # type: ignore[method-assign,assignment]
        merges.consider = lambda: None  # type: ignore[method-assign]
        merges._give_up(rounds.Merge(1, shares), found.value)
        merges._give_up(rounds.Merge(1, shares), PayloadError("infinite"))
        assert [(u, f) for u, _, f in refused] == [(["update 1"], False), (["update 0"], True)]
        assert "lost its bytes" in refused[0][1]

    with_hub(tmp_path, play)


def test_evaluations_go_on_after_a_database_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(hub: Hub) -> None:
        begun: list[int] = []

        async def evaluate(version: sqlite3.Row) -> None:
            begun.append(version["number"])
            if len(begun) == 1:
                raise sqlite3.OperationalError("database or disk is full")
            with hub.store.write() as db:
                db.execute("UPDATE versions SET evaluation = 'done'")

        monkeypatch.setitem(hub.evaluations._settings._values, "runtime.retry_s", 0.01)
        monkeypatch.setattr(hub.evaluations, "_evaluate", evaluate)
        with hub.store.write() as db:
            db.execute("UPDATE versions SET evaluation = 'waiting'")
            db.execute("ALTER TABLE versions RENAME TO versions_away")
        hub.evaluations.start()
        await asyncio.sleep(0.05)  # it fails, and looks again
        with hub.store.write() as db:
            db.execute("ALTER TABLE versions_away RENAME TO versions")
        async with asyncio.timeout(60):
            while hub.ledger.assessments.to_evaluate() is not None:
                await asyncio.sleep(0.01)
        version = hub.ledger.version("fed", 0)
        assert begun == [0, 0] and version is not None and version["attempts"] == 0, "the disk's trouble is no attempt"

    with_hub(tmp_path, play)


def test_a_node_cannot_fill_the_audit_by_leaving_and_joining(tmp_path: Path) -> None:
    async def play(hub: Hub) -> None:
        federation, lines = hub.federations["fed"], "SELECT count(*) AS n FROM audit WHERE action = 'federation.leave'"
        with hub.store.write() as db:
            db.execute("INSERT INTO nodes (node, label, state, key, csr, address, requested_at)"
                       " VALUES ('a', 'a', 'approved', 'a', x'', '', 0)")  # fmt: skip
        hub.ledger.members.join("fed", "a", {}, [])
        with pytest.raises(RefusedError, match="too often") as found:
            for _ in range(100):
                assert federation.leave("a") == {"state": "left"} == federation.leave("a")
                hub.ledger.members.join("fed", "a", {}, [])
        row = hub.store.one(lines)
        assert found.value.reason == "busy" and row is not None and row["n"] == LEAVES
        assert hub.ledger.members.has("fed", "a")

    with_hub(tmp_path, play)


@pytest.mark.parametrize("left", ["nothing", "all but two", "torn", "another version", "another line"])
def test_metrics_are_taken_up_where_an_earlier_run_left_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    monkeypatch.setattr(metrics, "AT_ONCE", 3)

    async def play(hub: Hub) -> None:
        with hub.store.write() as db:
            for number in range(1, 9):
                add_version(db, number, name_of(bytes([number])))
            db.execute("UPDATE versions SET evaluation = 'waiting' WHERE number >= 7")
        told = [json.dumps(line) + "\n" for line in hub.evaluations.metrics.lines("fed")]
        assert [json.loads(line)["version"] for line in told] == list(range(7))
        path = hub.directory / "federations" / "fed" / "metrics.jsonl"
        before = {
            "all but two": "".join(told[:5]),
            "torn": "".join(told[:5]) + told[5][:40],
            "another version": "".join(told) + told[6].replace('"version": 6', '"version": 60'),
            "another line": "".join(told[:5]).replace('"bytes_up": 0', '"bytes_up": 1'),
        }.get(left)
        if before is not None:
            path.write_text(before)
        made: list[int] = []
        lines = hub.evaluations.metrics.lines

        def counted(name: str, first: int = 0, end: int = 1 << 62) -> list[dict[str, object]]:
            found = lines(name, first, end)
            made.extend(line["version"] for line in found)
            return found

        monkeypatch.setattr(hub.evaluations.metrics, "lines", counted)
        await hub.evaluations.metrics.report("fed")
        assert path.read_text() == "".join(told)
        assert len(made) == {"all but two": 3, "torn": 3, "nothing": 7}.get(left, 8 if left == "another line" else 7)
        with hub.store.write() as db:
            db.execute("UPDATE versions SET evaluation = 'done'")
        made.clear()
        await hub.evaluations.metrics.report("fed")
        assert made == [7, 8] and len(path.read_text().splitlines()) == 9

    with_hub(tmp_path, play)


def test_a_federation_that_lost_its_spec_keeps_no_other_from_receiving(tmp_path: Path) -> None:
    async def play(hub: Hub) -> None:
        federation = hub.federations["fed"]
        assert federation.merge_room == 3 * federation.spec.payload_bytes > 0
        federation._spec = None
        hub.blobs.delete(federation.row["spec"])
        assert federation.merge_room == 0

    with_hub(tmp_path, play)
