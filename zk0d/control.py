"""The control socket's client, shared by zk0ctl and the zk0-hub command: one request, its events, its result.

JSON lines over a unix stream socket (docs/architecture.md §5). Imports little, because `zk0ctl status` is typed all
day; the server (`ControlServer`, control_server.py) is loaded only when asked for.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import contextmanager, suppress

from zk0d import errors
from zk0d.errors import NotRunningError, ProtocolError, Zk0Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from zk0d.control_server import ControlConnection, ControlServer

__all__ = ["MAX_REQUEST", "ControlConnection", "ControlServer", "call", "remote_error", "socket_address"]

MAX_REQUEST = 1 << 20
"""Bytes of one line."""
_SUN_PATH = 107


def __getattr__(name: str) -> Any:
    if name in ("ControlServer", "ControlConnection"):
        from zk0d import control_server

        return getattr(control_server, name)
    raise AttributeError(name)


@contextmanager
def socket_address(path: Path | str) -> Iterator[str]:
    """An address for bind or connect that also works when `path` is longer than a unix socket's 107 bytes."""
    if len(os.fsencode(path)) <= _SUN_PATH:
        yield str(path)
        return
    folder, name = os.path.split(os.fspath(path))
    fd = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def call(
    path: Path | str,
    request: dict[str, Any],
    on_event: Callable[[dict[str, Any]], None] | None = None,
    timeout: float | None = 30.0,
    feed: Callable[[socket.socket], None] | None = None,
) -> Any:
    """Send `request` (with `op`) to the socket at `path`, hand its events to `on_event`, return its `result`.

    `timeout` (seconds) bounds the silence between lines; None waits for ever. `feed` sends what belongs to the request
    once the other side asks for it (the event `send`); that may answer before it has all. Raises NotRunningError when
    nobody answers there, and the error that the other side reports, as its own class.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            with socket_address(path) as address:
                sock.connect(address)
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as lines:
                for line in lines:
                    reply = json.loads(line)
                    if "ok" not in reply:
                        if feed is not None and reply["event"] == "send":
                            with suppress(BrokenPipeError, ConnectionResetError):  # its answer says why
                                feed(sock)
                        elif on_event is not None:
                            on_event(reply)
                    elif reply["ok"]:
                        return reply.get("result")
                    else:
                        raise remote_error(reply["error"])
        except PermissionError as error:
            raise NotRunningError(f"{path}: permission denied", "are you in the socket's group?") from error
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotRunningError(f"nothing listens on {path}", "is it started?") from error
        except TimeoutError as error:
            raise NotRunningError(f"{path} did not answer within {timeout:g} s", "see its log") from error
        except OSError as error:
            raise NotRunningError(f"{path}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ProtocolError(f"{path}: the reply is not understood: {error}") from error
    raise NotRunningError(f"{path} closed the connection without an answer", "it stopped or crashed: see its log")


def remote_error(error: dict[str, Any]) -> Zk0Error:
    """The error a peer reported, as the class that has its code, with the peer's exit code."""
    classes = {c.code: c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Zk0Error)}
    code = str(error.get("code", "error"))
    made = classes.get(code, Zk0Error)(str(error.get("message", "failed")), str(error.get("hint", "")))
    made.__dict__["code"] = code
    made.__dict__["exit_code"] = int(error.get("exit_code", made.exit_code))
    return made
