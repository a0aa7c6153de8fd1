"""A backup is whole on the disk before it says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zk0d.hub import backup
from zk0d.hub.main import main
from zk0d.hub.store import Store


def test_every_file_is_flushed_before_the_mark_and_before_the_restored_hub_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, out, again = tmp_path / "hub", tmp_path / "backup", tmp_path / "again"
    assert main(["--dir", str(hub), "init", "--listen", "127.0.0.1:0", "--name", "test"]) == 0
    Store(hub / "hub.db").close()
    flushed: set[int] = set()
    fsync, replace = os.fsync, os.replace
    bare: list[str] = []

    def seen(fd: int) -> None:
        fsync(fd)
        flushed.add(os.fstat(fd).st_ino)

    def named(source: os.PathLike[str], target: os.PathLike[str]) -> None:
        tree = out if Path(target).name == "backup.json" else Path(source) if Path(target) == again else None
        if tree is not None:
            files = (p for p in tree.rglob("*") if p.is_file() and p != Path(source))
            bare.extend(str(p.relative_to(tree)) for p in files if p.stat().st_ino not in flushed)
            bare.append("")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", seen)
    monkeypatch.setattr(os, "replace", named)
    backup.make(hub, out)
    backup.restore(out, again)
    assert bare == ["", ""]
