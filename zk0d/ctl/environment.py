"""Makes the managed environment from a hash-locked list: resumable, checked, switched to in one step, with a way back.

Not for what is said about it (runtime_cmd.py) nor for finding it (zk0d/runtime.py). Standard library only.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zk0d.ctl import runtime_fetch
from zk0d.ctl.runtime_lists import Lists
from zk0d.errors import Zk0Error, from_os
from zk0d.runtime import COMPLETE

TOOL_BYTES = 300_000_000
"""Free space before anything is fetched: the empty environment and the installer."""
FOLDER_BYTES = 7_000_000_000
"""Free space that an installation from a folder of wheels wants: 6.2 GB unpacked (measured, CUDA build)."""
UNPACKED = 2.1
"""What a wheel becomes when it is unpacked, in its own size (measured: 6.2 GB of 3.1)."""
PROBE = """
import json, sys
found = {"python": sys.version.split()[0]}
import torch, lerobot, importlib
for name in sys.argv[1:]:
    importlib.import_module(name)
found |= {"torch": torch.__version__, "lerobot": lerobot.__version__, "cuda": torch.cuda.is_available()}
found |= {"cuda_build": torch.version.cuda}
found["device"] = torch.cuda.get_device_name(0) if found["cuda"] else "cpu"
(torch.ones(64, 64) @ torch.ones(64, 64)).sum().item()
print(json.dumps(found))
"""
IMPORTS = ("lerobot.policies.factory", "lerobot.datasets.lerobot_dataset", "lerobot.robots.so_follower")
"""What trainer and recorder import besides: more than the names must be there."""
OnProgress = Callable[[str, int, int], None]
"""Called with the stage and how much of how much is done: bytes while fetching (by several threads), else packages."""


@contextmanager
def locked(base: Path) -> Iterator[None]:
    """Only one installation at a time in `base`, which is made. Raises Zk0Error saying how to be allowed."""
    try:
        base.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(base / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except PermissionError as error:
        raise Zk0Error(f"{base} may not be written by you", "run it with sudo") from error
    except OSError as error:
        raise from_os(error, "no place for the packages") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Zk0Error(f"another installation runs in {base}", "wait for it") from None
        yield
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Source:
    """Where packages come from: a folder of wheels, an index, or (neither) what uv's and pip's own settings name."""

    wheels: Path | None = None
    index: str = ""

    def hint(self, lists: Lists) -> str:
        """What to do when packages are not had from here."""
        if self.wheels is not None:
            return f"{self.wheels} must hold a file of every package in {lists.tool} and {lists.packages}"
        if self.index:
            return f"does {self.index} answer, and has it these packages?"
        return "is there a network? pip's settings may name an index or a proxy; or use --index-url or --wheels"

    def flags(self) -> list[str]:
        """For pip and for uv."""
        if self.wheels is not None:
            return ["--no-index", "--find-links", str(self.wheels.resolve())]
        return ["--index-url", self.index] if self.index else []


def install(
    base: Path,
    lists: Lists,
    source: Source,
    progress: OnProgress,
    *,
    again: bool = False,
    needs: int | None = None,
) -> Path:
    """Make the environment of `lists` in `base` and switch to it → its folder. Called again it goes on.

    `again` makes it anew beside one that is there; `needs` is the free space that it wants in bytes (None: reckoned
    from the sizes that the index tells). Every package is held against its hash.
    Raises Zk0Error when there is no room, a package is refused or missing, or what was made does not work; what was
    current stays so then.
    """
    with locked(base):
        env = _place(base, lists.key, again)
        if not (env / COMPLETE).exists():
            _make(base, env, lists, source, progress, needs)
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


def _room(base: Path, needs: int) -> None:
    free = shutil.disk_usage(base).free
    if free < needs:
        raise Zk0Error(
            f"{base} has {free / 1e9:.1f} GB free and this needs {needs / 1e9:.1f} GB more",
            "make room, or put it on another disk: ZK0_RUNTIME=DIR, and [runtime] python in the settings",
        )


def _make(base: Path, env: Path, lists: Lists, source: Source, progress: OnProgress, needs: int | None) -> None:
    python, uv, log = env / "bin" / "python", env / "bin" / "uv", base / "install.log"
    _room(base, needs if needs is not None else TOOL_BYTES)
    progress("environment", 0, lists.count)
    if not python.exists():
        _run([sys.executable, "-m", "venv", "--clear", str(env)], log, None, "install the package python3-venv")
    if not uv.exists():
        tool = ["-m", "pip", "install", "--quiet", "--require-hashes", "--only-binary=:all:"]
        _run([str(python), *tool, *source.flags(), "-r", str(lists.tool)], log, None, source.hint(lists))
    cache = base / "cache"
    cache.mkdir(exist_ok=True)
    settings = {"UV_HTTP_TIMEOUT": "120", **os.environ, "UV_CACHE_DIR": str(cache), "UV_CONCURRENT_DOWNLOADS": "3"}
    flags = source.flags()
    if source.wheels is not None:
        _room(base, needs if needs is not None else FOLDER_BYTES)
    elif _fetch(base, uv, python, lists, source, progress, settings, needs):
        flags = ["--no-index", "--find-links", str(cache / "files")]
    # The list is whole: nothing that it does not name is wanted, also where a package asks for it (the CPU's list).
    # What has no wheel is built with the locked setuptools that came with uv, never with one fetched for the occasion.
    command = [str(uv), "pip", "install", "--require-hashes", "--no-progress", "--no-build-isolation", "--no-deps"]
    command += ["--python", str(python), *flags, "-r", str(lists.packages)]
    before = len(list(env.glob("lib/python3*/site-packages/*.dist-info")))

    def look() -> None:
        unpacked = len(list(cache.glob("archive-v*/*")))
        placed = len(list(env.glob("lib/python3*/site-packages/*.dist-info"))) - before
        progress("unpacking" if placed <= 0 else "installing", min(max(unpacked, placed), lists.count), lists.count)

    _run(command, log, look, "run it again to go on; --index-url names an index, --wheels a folder", settings)
    look()


def _fetch(
    base: Path, uv: Path, python: Path, lists: Lists, source: Source, progress: OnProgress, settings: dict[str, str],
    needs: int | None,
) -> bool:  # fmt: skip
    """Fetch the list's files into `base`/cache/files → whether all of them are there."""
    cache = base / "cache"
    items, elsewhere = runtime_fetch.plan(uv, python, lists, source.flags(), settings, cache / "pylock.toml")
    fetcher = runtime_fetch.Fetcher(cache / "files", lambda done, total: progress("fetching", done, total))
    if needs is None:
        unpacked = sum(_size(folder) for folder in cache.glob("archive-v*"))
        needs = fetcher.missing(items) + max(0, int(UNPACKED * sum(i.size for i in items)) - unpacked)
    _room(base, needs)
    return not fetcher.fetch(items) and not elsewhere


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
        lines = log.read_text(errors="replace").splitlines()
        said = [line.strip() for line in lines if line.strip() and "Retrying (Retry(" not in line][-4:]
        why = " / ".join(said) or f"status {process.returncode}"
        raise Zk0Error(f"{Path(command[0]).name} failed: {why}", f"{hint}; all that it said is in {log}")


def check(env: Path) -> dict[str, Any]:
    """Import what the workers need in `env`, and multiply once → versions and device. Raises Zk0Error."""
    python = env / "bin" / "python"
    if not os.access(python, os.X_OK):
        raise Zk0Error(f"there is no environment in {env}", "zk0ctl runtime install makes it")
    tried = subprocess.run(
        [str(python), "-P", "-c", PROBE, *IMPORTS],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
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
