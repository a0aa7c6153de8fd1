"""Which folders a hub lacks, in which order they are made, and what it costs to find out. Not for making them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hub_cast import TOML
from still_hub import play_on

from zk0d.hub import folders
from zk0d.hub.service import Hub
from zk0d.model.leaves import name_of

NO_BLOB = (3, 150)


def with_versions(folder: Path, settings: str, play: Callable[[Hub, folders.Folders], Awaitable[None]]) -> None:
    """Play on a hub that does not listen: 200 evaluated versions, two without their blob, and version 7 in its folder."""

    async def filled(hub: Hub) -> None:
        here, gone = hub.ledger.federation("fed")["exchange"], name_of(b"gone")
        with hub.store.write() as db:
            db.execute("UPDATE federations SET phase = 'open', spec = draft_spec")
            db.executemany(
                "INSERT INTO versions (federation, number, digest, master, size, created_at, merge_s, updates,"
                " samples, evaluation) VALUES ('fed', ?, ?, '', 1, 1, 0, 0, 0, 'done')",
                [(n, gone if n in NO_BLOB else here) for n in range(200)],
            )
        found = hub.evaluations.folders
        found.path("fed", 7).mkdir(parents=True)
        await play(hub, found)

    toml = TOML.format(nodes=2, versions=0, dtype="bfloat16", deadline_s=600) + settings
    play_on(folder, toml, filled)


async def in_turn(found: folders.Folders) -> list[int]:
    made = []
    while (row := await found.next()) is not None:
        made.append(int(row["number"]))
        found.made("fed", made[-1])
    return made


@pytest.mark.parametrize("push", ["best", "every"])
def test_they_are_looked_for_once_and_beside_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, push: str
) -> None:
    """A restored hub lacks all of them. Those without a blob can never be made, and are no alarm."""
    looked: list[Path] = []
    present = folders._present

    def counted(versions: Path) -> set[int]:
        looked.append(versions)
        return present(versions)

    monkeypatch.setattr(folders, "_present", counted)

    async def play(hub: Hub, found: folders.Folders) -> None:
        found.look("fed")
        first = asyncio.create_task(found.next())
        await asyncio.sleep(0)
        assert not first.done(), "the disk is read in a thread"
        await first
        made = await in_turn(found)
        wanted = [n for n in range(200) if n not in (7, *NO_BLOB)]
        assert made == (wanted if push == "every" else wanted[::-1])
        assert len(looked) == 1
        found.look("fed")
        assert (again := await found.next()) is not None and again["number"] == made[0] and len(looked) == 2

    with_versions(tmp_path, f'[publish]\nrepo = "us/cubes"\npush = "{push}"\n', play)


def test_what_changes_meanwhile_is_seen(tmp_path: Path) -> None:
    async def play(hub: Hub, found: folders.Folders) -> None:
        found.look("fed")
        assert (row := await found.next()) is not None and row["number"] == 199
        with hub.store.write() as db:
            db.execute("UPDATE versions SET retired_at = 1 WHERE number = 199")
            db.execute("UPDATE versions SET evaluation = 'waiting' WHERE number = 198")
        assert (row := await found.next()) is not None and row["number"] == 197
        for _ in range(hub.config["runtime.attempts"]):
            found.failed("fed", 197, "it is so")
        assert (row := await found.next()) is not None and row["number"] == 196
        assert found.problem("fed") == "version 197 has no folder: it is so"
        found.forget("fed")
        assert (row := await found.next()) is not None and row["number"] == 197 and not found.problem("fed")

    with_versions(tmp_path, "", play)


def test_a_failure_of_a_version_that_is_not_kept_any_more_is_no_alarm(tmp_path: Path) -> None:
    """`zk0-hub evaluate`, which health names, tries what is kept."""

    async def play(hub: Hub, found: folders.Folders) -> None:
        with hub.store.write() as db:
            db.execute("UPDATE versions SET evaluation = 'failed' WHERE number >= 198")
        assert hub.ledger.assessments.last_failed("fed") == 199
        with hub.store.write() as db:
            db.execute("UPDATE versions SET retired_at = 1 WHERE number >= 198")
        assert hub.ledger.assessments.last_failed("fed") is None

    with_versions(tmp_path, "", play)
