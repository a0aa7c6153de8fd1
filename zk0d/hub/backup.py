"""A consistent copy of a hub while it runs, and a hub made from one: database, keys, settings, blobs.

The database is copied with SQLite's online backup; every blob it needs is then linked or copied. Not for versions'
LeRobot folders, which are made again from the blobs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

from zk0d.durable import fsync_dir, write_json
from zk0d.errors import ConfigError, UsageError
from zk0d.model.blobs import BlobStore

KINDS = ("hub.toml", "ca", "keys", "federations")
_MARK = "backup.json"
_BLOBS = """
    SELECT draft_spec AS digest FROM federations UNION SELECT base FROM federations
    UNION SELECT exchange FROM federations UNION SELECT spec FROM federations WHERE spec IS NOT NULL
    UNION SELECT digest FROM versions
    UNION SELECT master FROM versions v WHERE number >=
        (SELECT max(number) FROM versions w WHERE w.federation = v.federation) - 1
    UNION SELECT m.value FROM versions v, json_each(v.moments) m WHERE number >=
        (SELECT max(number) FROM versions w WHERE w.federation = v.federation) - 1
    UNION SELECT payload FROM updates WHERE state IN ('receiving', 'admitted')
"""


def make(hub: Path, out: Path) -> dict[str, Any]:
    """Copy the hub in `hub`, running or not, to the new folder `out` → what was copied. Raises UsageError, ConfigError.

    Copying blobs after the database is safe: a blob that a later merge deletes is one that the copied database needs
    only for a version that is already made, and is counted in `missing`.
    """
    if not (hub / "hub.db").is_file():
        raise ConfigError(f"there is no hub in {hub}", "name its folder with --dir")
    if out.exists():
        raise UsageError(f"{out} exists", "give a folder that does not: a backup never overwrites")
    out.mkdir(mode=0o700, parents=True)
    _copy_database(hub / "hub.db", out / "hub.db")
    for name in KINDS:
        source = hub / name
        if source.is_dir():
            shutil.copytree(source, out / name, ignore=shutil.ignore_patterns("versions"))
        elif source.is_file():
            shutil.copy2(source, out / name)
    with contextlib.closing(sqlite3.connect(out / "hub.db")) as db:
        digests = sorted(str(r[0]) for r in db.execute(_BLOBS))
        receipts = int(db.execute("SELECT count(*) FROM receipts").fetchone()[0])
    source_blobs, blobs = BlobStore(hub / "blobs"), BlobStore(out / "blobs")
    copied, size, missing = 0, 0, 0
    for digest in digests:
        try:
            path = source_blobs.path(digest)
            size += path.stat().st_size
            if blobs.add_file(path) != digest:
                raise ConfigError(f"the hub's blob {digest} is damaged on disk", "restore it from an older backup")
        except OSError:
            missing += 1
            continue
        copied += 1
    told = {"blobs": copied, "bytes": size, "missing": missing, "receipts": receipts}
    write_json(out / _MARK, told)
    fsync_dir(out)
    return told


def restore(backup: Path, hub: Path) -> dict[str, Any]:
    """Make the hub folder `hub`, which must not exist, from a backup. Raises UsageError, ConfigError.

    Every blob's SHA-256 is checked. Nodes that saw a later tree head than the backup's will say so: the hub has
    forgotten receipts, and they keep theirs.
    """
    if not (backup / _MARK).is_file():
        raise ConfigError(f"{backup} is not a whole backup", "it lacks backup.json, which is written last")
    if hub.exists() and any(hub.iterdir()):
        raise UsageError(f"{hub} is not empty", "move what is there away first")
    staged = hub.with_name(f".{hub.name}.restoring")
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(backup, staged, ignore=shutil.ignore_patterns(_MARK, "blobs"))
    source, blobs = BlobStore(backup / "blobs"), BlobStore(staged / "blobs")
    count = 0
    for digest in source.digests():
        if blobs.add_file(source.path(digest)) != digest:
            raise ConfigError(f"the backup's blob {digest} is damaged", "use another backup")
        count += 1
    staged.chmod(0o700)
    with contextlib.suppress(FileNotFoundError):
        hub.rmdir()
    staged.replace(hub)
    fsync_dir(hub.parent)
    return {"blobs": count}


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
