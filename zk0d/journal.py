"""A logging handler that writes to journald with fields of its own (ZK0_EVENT, ZK0_FEDERATION, ZK0_VERSION …).

Own code instead of systemd-python, which must be compiled; the format is systemd's Native Journal Protocol. Used only
when stderr is the journal (JOURNAL_STREAM); everywhere else zk0d/log.py writes lines.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import struct
from typing import Any

SOCKET = "/run/systemd/journal/socket"
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_MAX_VALUE = 16 << 10
_PLAIN = frozenset(("event", "level", "timestamp", "program", "logger", "exception", "_record", "_from_structlog"))


def is_stderr() -> bool:
    """Whether stderr is connected to the journal: JOURNAL_STREAM names its device and inode (systemd.exec(5))."""
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def field_name(key: str) -> str:
    """`federation` → ZK0_FEDERATION; what journald does not take in a name becomes an underline."""
    return "ZK0_" + re.sub(r"[^A-Z0-9_]", "_", key.upper())[:60]


def encode(fields: dict[str, str]) -> bytes:
    """Fields as one datagram: NAME=value, or with a length where the value has line breaks."""
    out = bytearray()
    for name, value in fields.items():
        data = value.encode(errors="replace")[:_MAX_VALUE]
        if b"\n" in data:
            out += name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
        else:
            out += name.encode() + b"=" + data + b"\n"
    return bytes(out)


def fields_of(event: dict[str, Any], level: int, program: str) -> dict[str, str]:
    """A structlog event as the journal's fields; MESSAGE is what a person reads."""
    own = {k: v for k, v in event.items() if k not in _PLAIN and v is not None}
    text = str(event.get("event", ""))
    message = text + "".join(f" {k}={v}" for k, v in own.items())
    if own.get("text"):  # a sentence: the fields say the same
        message = str(own["text"])
    if "exception" in event:
        message += f"\n{event['exception']}"
    return {
        "MESSAGE": message,
        "PRIORITY": str(next((p for at, p in _PRIORITIES if level >= at), 7)),
        "SYSLOG_IDENTIFIER": program,
        "ZK0_EVENT": text,
        "ZK0_LOGGER": str(event.get("logger", "")),
        **{field_name(str(k)): str(v) for k, v in own.items()},
    }


class JournalHandler(logging.Handler):
    """Sends each event as one datagram. What journald does not take goes to stderr, which is the journal too."""

    def __init__(self, program: str, path: str = SOCKET) -> None:
        super().__init__()
        self._program, self._path = program, path
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._sock.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event = (
                record.msg if isinstance(record.msg, dict) else {"event": record.getMessage(), "logger": record.name}
            )
            if record.exc_info and "exception" not in event:
                event = {**event, "exception": logging.Formatter().formatException(record.exc_info)}
            self._sock.sendto(encode(fields_of(dict(event), record.levelno, self._program)), self._path)
        except OSError:
            os.write(2, (record.getMessage() + "\n").encode(errors="replace"))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._sock.close()
        super().close()
