"""The zk0-hub command: `init` and `serve` work in a folder; everything else asks the running hub over its admin socket.

Results go to stdout, logs and errors to stderr. Exit statuses are those of zk0d.errors.
"""

from __future__ import annotations

import os
import sys

from zk0d.errors import Zk0Error, from_os
from zk0d.hub.parser import DEFAULT_DIR, Run, parser

__all__ = ["DEFAULT_DIR", "main", "parser"]


def main(argv: list[str] | None = None) -> int:
    """Entry point → exit status."""
    options = parser().parse_args(argv)
    try:
        run: Run = options.run
        return run(options)
    except Zk0Error as error:
        return _tell(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _tell(from_os(error))


def _tell(error: Zk0Error) -> int:
    print(f"zk0-hub: {error.message}" + (f"\n  {error.hint}" if error.hint else ""), file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
