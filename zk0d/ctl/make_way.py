"""`zk0ctl record` says so to the daemon before anything else is imported: the trainer stops while Python still loads.

Only built-in modules, and where the daemon is in few lines; context.py says the same at leisure. Not for anything that
needs an answer: the request itself follows.
"""

from __future__ import annotations

import os

_STEERS = ("next", "discard", "rerecord", "pause", "resume", "watch", "finish", "stop", "-h", "--help")
_SUN_PATH = 107


def _given(argv: list[str], option: str) -> str:
    for at, word in enumerate(argv):
        if word == option:
            return argv[at + 1] if at + 1 < len(argv) else ""
        if word.startswith(option + "="):
            return word[len(option) + 1 :]
    return ""


def socket_path(argv: list[str]) -> str:
    """Where the daemon listens, from the options, else the environment, else where the installed one does."""
    state, given = _given(argv, "--state"), _given(argv, "--socket")
    given = given or ("" if state else os.environ.get("ZK0_SOCKET", ""))
    state = state or os.environ.get("ZK0_STATE", "")
    return given or (os.path.join(state, "control.sock") if state else "/run/zk0d/control.sock")


def announce(argv: list[str]) -> None:
    """Send `make_way` if `argv` is going to begin a recording. Nothing happens when no daemon is there."""
    if "record" not in argv[:5]:
        return
    rest = argv[argv.index("record") + 1 :]
    if any(word in _STEERS for word in rest):
        return
    import _socket  # the built-in part of `socket`, whose own imports cost more than all of this

    path, folder = socket_path(argv), -1
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        sock.settimeout(1.0)
        if len(os.fsencode(path)) > _SUN_PATH:
            folder = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_CLOEXEC)
            path = f"/proc/self/fd/{folder}/{os.path.basename(path)}"
        sock.connect(path)
        sock.sendall(b'{"op": "make_way"}\n')
    except OSError:
        return
    finally:
        sock.close()
        if folder >= 0:
            os.close(folder)
