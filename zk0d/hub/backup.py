"""A consistent copy of a hub while it runs, and a hub made from one: database, keys, settings, blobs.

The database is copied with SQLite's online backup; every blob it needs is then linked or copied, while the hub deletes
none (discards.py). Not for versions' LeRobot folders, which are made again from the blobs.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

from zk0d.durable import flush_tree, fsync_dir, publish, write_json
from zk0d.errors import ConfigError, UsageError
from zk0d.hub.config import load_hub
from zk0d.hub.discards import keep_all
from zk0d.hub.receipts import ReceiptKey
from zk0d.hub.schema import MIGRATIONS
from zk0d.link.identity import Authority, ServerIdentity
from zk0d.link.tls import server_context
from zk0d.model.blobs import BlobStore

KINDS = ("hub.toml", "ca", "keys", "federations")
_MARK = "backup.json"
_NEEDED = """
    SELECT draft_spec AS digest FROM federations UNION SELECT spec FROM federations WHERE spec IS NOT NULL
    UNION SELECT base FROM federations WHERE spec IS NOT NULL OR phase != 'finished'
    UNION SELECT exchange FROM federations WHERE spec IS NOT NULL OR phase != 'finished'
    UNION SELECT digest FROM versions WHERE retired_at IS NULL
    UNION SELECT master FROM versions v WHERE number >=
        (SELECT max(number) FROM versions w WHERE w.federation = v.federation) - 1
    UNION SELECT m.value FROM versions v, json_each(v.moments) m WHERE number >=
        (SELECT max(number) FROM versions w WHERE w.federation = v.federation) - 1
    UNION SELECT payload FROM updates WHERE state = 'admitted'
"""
"""What a hub cannot go on without. A payload that is still arriving is not among it: its node gives it again."""


def make(hub: Path, out: Path) -> dict[str, Any]:
    """Copy the hub in `hub`, running or not, to the new folder `out` → what was copied. Raises UsageError, ConfigError.

    `missing` lists needed blobs that the hub itself has lost; of such a copy no hub can be made.
    """
    if not (hub / "hub.db").is_file():
        raise ConfigError(f"there is no hub in {hub}", "name its folder with --dir")
    if out.exists():
        raise UsageError(f"{out} exists", "give a folder that does not: a backup never overwrites")
    out.mkdir(mode=0o700, parents=True)
    with keep_all(hub):
        _audit(hub / "hub.db", "backup", str(out.absolute()))
        _copy_database(hub / "hub.db", out / "hub.db")
        for name in KINDS:
            source = hub / name
            if source.is_dir():
                shutil.copytree(source, out / name, ignore=shutil.ignore_patterns("versions", ".*.tmp"))
            elif source.is_file():
                shutil.copy2(source, out / name)
        told = _copy_blobs(hub, out)
    flush_tree(out)  # before the mark that says it is whole
    write_json(out / _MARK, told)
    fsync_dir(out.parent)
    return told


def _copy_blobs(hub: Path, out: Path) -> dict[str, Any]:
    digests, receipts = _contents(out / "hub.db")
    blobs = BlobStore(out / "blobs")
    # A hub that was never started has no blobs: what a backup by root made for them would be root's.
    source = BlobStore(hub / "blobs") if (hub / "blobs" / "whole").is_dir() else None
    missing: list[str] = []
    size = 0
    for digest in digests:
        if source is None or not source.has(digest):
            missing.append(digest)
            continue
        path = source.path(digest)
        size += path.stat().st_size
        if blobs.add_file(path) != digest:
            raise ConfigError(f"the hub's blob {digest} is damaged on disk", "restore it from an older backup")
    return {"blobs": len(digests) - len(missing), "bytes": size, "missing": missing, "receipts": receipts}


def _contents(database: Path) -> tuple[list[str], int]:
    """Digests of the blobs that a database needs, and its count of receipts."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        digests = sorted(str(r[0]) for r in db.execute(_NEEDED))
        return digests, int(db.execute("SELECT count(*) FROM receipts").fetchone()[0])


