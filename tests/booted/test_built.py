"""The packages as files, before any system sees them: the same bytes whoever builds one commit and wherever, and nothing that lintian minds."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder that another user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="zk0-built-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_another_builder_gets_the_same_bytes(debs: list[Path], elsewhere: Path) -> None:
    """Another folder, user (where we may become one), umask, zone, language, clock (with faketime), and a file in it that git does not know."""
    tree = elsewhere / "another" / "place"
    git: dict[str, Any] = {"cwd": REPOSITORY, "capture_output": True, "text": True, "check": True}
    for name in filter(None, subprocess.run(["git", "ls-files", "-z"], **git).stdout.split("\0")):
        if (REPOSITORY / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, tree / name)  # with its mode, not with its time
    (tree / "zk0d" / "__pycache__").mkdir()
    (tree / "zk0d" / "__pycache__" / "left.pyc").write_bytes(b"not for the package")
    become: list[str] = []
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", "65534:65534", elsewhere], check=True)
        become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    clock = ["faketime", "2001-02-03 04:05:06"] if shutil.which("faketime") else []
    done = subprocess.run(
        [*become, *clock, "sh", "-c", 'umask 077; exec "$@"', "sh", tree / "packaging/deb/build.sh", tree / "out"],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "TZ": "Pacific/Kiritimati", "LC_ALL": "tr_TR.UTF-8", "NO_FAKE_STAT": "1",
             "TMPDIR": str(elsewhere), "SOURCE_DATE_EPOCH": subprocess.run(["git", "log", "-1", "--format=%ct"], **git).stdout.strip()},
        cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    theirs = {d.name: d.read_bytes() for d in (tree / "out").glob("*.deb")}
    assert sorted(theirs) == sorted(d.name for d in debs)
    assert [d.name for d in debs if d.read_bytes() != theirs[d.name]] == []


def test_what_git_cannot_read_is_not_built_as_something_else(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(REPOSITORY / "packaging" / "deb", copy / "packaging" / "deb")
    (copy / ".git").mkdir()
    (copy / "zk0d").mkdir()
    shutil.copy(REPOSITORY / "zk0d" / "__init__.py", copy / "zk0d")
    done = subprocess.run(
        [copy / "packaging/deb/build.sh", copy / "out"], capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"], "GIT_CEILING_DIRECTORIES": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1 and "git cannot tell the commit" in done.stderr, done.stderr


def test_lintian_has_no_error_and_no_warning(debs: list[Path]) -> None:
    done = subprocess.run(
        [REPOSITORY / "packaging/deb/lint.sh", debs[0].parent], capture_output=True, text=True, check=False
    )
    if done.returncode == 69:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_finds_nothing_in_the_hubs_dockerfile() -> None:
    done = subprocess.run([REPOSITORY / "packaging/docker/lint.sh"], capture_output=True, text=True, check=False)
    if done.returncode == 69:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_override_has_its_reason_beside_it() -> None:
    for path in (REPOSITORY / "packaging/deb/debian").glob("*.lintian-overrides"):
        before = ""
        for line in path.read_text().splitlines():
            assert line.startswith("#") or before.startswith("#"), f"{path.name}: no reason above: {line}"
            before = line
