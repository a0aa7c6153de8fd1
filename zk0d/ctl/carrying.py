"""Sends a folder to the daemon (zk0d/daemon/carrying.py), read with the rights of whoever runs zk0ctl.

Also finds a dataset in that person's own Hugging Face caches. The other direction is delivery.py.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from zk0d import dataset_info
from zk0d.ctl.render import Progress, safe, transfer
from zk0d.errors import DatasetError, UsageError, Zk0Error, os_reason
from zk0d.filetree import listed, opened_within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

    from zk0d.ctl.command import Context

NOTHING = "cancelled: zk0d keeps nothing of it"
_PIECE = 1 << 20


class Cargo:
    """A folder that is to be sent. `within`: where the links in it may lead (default: in itself).

    Raises UsageError when it is no dataset, DatasetError for what in it cannot be sent.
    """

    def __init__(self, root: Path, within: Path | None = None) -> None:
        if not root.is_dir():
            raise UsageError(f"{root} is no folder that you can read", "name the folder that holds meta/info.json")
        if not (root / "meta/info.json").exists():  # a home folder, say: all of it would be sent
            raise UsageError(f"{root} is no dataset", "name the folder that holds meta/info.json")
        self._root = root.resolve()
        self._within = (within or self._root).resolve()
        self._files = listed(self._root, self._within)
        info = dataset_info.read(self._root)
        self.announced = {"files": len(self._files), "bytes": sum(self._files.values()), "folder": str(root),
                          "version": dataset_info.version(info), "features": dataset_info.features(info)}  # fmt: skip
        self._size, self._sent = sum(self._files.values()), 0
        self._all_sent = False
        self._begun = self._shown = 0.0
        self._progress = Progress()

    def ask(self, context: Context, op: str, shown: Callable[[dict[str, Any]], None], **request: Any) -> Any:
        """Ask the daemon for `op`, send it the folder when it wants it, give its result."""
        try:
            return context.call(op, shown, timeout=None, feed=self._feed, carry=self.announced, **request)
        except KeyboardInterrupt:
            self._progress.say(cancel(context) if self._all_sent else NOTHING)
            raise
        finally:
            self._progress.clear()

    def _feed(self, sock: socket) -> None:
        self._begun = time.monotonic()
        for name, length in self._files.items():
            path = self._root / name
            try:
                fd = opened_within(str(path), self._within)
            except OSError as error:
                raise DatasetError(f"{path}: {os_reason(error)}", "may you read it?") from error
            try:
                sock.sendall(json.dumps({"path": name, "size": length}).encode() + b"\n")
                at = 0
                while piece := os.pread(fd, min(_PIECE, length - at), at):
                    sock.sendall(piece)
                    at += len(piece)
                    self._tell(len(piece))
                if at < length or os.fstat(fd).st_size != length:
                    raise DatasetError(f"{path} has changed while it was copied", "run it again when nothing writes"
                                       " there any more")  # fmt: skip
            finally:
                os.close(fd)
        sock.sendall(b'{"end": true}\n')
        self._all_sent = True
        self._progress.update("all sent; zk0d looks at it …")

    def _tell(self, more: int) -> None:
        self._sent += more
        now = time.monotonic()
        if now - self._shown > 0.2:
            self._shown, rate = now, self._sent / max(now - self._begun, 1e-3)
            left = (self._size - self._sent) / rate if now - self._begun > 1 else None
            self._progress.update(transfer({"done": self._sent, "size": self._size, "rate": rate, "remaining_s": left}))


def cancel(context: Context) -> str:
    """Have zk0d end what this program asked it to make of a dataset → what to say."""
    try:
        done = context.call("dataset_cancel", timeout=20.0)["cancelled"]
    except Zk0Error as error:
        return f"zk0d goes on with it: {error.message}"
    return NOTHING if done else "it had just been done: see zk0ctl dataset list"


def cached(name: str) -> tuple[Path, Path]:
    """Where this person's caches have the dataset USER/NAME: its folder, and the one where its links lead.

    LeRobot's own folders come first, then what `hf download` left. Raises DatasetError when none has it.
    """
    user, slash, plain = name.partition("/")
    if not slash or not user or not plain or "/" in plain or ".." in (user, plain):
        raise UsageError(f"hf:{name} is not hf:USER/NAME")
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    lerobot = Path(os.environ.get("HF_LEROBOT_HOME") or home / "lerobot").expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    if (lerobot / name / "meta/info.json").is_file():
        return lerobot / name, lerobot / name
    for cache in (lerobot / "hub", hub):
        repo = cache / f"datasets--{user}--{plain}"
        try:
            snapshot = repo / "snapshots" / (repo / "refs/main").read_text().strip()
        except OSError:
            continue
        if (snapshot / "meta/info.json").is_file():
            return snapshot, repo
    raise DatasetError(
        f"{safe(name)} is not in your Hugging Face cache ({lerobot}, {hub})",
        f"hf download {name} --repo-type dataset, then import again",
    )
