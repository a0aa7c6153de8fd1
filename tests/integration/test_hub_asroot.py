"""`sudo zk0-hub backup` and `restore`, where the hub's user has been broken into: what root does in his folders."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from zk0d.errors import ConfigError, UsageError
from zk0d.hub import asroot, backup
from zk0d.hub.main import main
from zk0d.model.blobs import BlobStore

USER = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="what only root can do to others' files")


@pytest.fixture
def top() -> Iterator[Path]:
    """A folder of root's that others can come to, with a file of root's that nobody else may read."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        (Path(name) / "secret").write_text("root's own")
        (Path(name) / "secret").chmod(0o600)
        yield Path(name)


def hub_of(user: int, folder: Path) -> Path:
    assert main(["--dir", str(folder), "init", "--listen", "127.0.0.1:0"]) == 0
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, user)
    return folder


def told(path: Path) -> tuple[int, int, str]:
    found = path.stat()
    return found.st_uid, stat.S_IMODE(found.st_mode), path.read_text()


@pytest.mark.parametrize("where", ["federations/x", "keys/server.pem", "ca", "hub.toml", "hub.db"])
def test_no_link_leads_a_backup_out_of_the_hub(top: Path, where: str) -> None:
    hub = hub_of(USER, top / "hub")
    link = hub / where
    link.parent.mkdir(exist_ok=True)
    if link.exists():
        link.rename(top / "aside")
    link.symlink_to(top / "aside" if where in ("ca", "hub.db") else top / "secret")
    with pytest.raises(ConfigError, match=f"{where}.* is no plain file") as refused:
        backup.make(hub, top / "out")
    assert "sudo -u" in refused.value.hint
    assert not (top / "out").exists()
    assert told(top / "secret") == (0, 0o600, "root's own")


def test_a_blob_that_is_a_link_changes_nothing_of_whose_file_it_names(top: Path) -> None:
    store, secret = BlobStore(top / "blobs", reserve=0), top / "secret"
    (top / "link").symlink_to(secret)
    with pytest.raises(OSError):
        store.add_file(top / "link")
    assert told(secret) == (0, 0o600, "root's own")
    assert not list(store.digests()) and not list(store.partials.iterdir())


def test_a_link_in_a_backup_brings_nothing_into_the_hub(top: Path) -> None:
    backup.make(hub_of(USER, top / "hub"), top / "out")
    (top / "out" / "federations").mkdir(exist_ok=True)
    (top / "out" / "federations" / "x").symlink_to(top / "secret")
    (top / "new").mkdir()
    os.chown(top / "new", USER, USER)
    with pytest.raises(ConfigError, match="federations/x is no plain file"):
        backup.restore(top / "out", top / "new")
    assert [p.name for p in top.iterdir() if "new" in p.name] == ["new"] and not list((top / "new").iterdir())


def test_what_is_given_away_is_the_link_and_not_what_it_names(top: Path) -> None:
    given = top / "given"
    (given / "inner").mkdir(parents=True)
    (given / "inner" / "own").write_text("his")
    (given / "inner" / "file").symlink_to(top / "secret")
    (given / "folder").symlink_to(top)
    asroot.give(given, USER, USER)
    assert {p.lstat().st_uid for p in (given, *given.rglob("*"))} == {USER}
    assert top.stat().st_uid == 0 and told(top / "secret") == (0, 0o600, "root's own")


def test_root_writes_only_where_nobody_can_exchange_it(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_UID", raising=False)
    hub, his, open_to_all = hub_of(USER, top / "hub"), top / "his", top / "open"
    his.mkdir()
    os.chown(his, USER, USER)
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    for place in (his, open_to_all, hub):
        with pytest.raises(UsageError, match="root writes nothing there"):
            backup.make(hub, place / "inner" / "out")
        assert not (place / "inner").exists()
    open_to_all.chmod(0o1777)  # as /tmp
    backup.make(hub, open_to_all / "out")
    with pytest.raises(UsageError, match="root writes nothing there"):
        backup.restore(open_to_all / "out", his / "hub")
    monkeypatch.setenv("SUDO_UID", str(USER))  # it is he who asks
    backup.make(hub, his / "out")
    assert backup.restore(his / "out", top / "again")["user"] == "root"


@pytest.mark.parametrize("name", ["versions", "blobs", "backup.json"])
def test_a_federation_may_be_called_as_it_likes(top: Path, name: str) -> None:
    hub = hub_of(0, top / "hub")
    (hub / "federations" / name / "versions" / "0001").mkdir(parents=True)
    (hub / "federations" / name / "federation.toml").write_text("x = 1")
    backup.make(hub, top / "out")
    backup.restore(top / "out", top / "again")
    assert (top / "again" / "federations" / name / "federation.toml").read_text() == "x = 1"
    assert not (top / "again" / "federations" / name / "versions").exists()
