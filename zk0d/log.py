"""Logs of the long-running programs: for people on a terminal, JSON lines otherwise; to stderr and to a file.

Not for workers (their output goes to their own file) and not for what commands print. Files rotate at 8 MiB, four kept.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from pathlib import Path
from typing import Any

import structlog

_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def configure(program: str, file: Path | None = None, level: str = "info") -> None:
    """Send structlog and the stdlib's logging to stderr and, as JSON lines, to `file`. Call once, at start."""
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(program=program)
    tty = sys.stderr.isatty()
    console: list[Any] = (
        [structlog.dev.ConsoleRenderer(colors="NO_COLOR" not in os.environ, pad_event=40)] if tty else _json()
    )
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    _add(root, logging.StreamHandler(sys.stderr), console)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        _add(root, logging.handlers.RotatingFileHandler(file, maxBytes=8 << 20, backupCount=4, delay=True), _json())
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _json() -> list[Any]:
    return [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer(ensure_ascii=False)]


def _add(root: logging.Logger, handler: logging.Handler, last: list[Any]) -> None:
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_SHARED, processors=[remove, *last]))
    root.addHandler(handler)
