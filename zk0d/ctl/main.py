"""`zk0ctl`: runs a command and gives its exit code. The plain `status` is answered without building a parser.

Exit codes: zk0d/errors.py, docs/operator.md.
No logic of commands here.
"""

from __future__ import annotations

import os
import sys

from zk0d.ctl.make_way import announce

TYPE_CHECKING = False
if TYPE_CHECKING:
    from zk0d.errors import Zk0Error

INTERRUPTED = 130


def _plain_status(argv: list[str]) -> tuple[dict[str, str], bool] | None:
    """The options and whether as JSON, when `argv` is a status with nothing that needs a parser; else None.

    argparse costs as much again as everything else that `zk0ctl status` does.
    """
    options: dict[str, str] = {}
    words = iter(argv)
    seen = as_json = False
    for word in words:
        if word in ("--socket", "--state"):
            value = next(words, "")
            if not value or value.startswith("-"):
                return None
            options[word[2:]] = value
        elif word == "status" and not seen:
            seen = True
        elif word == "--json" and seen:
            as_json = True
        else:
            return None
    return (options, as_json) if seen else None


def _run(argv: list[str]) -> int:
    from zk0d.ctl.context import Context

    plain = _plain_status(argv)
    if plain is not None:
        from zk0d.ctl.status_text import show

        options, as_json = plain
        return show(Context.make(options.get("socket"), options.get("state")), as_json=as_json)
    from zk0d.ctl.parser import COMMANDS, build, wanted, with_default

    name = wanted(argv)
    if name in COMMANDS:
        argv = with_default(argv, name)
    args = build((name,) if name in COMMANDS else COMMANDS).parse_args(argv)
    return int(args.run(Context.make(args.socket, args.state), args))


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    announce(argv)
    from zk0d.errors import Zk0Error, from_os  # only now: the trainer stops meanwhile

    try:
        return _run(argv)
    except Zk0Error as error:
        return _tell(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _tell(from_os(error))


def _tell(error: Zk0Error) -> int:
    print(f"zk0ctl: {error.message}" + (f"\n  {error.hint}" if error.hint else ""), file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
