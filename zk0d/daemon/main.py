"""`zk0d`: parse the command line, take the state folder, run the service until it is told to end.

The same program under systemd (Type=notify, socket activation) and with --foreground; not for any logic of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import sys
from pathlib import Path
from typing import NoReturn

from zk0d import __version__, log
from zk0d.daemon.config import Config, find_files
from zk0d.errors import UsageError, Zk0Error, from_os

DEFAULT_STATE = Path("/var/lib/zk0d")


class StateLock:
    """Holds a state folder for one daemon. The kernel lets go of it when the process ends, however it ends."""

    def __init__(self, state: Path) -> None:
        self._fd = os.open(state / "zk0d.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
            os.close(self._fd)
            raise Zk0Error(
                f"{state} is in use by another zk0d (process {owner or 'unknown'})",
                "stop it, or name another folder with --state",
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(UsageError.exit_code, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    """The command line of zk0d."""
    p = _Parser(prog="zk0d", description="The operator's daemon: records, trains and exchanges updates.")
    p.add_argument(
        "--foreground",
        action="store_true",
        help="stay in the foreground (it always does; for symmetry with other daemons)",
    )
    p.add_argument("--state", type=Path, default=Path(os.environ.get("ZK0_STATE", DEFAULT_STATE)),
                   metavar="DIR", help=f"state folder (default {DEFAULT_STATE})")  # fmt: skip
    p.add_argument(
        "--config", type=Path, metavar="FILE", help="settings (default DIR/zk0d.toml, then /etc/zk0d/conf.d)"
    )
    p.add_argument("--socket", type=Path, metavar="PATH", help="control socket (default DIR/control.sock)")
    p.add_argument("--check", action="store_true", help="check the settings and exit")
    p.add_argument("--version", action="version", version=f"zk0d {__version__}")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        state = args.state.absolute()
        config = Config.load(find_files(state, args.config))
        if args.check:
            print(f"settings are good: {', '.join(config.files) or 'all defaults'}")
            return 0
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = StateLock(state)
        log.configure("zk0d", state / "log" / "zk0d.log", config["log", "level"])
        from zk0d.daemon.service import Service

        asyncio.run(Service(state, config, args.socket or state / "control.sock").run())
        del lock
    except Zk0Error as error:
        return _tell(error)
    except OSError as error:
        return _tell(from_os(error))
    return 0


def _tell(error: Zk0Error) -> int:
    print(f"zk0d: {error.message}" + (f"\n  {error.hint}" if error.hint else ""), file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
