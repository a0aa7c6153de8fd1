"""Makes the managed environment from a hash-locked list: resumable, checked, switched to in one step, with a way back.

Not for what is said about it (runtime_cmd.py) nor for finding it (zk0d/runtime.py). Standard library only.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zk0d.errors import Zk0Error
from zk0d.runtime import COMPLETE

NEEDS_BYTES = 9_000_000_000
"""Free space that an installation wants: 6.2 GB unpacked (measured, CUDA build), and its largest wheels beside them."""
PROBE = """
import json, sys
found = {"python": sys.version.split()[0]}
import torch, lerobot
found |= {"torch": torch.__version__, "lerobot": lerobot.__version__, "cuda": torch.cuda.is_available()}
found |= {"cuda_build": torch.version.cuda}
found["device"] = torch.cuda.get_device_name(0) if found["cuda"] else "cpu"
(torch.ones(64, 64) @ torch.ones(64, 64)).sum().item()
print(json.dumps(found))
"""
OnProgress = Callable[[str, int, int], None]
"""Called with the stage, and how many packages of how many are there."""


@dataclass(frozen=True)
class Lists:
    """The shipped locks: `tool` installs the installer, `packages` is the environment."""

    tool: Path
    packages: Path

    @classmethod
    def find(cls, name: str = "full") -> Lists:
        """From /usr/share/zk0d/lock, else the source tree's packaging/lock. Raises Zk0Error when there are none."""
        for folder in (Path("/usr/share/zk0d/lock"), Path(__file__).resolve().parents[2] / "packaging" / "lock"):
            if (folder / f"{name}.txt").exists():
                return cls(folder / "bootstrap.txt", folder / f"{name}.txt")
        raise Zk0Error(f"the list of packages ({name}.txt) is not there", "install the package zk0-common again")

    @property
    def key(self) -> str:
        """Names the environment: the same lists and the same Python give the same one."""
        digest = hashlib.sha256(f"{sys.version_info[:2]} {os.uname().machine}".encode())
        digest.update(self.tool.read_bytes() + self.packages.read_bytes())
        return digest.hexdigest()[:12]

    @property
    def count(self) -> int:
        return len(re.findall(r"^[A-Za-z0-9._-]+==", self.packages.read_text(), re.MULTILINE))


