"""How things look on a terminal or in a pipe: words for bytes, times and rates, colour where it helps, aligned tables.

Not for what is said. NO_COLOR and pipes get plain text.
"""

from __future__ import annotations

import json
import os
import re
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

_COLOURS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36"}
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def coloured() -> bool:
    """Whether standard output shows colour (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, *styles: str) -> str:
    """`text` in the given styles, plain where colour is not shown."""
    if not styles or not coloured():
        return text
    return f"\x1b[{';'.join(_COLOURS[s] for s in styles)}m{text}\x1b[0m"


def safe(text: Any) -> str:
    """Text from elsewhere (the hub, a dataset) without control characters, so that it cannot drive the terminal."""
    return _CONTROL.sub("�", str(text))


def size(count: float) -> str:
    """Bytes in decimal units: "12.3 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """ "42 s", "3 min", "2 h 05 min", "3 days"."""
    s = max(0, round(seconds))
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min" + (f" {s % 60:02d} s" if s < 600 else "")
    if s < 86400:
        return f"{s // 3600} h {s % 3600 // 60:02d} min"
    return f"{s // 86400} days"


def transfer(t: dict[str, Any]) -> str:
    """How far a transfer is: "3.2 MB of 200 MB (1%), 1.1 MB/s, 2 min 58 s left"."""
    share = f" ({100 * t['done'] // t['size']}%)" if t["size"] else ""
    left = "" if t["remaining_s"] is None else f", {duration(t['remaining_s'])} left"
    return f"{size(t['done'])} of {size(t['size'])}{share}, {size(t['rate'])}/s{left}"


def plural(count: int, word: str) -> str:
    """ "1 episode", "2 episodes"."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Left-aligned columns, two spaces apart; the header dimmed."""
    widths = [max(len(_ESCAPE.sub("", r[i])) for r in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        padded = [c + " " * (w - len(_ESCAPE.sub("", c))) for c, w in zip(cells, widths, strict=True)]
        return "  ".join(padded).rstrip()

    return "\n".join([paint(line(header), "dim"), *map(line, rows)])


def absolute(path: str) -> Path:
    """A path that a person wrote. Raises UsageError where its ~ is nobody's."""
    from pathlib import Path

    from zk0d.errors import UsageError

    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise UsageError(f"{path}: there is no such user", "or `./~name` for a file of that name") from None


def show_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


class Progress:
    """One line that is rewritten on a terminal; in a pipe only what is `said` appears."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._open = False

    def update(self, text: str) -> None:
        """Show `text` as the passing state of things."""
        if self._tty:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns if sys.stderr.isatty() else 80
            sys.stderr.write("\r\x1b[K" + text[: max(20, columns - 1)])
            sys.stderr.flush()
            self._open = True

    def say(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        print(text, flush=True)

    def clear(self) -> None:
        if self._open:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._open = False
