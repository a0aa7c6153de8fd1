"""A consistent copy of a hub while it runs, and a hub made from one: database, keys, settings, blobs.

The database is copied with SQLite's online backup; every blob it needs is then linked or copied, while the hub deletes
none (discards.py). Not for versions' LeRobot folders, which are made again from the blobs.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Collection
from pathlib import Path, PurePath
from typing import Any

from zk0d.durable import flush_tree, fsync_dir, publish, write_json
from zk0d.errors import ConfigError, UsageError, Zk0Error
from zk0d.hub import asroot
from zk0d.hub.config import load_hub
from zk0d.hub.discards import keep_all
from zk0d.hub.receipts import ReceiptKey
from zk0d.hub.schema import MIGRATIONS
from zk0d.link.identity import Authority, ServerIdentity
from zk0d.link.tls import server_context
from zk0d.model.blobs import BlobStore, DiskFullError

KINDS = ("hub.toml", "ca", "keys", "federations")
_MARK = "backup.json"
_NEEDED = """
    WITH newest AS (SELECT federation, max(number) AS top FROM versions GROUP BY federation),
        lately AS (SELECT v.*, number = top AS is_newest FROM versions v JOIN newest USING (federation)
        WHERE number >= top - 1)
    SELECT draft_spec AS digest, name AS federation, 'the draft of its spec' AS what, spec IS NULL AS vital
        FROM federations
    UNION ALL SELECT spec, name, 'its spec', 1 FROM federations WHERE spec IS NOT NULL
    UNION ALL SELECT base, name, 'its base', 1 FROM federations WHERE spec IS NOT NULL OR phase != 'finished'
    UNION ALL SELECT exchange, name, 'its version 0', phase = 'gathering' FROM federations
        WHERE spec IS NOT NULL OR phase != 'finished'
    UNION ALL SELECT digest, federation, 'version ' || number, number = top FROM versions JOIN newest USING (federation)
        WHERE retired_at IS NULL
    UNION ALL SELECT master, federation, 'the exact values of version ' || number, is_newest FROM lately
    UNION ALL SELECT m.value, federation, 'the optimiser''s state of version ' || number, 0
        FROM lately, json_each(lately.moments) m
    UNION ALL SELECT payload, federation, 'an update of ' || node, 0 FROM updates WHERE state = 'admitted'
"""
"""What a hub needs, and whether it cannot go on without. A payload that is still arriving is not among it: its node
gives it again. One that was admitted and is lost is refused to its node when its merge comes."""
_ROOM = "`df -h` shows which disk is full"
_UNREADABLE = (errno.EIO, errno.EACCES, errno.EPERM, errno.ELOOP)


def make(hub: Path, out: Path) -> dict[str, Any]:
    """Copy the hub in `hub`, running or not, to the new folder `out` → what was copied. Raises Zk0Error, OSError; then
    nothing is left of it.

    `missing` names needed blobs that the hub itself has lost or its disk spoilt, `lost` says what they are: [{digest,
    federation, what, vital}]. Of a copy that lacks a vital one no hub can be made.
    """
    if not (hub / "hub.db").is_file():
        raise ConfigError(f"there is no hub in {hub}", "name its folder with --dir")
    if out.exists():
        raise UsageError(f"{out} exists", "give a folder that does not: a backup never overwrites")
    asroot.require_file(hub / "hub.db")
    asroot.require_place(out)
    out.mkdir(mode=0o700, parents=True)
    try:
        with keep_all(hub):
            _audit(hub / "hub.db", "backup", str(out.absolute()))
            _copy_database(hub / "hub.db", out / "hub.db")
            asroot.copy_tree(hub, out, _not_backed_up)
            told = _copy_blobs(hub, out)
        flush_tree(out)  # before the mark that says it is whole
        write_json(out / _MARK, told)
        fsync_dir(out.parent)
    except BaseException as error:  # it would be none, and the next try wants the name
        shutil.rmtree(out, ignore_errors=True)
        if isinstance(error, sqlite3.Error):
            raise Zk0Error(f"{hub / 'hub.db'} cannot be copied to {out}: {error}", _ROOM) from error
        if isinstance(error, DiskFullError):
            raise Zk0Error(f"there is no room for all of the hub in {out.parent}", _ROOM) from error
        raise
    return told


def _not_backed_up(path: PurePath) -> bool:
    """Of a hub's folder, by its path from there on: what is none of KINDS, versions' folders, what is half written."""
    kind, *inner = path.parts
    published = kind == "federations" and len(inner) == 2 and inner[1] == "versions"
    return kind not in KINDS or published or (path.name.startswith(".") and path.suffix == ".tmp")


def _copy_blobs(hub: Path, out: Path) -> dict[str, Any]:
    needed, receipts = _contents(out / "hub.db")
    blobs = BlobStore(out / "blobs", reserve=0)  # nothing arrives there
    # A hub that was never started has no blobs: what a backup by root made for them would be root's.
    source = BlobStore(hub / "blobs") if (hub / "blobs" / "whole").is_dir() else None
    missing: list[str] = []
    size = 0
    for digest in needed:
        if source is not None and source.has(digest) and _copy_blob(source.path(digest), digest, blobs, needed):
            size += blobs.size(digest)
        else:
            missing.append(digest)
    return {"blobs": len(needed) - len(missing), "bytes": size, "missing": missing,
            "lost": [needed[d] for d in missing], "receipts": receipts}  # fmt: skip


def _copy_blob(path: Path, digest: str, blobs: BlobStore, needed: Collection[str]) -> bool:
    """Whether it is what it is called, and can be read."""
    try:
        found = blobs.add_file(path)
    except OSError as error:
        if error.errno not in _UNREADABLE:  # a full disk, say: of the backup, and of no one blob
            raise
        return False
    if found != digest and found not in needed:
        blobs.delete(found)
    return found == digest


def _contents(database: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Blobs that a database needs, what they are, and its count of receipts."""
    needed: dict[str, dict[str, Any]] = {}
    with contextlib.closing(sqlite3.connect(database)) as db:
        for digest, federation, what, vital in sorted(db.execute(_NEEDED), key=lambda r: (r[0], -r[3])):
            one = {"digest": digest, "federation": federation, "what": what, "vital": bool(vital)}
            needed.setdefault(digest, one)
        return needed, int(db.execute("SELECT count(*) FROM receipts").fetchone()[0])


