"""The node's state file: what is put in comes out, also after `kill -9` and for a reader while no daemon runs."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from zk0d.daemon.store import Dataset, Hub, Store, Update, Version
from zk0d.errors import DatasetError, NotRunningError, UnknownStateError

TASK = {"id": "t1", "federation": "pick", "version": 3, "local_steps": 10}


def update(digest: str = "sha256:u", task: str = "t1") -> Update:
    return Update(digest, task, "pick", b"{}", b"sig", "sha256:p", 5, "waiting", "", time.time())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "zk0d.db")
    yield opened
    opened.close()


def test_newer_schema_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "zk0d.db").close()
    with sqlite3.connect(tmp_path / "zk0d.db") as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(UnknownStateError, match="schema 99"):
        Store(tmp_path / "zk0d.db")


def test_settings_of_the_file(store: Store) -> None:
    assert store._row("PRAGMA journal_mode")[0] == "wal"  # type: ignore[index]
    assert store._row("PRAGMA synchronous")[0] == 2  # type: ignore[index]


def test_a_task_is_trained_once(store: Store) -> None:
    store.add_task(TASK)
    store.set_task("t1", state="ready")
    task = store.task_at_hand()
    assert task is not None and task.version == 3
    store.add_update(update())
    assert store.task_at_hand() is None
    store.add_update(update("sha256:other"))  # the same task again, as after a crash between two steps
    assert [u.digest for u in store.updates("waiting")] == ["sha256:u"]


def test_receipt_releases_the_update(store: Store) -> None:
    store.add_task(TASK)
    store.add_update(update())
    store.add_receipt("sha256:u", "pick", b'{"new_version": null}', b"s")
    store.add_receipt("sha256:u", "pick", b'{"new_version": 4}', b"s")
    assert store.updates("waiting") == []
    assert [r["new_version"] for r in store.receipts()] == [4]


def test_wire_ids_are_random_per_federation_and_stay(store: Store) -> None:
    first = store.wire_id("lift", "pick")
    assert store.wire_id("lift", "pick") == first
    assert store.wire_id("lift", "stack") != first


def test_dataset_round_trip(store: Store) -> None:
    d = Dataset(
        "lift", Path("/x"), 2, 30, 30, {"action": {"shape": [6]}}, ("lift it",), "degrees", {"a": "b"}, True, 1.0
    )
    store.put_dataset(d)
    assert store.dataset("lift") == d
    with pytest.raises(DatasetError, match="known: lift"):
        store.dataset("left")


def test_versions_do_not_lose_what_was_fetched(store: Store) -> None:
    v = Version("pick", 1, "sha256:v", "s", "b", {}, 1.0, True)
    store.put_version(v)
    store.put_version(Version("pick", 1, "sha256:v", "s", "b", {"loss": 1}, 1.0, False))
    assert store.versions("pick")[0].fetched and store.versions("pick")[0].metrics == {"loss": 1}


def test_events_are_trimmed_and_followed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zk0d.daemon.store.EVENTS_KEPT", 3)
    for n in range(5):
        store.event("k", str(n))
    assert [e["text"] for e in store.events(10)] == ["2", "3", "4"]
    assert [e["text"] for e in store.events(10, after=store.events(10)[1]["id"])] == ["4"]


def test_a_transaction_is_all_or_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.transaction():
        store.put("a", 1)
        raise RuntimeError
    assert store.get("a") is None


def test_committed_survives_kill_and_is_read_without_a_daemon(tmp_path: Path) -> None:
    path = tmp_path / "zk0d.db"
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom zk0d.daemon.store import Hub, Store\n"
        f"s = Store(Path({str(path)!r}))\ns.set_hub(Hub('h', 'host', 7, 'node-1', b'k', 1.0))\n"
        "print('committed', flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"committed\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    store = Store.read(path)
    assert store.hub() == Hub("h", "host", 7, "node-1", b"k", 1.0)
    with pytest.raises(sqlite3.OperationalError):
        store.put("x", 1)
    store.close()


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UnknownStateError, match="does not exist"):
        Store.read(tmp_path / "zk0d.db")
    (tmp_path / "zk0d.db").write_bytes(b"no database at all, but long enough to be taken for one" * 40)
    with pytest.raises(UnknownStateError, match="cannot be read"):
        Store.read(tmp_path / "zk0d.db")


VECTORS = Path(__file__).resolve().parents[1] / "vectors"


def old(path: Path) -> Path:
    """A state file of the first schema, with something in every table."""
    with sqlite3.connect(path) as db:
        db.executescript((VECTORS / "zk0d_schema_1.sql").read_text())
    db.close()
    return path


def tables(path: Path) -> list[tuple[str, str]]:
    with sqlite3.connect(path) as db:
        found = db.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
    db.close()
    return found


def check_migrated(store: Store) -> None:
    hub, task = store.hub(), store.task_at_hand()
    assert hub == Hub("hub", "hub.example.org", 7730, "node-1", b"key", 1.5)
    assert task is not None and (task.id, task.deaths, task.step) == ("t2", 1, 5)
    assert [(u.digest, u.state) for u in store.updates()] == [("sha256:u1", "receipted")]
    assert [e.update for e in store.entries()] == ["sha256:u1"]  # the old receipt counts in the log's table too
    assert [r["new_version"] for r in store.receipts()] == [3]
    assert store.wire_id("lift", "cubes") == "00000000-0000-4000-8000-000000000001"
    assert store.dataset("lift").tasks == ("lift it",) and store.versions("cubes")[0].metrics == {"loss": 0.5}
    assert store.sessions()[0].by == "alice" and store.get("bytes") == [100, 200] and len(store.events()) == 1


def test_an_old_state_is_migrated_forwards(tmp_path: Path) -> None:
    Store(tmp_path / "fresh.db").close()
    path = old(tmp_path / "zk0d.db")
    for _ in range(2):  # the second time there is nothing to do
        store = Store(path)
        check_migrated(store)
        store.close()
        assert tables(path) == tables(tmp_path / "fresh.db")


def test_a_migration_that_breaks_off_leaves_the_old_state_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = old(tmp_path / "zk0d.db")
    before = tables(path)
    monkeypatch.setattr(Store, "enter_old_receipts", lambda self: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match="full"):
        Store(path)
    monkeypatch.undo()
    assert tables(path) == before
    store = Store(path)
    check_migrated(store)
    store.close()


def test_an_old_state_is_read_without_being_changed(tmp_path: Path) -> None:
    path = old(tmp_path / "zk0d.db")
    data = path.read_bytes()
    store = Store.read(path)
    check_migrated(store)
    store.close()
    assert path.read_bytes() == data


def test_a_newer_state_is_refused_by_daemon_and_zk0ctl(tmp_path: Path) -> None:
    with sqlite3.connect(old(tmp_path / "zk0d.db")) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    for module, words, code in (
        ("zk0d.daemon.main", [], UnknownStateError),
        ("zk0d.ctl.main", ["status"], NotRunningError),
    ):
        ran = subprocess.run([sys.executable, "-m", module, "--state", str(tmp_path), *words],
                             capture_output=True, text=True, check=False, timeout=120)  # fmt: skip
        assert ran.returncode == code.exit_code, ran
        assert "has schema 99" in ran.stderr and "start the newer zk0d that wrote it" in ran.stderr, ran
        assert "Traceback" not in ran.stderr