def restore(backup: Path, hub: Path) -> dict[str, Any]:
    """Make the hub folder `hub`, which must not exist, from a backup. Raises UsageError, ConfigError; nothing is made.

    Checked first: the database, every blob's name and that none is missing, keys and settings. Nodes that saw a
    later tree head than the backup's will say so: the hub has forgotten receipts, and they keep theirs. Where root
    restores, the hub is of whom the empty folder at its place is, or the folder around it: `user` in what is told.
    """
    try:
        told = json.loads((backup / _MARK).read_text())
    except (OSError, ValueError):
        raise ConfigError(f"{backup} is not a whole backup", "it lacks backup.json, which is written last") from None
    hub = hub.resolve()
    if hub.exists() and any(hub.iterdir()):
        raise UsageError(f"{hub} is not empty", "move what is there away first")
    owner = next(p for p in (hub, *hub.parents) if p.exists()).stat()
    staged = hub.with_name(f".{hub.name}.restoring")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        shutil.copytree(backup, staged, ignore=shutil.ignore_patterns(_MARK, "blobs"))
        count = _take_blobs(backup, staged, told)
        _check_settings(staged)
        _audit(staged / "hub.db", "restore", str(backup.absolute()))
        if os.geteuid() == 0:
            _give(staged, owner.st_uid, owner.st_gid)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    staged.chmod(0o700)
    with contextlib.suppress(FileNotFoundError):
        hub.rmdir()
    publish(staged, hub)
    return {"blobs": count, "receipts": told.get("receipts"), "folder": str(hub), "user": _user(hub.stat().st_uid)}


def _give(top: Path, user: int, group: int) -> None:
    """All of a folder to the user who is to serve what root restored. Not a blob that is the backup's file as well, and
    perhaps another hub's: everybody may read those."""
    for folder, _, names in os.walk(top):
        os.chown(folder, user, group)
        for path in (Path(folder, name) for name in names):
            if path.lstat().st_nlink == 1:
                os.chown(path, user, group, follow_symlinks=False)


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _take_blobs(backup: Path, staged: Path, told: dict[str, Any]) -> int:
    try:
        with contextlib.closing(sqlite3.connect(staged / "hub.db")) as db:
            problem = str(db.execute("PRAGMA integrity_check").fetchone()[0])
            schema = int(db.execute("PRAGMA user_version").fetchone()[0])
        digests, receipts = _contents(staged / "hub.db")
    except sqlite3.Error as error:
        raise ConfigError(f"the backup's database is damaged: {error}", "use another backup") from None
    if problem != "ok" or receipts != told.get("receipts"):
        problem = f"{receipts} receipts, backup.json says {told.get('receipts')}" if problem == "ok" else problem
        raise ConfigError(f"the backup's database is damaged: {problem}", "use another backup")
    if schema > len(MIGRATIONS):
        raise ConfigError(f"the backup is of a newer zk0-hub (schema {schema})", "install that version")
    source, blobs = BlobStore(backup / "blobs"), BlobStore(staged / "blobs")
    missing = [d for d in digests if not source.has(d)]
    if missing:
        raise ConfigError(f"the backup lacks {len(missing)} blobs, as {missing[0]}", "use another backup")
    for digest in digests:
        if blobs.add_file(source.path(digest)) != digest:
            raise ConfigError(f"the backup's blob {digest} is damaged", "use another backup")
    return len(digests)


def _check_settings(staged: Path) -> None:
    """A hub can start with these: raises ConfigError otherwise."""
    load_hub(staged)
    Authority.load(staged / "ca")
    ReceiptKey.load(staged / "keys")
    server_context(staged / "ca" / "ca.pem", ServerIdentity.load(staged / "keys"))


def _audit(database: Path, action: str, subject: str) -> None:
    """Note an act that is not asked of the running hub; the audit is append-only and takes it beside the hub's own."""
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as db, db:
        db.execute(
            "INSERT INTO audit (at, actor, action, subject, detail) VALUES (?, ?, ?, ?, '{}')",
            (time.time(), f"admin:{_user(os.getuid())}", action, subject),
        )


def _copy_database(source: Path, target: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=30)) as old,
        contextlib.closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)
    fd = os.open(target, os.O_RDONLY)
    try:
        os.fchmod(fd, 0o600)
        os.fsync(fd)
    finally:
        os.close(fd)
