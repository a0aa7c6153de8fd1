"""Fields in the journal, against a real datagram socket that reads the native protocol."""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from zk0d import journal, log


def decoded(data: bytes) -> dict[str, str]:
    """One datagram of systemd's Native Journal Protocol."""
    found = {}
    while data:
        head, _, rest = data.partition(b"\n")
        name, equals, value = head.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", rest[:8])
            value, rest = rest[8 : 8 + length], rest[9 + length :]
        found[name.decode()] = value.decode()
        data = rest
    return found


@pytest.fixture
def journald(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "journal"))
        listening.settimeout(5)
        monkeypatch.setattr(journal, "is_stderr", lambda: True)
        monkeypatch.setattr(journal.JournalHandler.__init__, "__defaults__", (str(tmp_path / "journal"),))
        before = structlog.get_config()
        log.configure("zk0d")
        yield listening
        root = logging.getLogger()
        for handler in list(root.handlers):
            root.removeHandler(handler)
            handler.close()
        structlog.configure(**before)


def test_events_carry_fields(journald: socket.socket) -> None:
    structlog.get_logger("uplink").warning("update refused", federation="cubes", version=3, reason="two\nlines")
    found = decoded(journald.recv(65536))
    assert found["ZK0_EVENT"] == "update refused" and found["PRIORITY"] == "4" and found["ZK0_LOGGER"] == "uplink"
    assert (found["ZK0_FEDERATION"], found["ZK0_VERSION"], found["ZK0_REASON"]) == ("cubes", "3", "two\nlines")
    assert found["MESSAGE"].startswith("update refused federation=cubes version=3")
    assert found["SYSLOG_IDENTIFIER"] == "zk0d"


def test_the_standard_librarys_and_exceptions_too(journald: socket.socket) -> None:
    logging.getLogger("asyncio").warning("slow %s", "callback")
    assert decoded(journald.recv(65536))["ZK0_EVENT"] == "slow callback"
    try:
        raise ValueError("broken")
    except ValueError:
        structlog.get_logger("x").exception("it failed")
    assert "ValueError: broken" in decoded(journald.recv(65536))["MESSAGE"]


def test_stderr_is_the_journal_only_where_systemd_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    assert not journal.is_stderr()
    monkeypatch.setenv("JOURNAL_STREAM", "1:1")
    assert not journal.is_stderr()