def restore(backup: Path, hub: Path) -> dict[str, Any]:
    """Make the hub folder `hub`, which must not exist, from a backup. Raises UsageError, ConfigError; nothing is made.

    Checked first: the database, every blob's name and that none is missing, keys and settings. What the hub had lost
    when the backup was made is lacking in this one too (`lost`), where it can go on without. Nodes that saw a
    later tree head than the backup's will say so: the hub has forgotten receipts, and they keep theirs. Where root
    restores, the hub is of whom the empty folder at its place is, or the one around it: `user` in what is told.
    """
    try:
        told = json.loads((backup / _MARK).read_text())
    except (OSError, ValueError):
        raise ConfigError(f"{backup} is not a whole backup", "it lacks backup.json, which is written last") from None
    hub = hub.resolve()
    if hub.exists() and any(hub.iterdir()):
        raise UsageError(f"{hub} is not empty", "move what is there away first")
    owner = next(p for p in (hub, *hub.parents) if p.exists()).stat()
    asroot.require_place(hub)
    staged = hub.with_name(f".{hub.name}.restoring")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        asroot.copy_tree(backup, staged, lambda path: path.parts[0] in (_MARK, "blobs"))
        count, lost = _take_blobs(backup, staged, told)
        _check_settings(staged)
        _audit(staged / "hub.db", "restore", str(backup.absolute()))
        if os.geteuid() == 0:
            asroot.give(staged, owner.st_uid, owner.st_gid)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    staged.chmod(0o700)
    with contextlib.suppress(FileNotFoundError):
        hub.rmdir()
    publish(staged, hub)
    user = asroot.user_name(hub.stat().st_uid)
    return {"blobs": count, "receipts": told.get("receipts"), "folder": str(hub), "user": user, "lost": lost}


def _take_blobs(backup: Path, staged: Path, told: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    """Check the database and take its blobs → how many, and what is lost."""
    try:
        with contextlib.closing(sqlite3.connect(staged / "hub.db")) as db:
            problem = str(db.execute("PRAGMA integrity_check").fetchone()[0])
            schema = int(db.execute("PRAGMA user_version").fetchone()[0])
        needed, receipts = _contents(staged / "hub.db")
    except sqlite3.Error as error:
        raise ConfigError(f"the backup's database is damaged: {error}", "use another backup") from None
    if problem != "ok" or receipts != told.get("receipts"):
        problem = f"{receipts} receipts, backup.json says {told.get('receipts')}" if problem == "ok" else problem
        raise ConfigError(f"the backup's database is damaged: {problem}", "use another backup")
    if schema > len(MIGRATIONS):
        raise ConfigError(f"the backup is of a newer zk0-hub (schema {schema})", "install that version")
    source, blobs = BlobStore(backup / "blobs"), BlobStore(staged / "blobs")
    lost = [one for digest, one in needed.items() if not source.has(digest)]
    fatal = [one for one in lost if one["vital"] or one["digest"] not in told.get("missing", [])]
    if fatal:
        first = f"{fatal[0]['what']} of federation {fatal[0]['federation']}"
        raise ConfigError(
            f"the backup lacks {len(fatal)} blobs, as {first} ({fatal[0]['digest']})", "use another backup"
        )
    for digest in needed.keys() - {one["digest"] for one in lost}:
        if blobs.add_file(source.path(digest)) != digest:
            raise ConfigError(f"the backup's blob {digest} is damaged", "use another backup")
    return len(needed) - len(lost), lost


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
            (time.time(), f"admin:{asroot.user_name(os.getuid())}", action, subject),
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