@contextmanager
def locked(base: Path) -> Iterator[None]:
    """Only one installation at a time in `base`, which is made. Raises Zk0Error saying how to be allowed."""
    try:
        base.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(base / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except PermissionError as error:
        raise Zk0Error(f"{base} may not be written by you", "run it with sudo") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Zk0Error(f"another installation runs in {base}", "wait for it") from None
        yield
    finally:
        os.close(fd)


def install(
    base: Path,
    lists: Lists,
    wheels: Path | None,
    progress: OnProgress,
    *,
    again: bool = False,
    needs: int = NEEDS_BYTES,
) -> Path:
    """Make the environment of `lists` in `base` and switch to it → its folder. Called again it goes on.

    `again` makes it anew beside one that is there. Packages come from `wheels`, else from the index that pip's and uv's
    own settings name; each is held against its hash.
    Raises Zk0Error when there is no room, a package is refused or missing, or what was made does not work.
    """
    with locked(base):
        env = _place(base, lists.key, again)
        if not (env / COMPLETE).exists():
            free = shutil.disk_usage(base).free
            present = _size(env) + _size(base / "cache") if env.exists() or (base / "cache").exists() else 0
            if free + present < needs:
                raise Zk0Error(
                    f"{base} has {free / 1e9:.1f} GB free and this needs about {needs / 1e9:.0f} GB",
                    "make room, or put it on another disk: ZK0_RUNTIME=DIR, and [runtime] python in the settings",
                )
            _make(base, env, lists, wheels, progress)
        found = check(env)
        (env / COMPLETE).write_text(json.dumps({"key": lists.key, "at": time.time(), **found}) + "\n")
        shutil.rmtree(base / "cache", ignore_errors=True)
        switch(base, env)
        _prune(base)
        return env


def _place(base: Path, key: str, again: bool) -> Path:
    """The folder for the environment `key`: with `again` one that is not in use, emptied."""
    current = (base / "current").resolve()
    places = [base / "envs" / key, base / "envs" / f"{key}-b"]
    if not again:
        return next((p for p in places if p.resolve() == current), places[0])
    place = next(p for p in places if p.resolve() != current)
    shutil.rmtree(place, ignore_errors=True)
    return place


def _make(base: Path, env: Path, lists: Lists, wheels: Path | None, progress: OnProgress) -> None:
    source = ["--no-index", "--find-links", str(wheels.resolve())] if wheels else []
    python = env / "bin" / "python"
    log = base / "install.log"
    progress("environment", 0, lists.count)
    if not python.exists():
        _run([sys.executable, "-m", "venv", "--clear", str(env)], log, None, "install the package python3-venv")
    if not (env / "bin" / "uv").exists():
        tool = ["-m", "pip", "install", "--quiet", "--require-hashes", "--only-binary=:all:"]
        hint = "see pip's settings for an index or a proxy, or use --wheels DIR"
        _run([str(python), *tool, *source, "-r", str(lists.tool)], log, None, hint)
    # What has no wheel is built with the locked setuptools that came with uv, never with one fetched for the occasion.
    command = [str(env / "bin" / "uv"), "pip", "install", "--require-hashes", "--no-progress", "--no-build-isolation"]
    command += ["--python", str(python), *source, "-r", str(lists.packages)]
    before = len(list(env.glob("lib/python3*/site-packages/*.dist-info")))

    def look() -> None:
        fetched = len(list((base / "cache").glob("archive-v*/*")))
        placed = len(list(env.glob("lib/python3*/site-packages/*.dist-info"))) - before
        progress("fetching" if placed <= 0 else "installing", min(max(fetched, placed), lists.count), lists.count)

    _run(command, log, look, "run it again to go on; uv's settings name the index, or give --wheels",
         {"UV_HTTP_TIMEOUT": "120", **os.environ, "UV_CACHE_DIR": str(base / "cache")})  # fmt: skip


def _run(
    command: list[str], log: Path, look: Callable[[], None] | None, hint: str, env: dict[str, str] | None = None
) -> None:
    """Run to the end, output into `log`; `look` is called twice a second. An interruption ends the command too."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONNOUSERSITE": "1", **(env or {})},
        )  # fmt: skip
        try:
            while True:
                try:
                    process.wait(0.5 if look else None)
                    break
                except subprocess.TimeoutExpired:
                    if look:
                        look()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-6:]
        raise Zk0Error(f"{Path(command[0]).name} failed: " + (" / ".join(said) or f"status {process.returncode}"), hint)


def check(env: Path) -> dict[str, Any]:
    """Import what the workers need in `env`, and multiply once → versions and device. Raises Zk0Error."""
    python = env / "bin" / "python"
    if not os.access(python, os.X_OK):
        raise Zk0Error(f"there is no environment in {env}", "zk0ctl runtime install makes it")
    tried = subprocess.run(
        [str(python), "-P", "-c", PROBE], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONNOUSERSITE": "1"},
    )  # fmt: skip
    if tried.returncode:
        said = (tried.stderr.strip().splitlines() or [f"status {tried.returncode}"])[-1]
        raise Zk0Error(
            f"the environment in {env} does not work: {said}", "zk0ctl runtime install --again makes it anew"
        )
    return dict(json.loads(tried.stdout.splitlines()[-1]))


def switch(base: Path, env: Path) -> None:
    """Point `current` at `env` in one step; what was current becomes `previous`."""
    current = base / "current"
    old = current.resolve() if current.is_symlink() else None
    if old == env.resolve():
        return
    if old is not None and old.exists():
        _point(base / "previous", old)
    _point(current, env)


def rollback(base: Path) -> Path:
    """Go back to the previous environment, which becomes current → its folder. Raises Zk0Error when there is none."""
    with locked(base):
        previous = base / "previous"
        if not (previous / COMPLETE).exists():
            raise Zk0Error("there is no earlier environment to go back to", "zk0ctl runtime show lists what there is")
        env = previous.resolve()
        switch(base, env)
        return env


def _point(link: Path, target: Path) -> None:
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(os.path.relpath(target, link.parent))
    new.replace(link)


def _prune(base: Path) -> None:
    """Remove environments that are neither current nor previous."""
    keep = {(base / name).resolve() for name in ("current", "previous")}
    for env in (base / "envs").iterdir():
        if env.resolve() not in keep:
            shutil.rmtree(env, ignore_errors=True)


def _size(folder: Path) -> int:
    """Bytes in a folder, hard-linked files once."""
    seen: dict[int, int] = {}
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except OSError:
            continue
        seen[status.st_ino] = status.st_blocks * 512
    return sum(seen.values())
