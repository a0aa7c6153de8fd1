"""Backup of a running hub and its restore; the quarantine and the audit as a maintainer reads them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_cast import REPOSITORY, HubProcess, TestNode, make_parts, until

from zk0d.errors import ConfigError, UsageError
from zk0d.hub import backup, tables
from zk0d.hub.admin import Admin
from zk0d.hub.discards import Discards, keep_all
from zk0d.hub.main import main
from zk0d.hub.service import Hub
from zk0d.model.blobs import BlobStore


async def rounds(tmp_path: Path, hub: HubProcess) -> None:
    spec = make_parts(tmp_path / "parts", 2000)
    hub.create("pick", tmp_path / "parts", 1)
    node = TestNode(tmp_path, "a")
    await node.enrol(hub)
    await node.connect()
    await node.join("pick")
    saved: list[Path] = []
    busy = True

    async def save() -> None:
        while busy:
            saved.append(tmp_path / f"busy{len(saved)}")
            told = await asyncio.to_thread(backup.make, hub.folder, saved[-1])
            assert told["missing"] == []

    saving: asyncio.Task[None] | None = None
    for version in range(2):
        task = await node.task("pick", version)
        offer = node.prepare(spec, task, node.delta(spec, task))
        await node.give(offer, until=lambda r, v=version: r["new_version"] == v + 1)  # type: ignore[misc]
        if version == 0:
            command = ["--dir", str(hub.folder), "backup", str(tmp_path / "saved"), "--json"]
            assert await asyncio.to_thread(main, command) == 0
            saving = asyncio.create_task(save())
    busy = False
    assert saving is not None
    await saving
    for number, made in enumerate(saved):
        backup.restore(made, tmp_path / f"hub{number}")
    lost = task = await node.task("pick", 2)
    trained = node.prepare(spec, lost, node.delta(spec, lost))
    bad = node.delta(spec, task)
    bad["head.bias"][0] = float("nan")
    assert "NaN" in await node.refused(node.prepare(spec, task, bad))
    await until(
        lambda: all(v["evaluation"] == "failed" for v in hub.ask("versions", name="pick")), "all is said of them"
    )
    before = hub.ask("versions", name="pick")
    assert [v["version"] for v in before] == [0, 1, 2]

    # The disk is lost. The restored hub has version 1 and the node goes on from there.
    hub.stop()
    shutil.rmtree(hub.folder)
    assert main(["--dir", str(hub.folder), "restore", str(tmp_path / "saved")]) == 0
    hub.start()
    await until(lambda: hub.ask("versions", name="pick") == before[:2], "it knows what it knew, evaluations and all")
    task = await node.task("pick", 1)
    offer = node.prepare(spec, task, {n: v * 2 for n, v in node.delta(spec, task).items()})
    await node.give(offer, until=lambda r: r["new_version"] == 2)

    # It has another version 2 now: what was trained on the lost one is not taken for it, whoever offers it.
    task = await node.task("pick", 2)
    assert (
        task["version_digest"] != lost["version_digest"] and task["id"] != lost["id"] and task["seed"] != lost["seed"]
    )
    assert "another version 2 than this hub's" in await node.refused(trained)
    unsaid = {k: v for k, v in json.loads(trained["statement"]).items() if k != "base"}  # as an older node states it
    assert "no task of this node" in await node.refused(node.sign(unsaid))
    await node.give(node.prepare(spec, task, node.delta(spec, task)), until=lambda r: r["new_version"] == 3)
    await node.close()


def test_a_backup_made_while_running_is_a_hub_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub = HubProcess(tmp_path / "hub")
    hub.start()
    try:
        asyncio.run(rounds(tmp_path, hub))
        acts = hub.ask("audit")
        assert [a["action"] for a in acts][:4] == ["init", "federation.create", "invite", "backup"]
        assert [a["action"] for a in acts][4:] == ["restore"]  # the restored hub knows what its backup knew
        assert all(a["actor"].startswith("admin:") for a in acts)
        assert len(hub.ask("audit", all=True)) > len(acts)
        with pytest.raises(UsageError, match="approve needs 'node'"):
            hub.ask("approve")
    finally:
        hub.stop()
    assert main(["--dir", str(tmp_path / "hub"), "backup", str(tmp_path / "saved")]) != 0  # never over another
    assert main(["--dir", str(tmp_path / "hub"), "restore", str(tmp_path / "saved")]) != 0
    capsys.readouterr()
    assert main(["--dir", str(tmp_path / "hub"), "backup", str(tmp_path / "again"), "--json"]) == 0  # stopped
    assert json.loads(capsys.readouterr().out)["missing"] == []
    assert_that_restore_looks(tmp_path)


def assert_that_restore_looks(folder: Path) -> None:
    """What cannot be a whole hub is refused, and nothing is left."""
    saved = folder / "again"
    blob = next(p for p in (saved / "blobs" / "whole").rglob("*") if p.is_file())

    def hide(path: Path) -> Callable[[], object]:
        path.rename(path.with_name("hidden"))
        return lambda: path.with_name("hidden").rename(path)

    def spoil(path: Path, data: bytes) -> Callable[[], object]:
        before = path.read_bytes()
        path.unlink()  # it may be the same file as the hub's
        path.write_bytes(data)

        def back() -> None:
            path.unlink()
            path.write_bytes(before)
            path.chmod(0o600)

        return back

    told = json.loads((saved / "backup.json").read_text())
    for harm, said in (
        (lambda: hide(saved / "backup.json"), "whole backup"),
        (lambda: hide(blob), "lacks 1 blobs"),
        (lambda: spoil(blob, b"x" * blob.stat().st_size), "damaged"),
        (lambda: spoil(saved / "hub.db", (saved / "hub.db").read_bytes()[:5000]), "database is damaged"),
        (lambda: spoil(saved / "backup.json", json.dumps({**told, "receipts": 99}).encode()), "says 99"),
        (lambda: hide(saved / "keys" / "receipt.key"), "receipt.key"),
        (lambda: spoil(saved / "keys" / "server.pem", (saved / "ca" / "ca.pem").read_bytes()), "certificates"),
    ):
        undo = harm()
        with pytest.raises(ConfigError, match=said):
            backup.restore(saved, folder / "new")
        undo()
        assert not (folder / "new").exists() and not (folder / ".new.restoring").exists()
    assert backup.restore(saved, folder / "new")["blobs"] == told["blobs"]


def test_nothing_is_deleted_under_a_backup(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs", reserve=0)
    first, second = blobs.add_bytes(b"1"), blobs.add_bytes(b"2")
    needed: set[str] = set()
    discard = Discards(tmp_path, blobs, needed.__contains__)
    with keep_all(tmp_path), keep_all(tmp_path):
        discard(first)
        discard(second)
        assert blobs.has(first) and blobs.has(second)
        needed.add(second)
    discard.catch_up()
    assert not blobs.has(first) and blobs.has(second)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave what another user cannot open")
def test_a_backup_and_a_restore_by_root_leave_the_hub_its_own_users(capsys: pytest.CaptureFixture[str]) -> None:
    """With `sudo zk0-hub backup` a hub of user zk0-hub goes on deleting, and serves what `sudo zk0-hub restore` makes."""
    user = 65534
    with tempfile.TemporaryDirectory() as name:  # which that user can come to
        top, hub = Path(name), Path(name) / "hub"
        top.chmod(0o755)
        assert main(["--dir", str(hub), "init", "--listen", "127.0.0.1:0"]) == 0
        for path in (hub, *hub.rglob("*")):
            os.chown(path, user, user)
        assert main(["--dir", str(hub), "backup", str(top / "first")]) == 0
        assert {p.stat().st_uid for p in hub.rglob("*")} == {user}
        again = top / "again"
        again.mkdir()
        os.chown(again, user, user)
        assert main(["--dir", str(again), "restore", str(top / "first")]) == 0
        assert {p.stat().st_uid for p in (again, *again.rglob("*"))} == {user}
        assert "root's" not in capsys.readouterr().out
        assert main(["--dir", str(top / "third"), "restore", str(top / "first")]) == 0
        assert f"it is root's: if the hub runs as another user, as zk0-hub, `chown -R zk0-hub: {top}/third`" in (
            capsys.readouterr().out)  # fmt: skip
        os.seteuid(user)
        try:
            blobs = BlobStore(again / "blobs", reserve=0)
            discard = Discards(again, blobs, lambda digest: False)
            discard(digest := blobs.add_bytes(b"old"))
            assert not blobs.has(digest) and discard.problem == ""
        finally:
            os.seteuid(0)


def test_what_cannot_be_deleted_is_said_in_the_status(tmp_path: Path) -> None:
    assert main(["--dir", str(tmp_path / "hub"), "init", "--listen", "127.0.0.1:0"]) == 0

    async def play() -> None:
        hub = Hub(tmp_path / "hub")
        try:
            digest = hub.blobs.add_bytes(b"old")
            path = hub.blobs.path(digest)
            path.unlink()
            path.mkdir()
            hub.discard(digest)
            assert (await Admin(hub).status({}, None))["health"] == [  # type: ignore[arg-type]
                f"what nothing needs stays on the disk, which fills: {path}: Is a directory"
            ]
            path.rmdir()
            hub.discard.catch_up()
            assert (await Admin(hub).status({}, None))["health"] == []  # type: ignore[arg-type]
        finally:
            await hub.close()

    asyncio.run(play())


def test_quarantine_is_looked_at_by_header_only(tmp_path: Path) -> None:
    from zk0d.hub import quarantine

    name = "ab" * 32
    record = {"update": f"sha256:{name}", "node": "node-1", "federation": "pick", "payload": "p", "reason": "a NaN"}
    (tmp_path / f"{name}.json").write_text(json.dumps(record))
    (tmp_path / f"{name}.payload").write_bytes(b"\xff" * 100)
    assert quarantine.entries(tmp_path)[0]["bytes"] == 100
    shown = quarantine.show(tmp_path, "abab")
    assert shown["tensors"] == [] and shown["header_problem"]
    for bad in ("../etc", "zz", "sha256:*", ""):
        with pytest.raises(UsageError, match="quarantine"):
            quarantine.show(tmp_path, bad)
    quarantine.drop(tmp_path, f"sha256:{name}")
    assert list(tmp_path.iterdir()) == []
    # What is not a record of ours is named, and keeps no other from being listed and dropped.
    (tmp_path / f"{name}.json").write_text(json.dumps(record))
    for other, text in (("cd", "{"), ("ef", "[1]"), ("01", "{}"), ("23", '{"update": 1}')):
        (tmp_path / f"{other * 32}.json").write_text(text)
    (tmp_path / f"{'45' * 32}.json").write_bytes(b"\xff")
    found = {e["update"]: e["reason"] for e in quarantine.entries(tmp_path)}
    assert len(found) == 6 and found.pop(record["update"]) == "a NaN"
    assert all(f"{update.removeprefix('sha256:')}.json is damaged" in why for update, why in found.items())
    assert tables.quarantine(quarantine.entries(tmp_path)).count("damaged") == 5
    for update in found:
        quarantine.drop(tmp_path, update)
    assert [e["update"] for e in quarantine.entries(tmp_path)] == [record["update"]]


def test_a_hub_is_restored_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--dir", str(tmp_path / "hub"), "init", "--listen", "127.0.0.1:0"]) == 0
    assert main(["--dir", str(tmp_path / "hub"), "backup", str(tmp_path / "saved")]) == 0
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    assert main(["--dir", ".", "restore", str(tmp_path / "saved")]) == 0
    assert (tmp_path / "new" / "hub.db").is_file()
    monkeypatch.chdir(tmp_path)  # out of what is no folder any more


def serve(folder: Path) -> subprocess.CompletedProcess[str]:
    """Of a hub that is not to start."""
    words = [sys.executable, "-m", "zk0d.hub.main", "--dir", str(folder), "serve"]
    return subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY, timeout=60)


@pytest.mark.parametrize("left", ["nothing", "empty"])
def test_a_hub_that_lost_its_database_does_not_begin_anew(tmp_path: Path, left: str) -> None:
    folder = tmp_path / "hub"
    assert main(["--dir", str(folder), "init", "--listen", "127.0.0.1:0"]) == 0
    (folder / "hub.db").unlink()
    if left == "empty":
        (folder / "hub.db").touch()
    done = serve(folder)
    assert done.returncode == 78
    assert "the hub has lost its nodes, versions and receipts\n  `zk0-hub --dir NEW restore" in done.stderr
    assert (folder / "hub.db").exists() == (left == "empty") and not (folder / "hub.db-wal").exists()


def test_settings_that_are_not_text_are_told(tmp_path: Path) -> None:
    assert main(["--dir", str(tmp_path / "hub"), "init", "--listen", "127.0.0.1:0"]) == 0
    with (tmp_path / "hub" / "hub.toml").open("ab") as settings:
        settings.write("# böse\n".encode("latin-1"))
    done = serve(tmp_path / "hub")
    assert done.returncode == 78 and "hub.toml is not UTF-8 text" in done.stderr
