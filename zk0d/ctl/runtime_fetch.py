"""Fetches the files of a list ahead of the installer: to the byte resumable, each held against the list's hash.

What this cannot fetch (a mirror that wants a login, a file on disk) is left to the installer. Not for installing.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import subprocess
import threading
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from zk0d.ctl.runtime_lists import Lists, normal
from zk0d.errors import Zk0Error

AT_ONCE = 3
"""Downloads at a time: enough for any line, few enough that a cut leaves few files half-way."""
TRIES = 6
"""Failures of one file in a row, without a byte more, after which it is given up."""
SILENCE_S = 20.0
"""A server that sends nothing for so long is given up."""
_PIECE = 1 << 20
_TELL_S = 0.1
# Of several files that fit, the one that an installer prefers: the order of the interpreter's own tags (PEP 425).
_PICK = """
import json, sys
from pip._vendor.packaging.tags import sys_tags
from pip._vendor.packaging.utils import parse_wheel_filename
rank = {tag: at for at, tag in enumerate(sys_tags())}
def best(name):
    return min((rank[t] for t in parse_wheel_filename(name)[3] if t in rank), default=len(rank))
print(json.dumps([min(names, key=best) if names else "" for names in json.load(sys.stdin)]))
"""
OnBytes = Callable[[int, int], None]
"""Called, from several threads, with the bytes that are there and those that are wanted."""


@dataclass(frozen=True)
class Item:
    """One file to fetch. `size` in bytes (0: not told); `hashes`: the SHA-256 (hex) that it may have."""

    name: str
    url: str
    size: int
    hashes: frozenset[str]


def plan(
    uv: Path, python: Path, lists: Lists, source: list[str], env: dict[str, str], out: Path
) -> tuple[list[Item], int]:
    """What has to be fetched for `python`, as the index tells, and how many packages are not to be had over http.

    Raises Zk0Error when the index cannot be asked.
    """
    command = [str(uv), "pip", "compile", "--quiet", "--no-deps", "--generate-hashes", "--format", "pylock.toml"]
    command += ["--python", str(python), *source, str(lists.packages), "--output-file", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = " / ".join(line for line in done.stderr.splitlines() if line.strip())[-600:]
        raise Zk0Error(f"the index does not tell what to fetch: {said}", "is the machine on the network?")
    packages = tomllib.loads(out.read_text()).get("packages", [])
    wheels = [{_name(f): f for f in p.get("wheels", []) if "url" in f} for p in packages]
    chosen = subprocess.run(
        [str(python), "-I", "-c", _PICK], input=json.dumps([list(w) for w in wheels]), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    allowed, found = lists.hashes(), []
    for package, files, name in zip(packages, wheels, json.loads(chosen.stdout), strict=True):
        file = files.get(name) or package.get("sdist", {})
        if file.get("url", "").startswith(("http://", "https://")):
            hashes = allowed.get(normal(package["name"]), frozenset())
            found.append(Item(_name(file), file["url"], int(file.get("size", 0)), hashes))
    return found, len(packages) - len(found)


def _name(file: dict[str, Any]) -> str:
    return unquote(urlsplit(file["url"]).path.rsplit("/", 1)[-1])


class Fetcher:
    """Fetches items into `folder`; what is there already, whole or in part (NAME.part), is not fetched again."""

    def __init__(self, folder: Path, on_bytes: OnBytes) -> None:
        self._folder, self._on_bytes = folder, on_bytes
        self._lock = threading.Lock()
        self._have: dict[str, int] = {}
        self._total = 0
        self._told = 0.0
        self._stop = threading.Event()
        self._failed: Zk0Error | None = None

    def missing(self, items: Iterable[Item]) -> int:
        """Bytes of `items` that are not here yet."""
        return sum(max(0, i.size - self._there(i)) for i in items)

    def _there(self, item: Item) -> int:
        for path in (self._folder / item.name, self._folder / f"{item.name}.part"):
            if path.exists():
                return path.stat().st_size
        return 0

    def fetch(self, items: list[Item]) -> list[Item]:
        """Fetch them all → those that the server will not give to us, and the installer must ask for itself.

        Raises Zk0Error when a file is not the one that the list names, or a transfer breaks off again and again.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._stop, self._failed = threading.Event(), None
        self._total = sum(i.size for i in items)
        self._have = {i.name: self._there(i) for i in items}
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetch") as pool:
            try:
                # The largest first: what is left at the end is then short.
                order = sorted(items, key=lambda i: -i.size)
                left = [item for item, got in zip(order, pool.map(self._fetch, order), strict=True) if not got]
                self._tell_all()
                return left
            finally:
                self._stop.set()  # an interruption or a failure ends the other transfers at their next piece

    def _fetch(self, item: Item) -> bool:
        try:
            return self._fetched(item)
        except Zk0Error as error:
            with self._lock:  # the others are told to stop, and then fail too: the first one is the reason
                self._failed = self._failed or error
            self._stop.set()
            raise self._failed from error

    def _fetched(self, item: Item) -> bool:
        target, part = self._folder / item.name, self._folder / f"{item.name}.part"
        if target.exists():
            return True
        failures = 0
        while True:
            before = self._there(item)
            try:
                self._transfer(item, part)
                break
            except urllib.error.HTTPError as error:
                if error.code == 416:  # more is here than the file has
                    part.unlink(missing_ok=True)
                elif error.code < 500:
                    return False
                why = f"the server answers {error.code} {error.reason}"
            except (OSError, http.client.HTTPException) as error:
                why = str(getattr(error, "reason", "") or error) or type(error).__name__
            have = self._there(item)
            failures = 1 if have > before else failures + 1  # a line that is cut again and again still gets on
            if failures >= TRIES or self._stop.wait(2.0**failures / 8):
                raise Zk0Error(
                    f"the download of {item.name} broke off at {have / 1e6:.1f} of {item.size / 1e6:.1f} MB: {why}",
                    "run it again: it goes on where it stopped; https_proxy names a proxy, --index-url a mirror",
                )
        digest = _sha256(part)
        if digest not in item.hashes:
            part.unlink()
            raise Zk0Error(
                f"{item.name} from {urlsplit(item.url).hostname} is not the file that the list names (sha256 {digest})",
                "nothing of it was installed; try again, or another --index-url",
            )
        part.replace(target)
        return True

    def _transfer(self, item: Item, part: Path) -> None:
        """Append to `part` until it is whole. Raises OSError when the line breaks."""
        if self._stop.is_set():
            raise ConnectionAbortedError("it is being ended")
        have = part.stat().st_size if part.exists() else 0
        if item.size and have == item.size:
            return
        request = urllib.request.Request(item.url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=SILENCE_S) as reply:
            if have and reply.status != 206:  # it does not know ranges: from the beginning
                have = 0
            expected = have + int(reply.headers.get("Content-Length") or 0)
            with part.open("ab" if have else "wb") as out:
                while piece := reply.read1(_PIECE):
                    out.write(piece)
                    have += len(piece)
                    self._tell(item, have)
                    if self._stop.is_set():
                        raise ConnectionAbortedError("it is being ended")
        if have < max(expected, item.size):
            raise ConnectionResetError("the connection was cut")

    def _tell(self, item: Item, have: int) -> None:
        with self._lock:
            self._have[item.name] = have
            now = time.monotonic()
            if now - self._told < _TELL_S:  # TLS gives 16 KiB at a time: thousands of pieces a second
                return
            self._told = now
        self._tell_all()

    def _tell_all(self) -> None:
        done = sum(self._have.values())
        self._on_bytes(done, max(done, self._total))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Rate:
    """Bytes a second over the last ten seconds, and the time that is left at that."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def left(self, done: int, total: int, now: float | None = None) -> tuple[float, float | None]:
        """→ bytes a second, and seconds left (None: not known yet)."""
        at = time.monotonic() if now is None else now
        self._seen = [(t, b) for t, b in self._seen if at - t < 10.0] + [(at, done)]
        seconds, count = at - self._seen[0][0], done - self._seen[0][1]
        rate = count / seconds if seconds > 1.0 else 0.0
        return rate, (total - done) / rate if rate > 0 else None
