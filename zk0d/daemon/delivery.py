"""Hands files to the person who asked, over the control socket: zk0ctl writes them with that person's own rights.

The daemon and its workers see no home folder and have a /tmp of their own. The other direction is carrying.py.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from zk0d.errors import LinkLostError
from zk0d.filetree import regular

if TYPE_CHECKING:
    from zk0d.control_server import ControlConnection

_CHUNK = 384 * 1024


async def deliver(root: Path, connection: ControlConnection) -> dict[str, int]:
    """Send all regular files under `root` as `file` and `data` events → how many, and their bytes.

    No link is followed: else a link in a folder of somebody's would show what only the daemon may read. What is the
    recorder's own (.zk0, locks) stays. Raises LinkLostError when the client goes away, OSError when it cannot be read.
    """
    files = total = 0
    for path, opened in regular(root):
        await connection.emit("file", path=path, size=os.fstat(opened).st_size)
        while part := await asyncio.to_thread(os.read, opened, _CHUNK):
            await connection.emit("data", data=base64.b64encode(part).decode())
            total += len(part)
            if connection.closed.is_set():
                raise LinkLostError("whoever asked for the files has gone away")
        files += 1
    return {"files": files, "bytes": total}


@contextlib.contextmanager
def spool(work: Path, kind: str) -> Iterator[Path]:
    """A new folder for a worker to write results in, gone in the end."""
    folder = work / "results" / f"{kind}_{time.time_ns():x}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
