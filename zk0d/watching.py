"""The same picture again every second, for `--watch`: a screen on a terminal, changed lines elsewhere.

Not for what is in the picture, nor for the progress of one piece of work.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Never


def watch(picture: Callable[[], str], *, screen: bool) -> Never:
    """Show `picture()` every second until Ctrl-C. `screen=False` (JSON) never clears the terminal."""
    shown = ""
    while True:
        now = picture()
        if screen and sys.stdout.isatty():
            sys.stdout.write(f"\x1b[H\x1b[J{now}\n\nevery second; Ctrl-C ends\n")
        elif now != shown:
            print(now)
        sys.stdout.flush()
        shown = now
        time.sleep(1.0)
