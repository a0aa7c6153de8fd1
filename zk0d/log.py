"""Logs of the long-running programs: for people on a terminal, fields in the journal, JSON lines otherwise; and a file.

Not for workers (their output goes to their own file) and not for what commands print. Files rotate at 8 MiB, four kept.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

# structlog imports these where they are installed, for coloured tracebacks and threads that are not ours: 13 MB.
_UNWANTED = [name for name in ("rich", "greenlet") if name not in sys.modules]
sys.modules.update(dict.fromkeys(_UNWANTED))  # type: ignore[arg-type]
import structlog  # noqa: E402

from zk0d import journal  # noqa: E402

for _name in _UNWANTED:
    del sys.modules[_name]

_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def configure(program: str, file: Path | None = None, level: str = "info") -> None:
    """Send structlog and the stdlib's logging to stderr and, as JSON lines, to `file`. Call once, at start."""

    def name_it(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.setdefault("program", program)  # not a context variable: the link's threads log too
        return event

    shared = [*_SHARED, name_it]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    tty = sys.stderr.isatty()
    console: list[Any] = (
        [structlog.dev.ConsoleRenderer(colors="NO_COLOR" not in os.environ, pad_event=40)] if tty else _json()
    )
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    if journal.is_stderr():
        root.addHandler(journal.JournalHandler(program))
    else:
        _add(root, logging.StreamHandler(sys.stderr), shared, console)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        rotating = logging.handlers.RotatingFileHandler(file, maxBytes=8 << 20, backupCount=4, delay=True)
        _add(root, rotating, shared, _json())
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _json() -> list[Any]:
    return [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer(ensure_ascii=False)]


def _add(root: logging.Logger, handler: logging.Handler, shared: list[Any], last: list[Any]) -> None:
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[remove, *last]))
    root.addHandler(handler)
