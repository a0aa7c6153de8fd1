"""Log entries by their fields: from the daemon's own files and from the journal, told the same way."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import structlog

from zk0d import log
from zk0d.ctl import journal_reader
from zk0d.ctl.logs_cmd import since
from zk0d.ctl.main import main
from zk0d.errors import UsageError, Zk0Error
from zk0d.journal import fields_of
from zk0d.logbook import Entry, Filter, matching, of_journal, of_line, rotated

RECEIPT = {"event": "receipt", "text": "the hub confirms", "federation": "cubes", "version": 3, "logger": "zk0d"}


def line(at: str, level: str = "info", **event: Any) -> str:
    return json.dumps({**event, "level": level, "timestamp": f"2026-11-24T{at}Z"})


def journal_line(seconds: float, level: int = logging.INFO, **event: Any) -> str:
    """What journalctl prints of an event that zk0d sent."""
    return json.dumps({**fields_of(event, level, "zk0d"), "__REALTIME_TIMESTAMP": str(int(seconds * 1e6)),
                       "_SYSTEMD_UNIT": "zk0d.service"})  # fmt: skip


def test_file_and_journal_tell_the_same() -> None:
    one, two = of_line(line("10:00:00", **RECEIPT)), of_journal(journal_line(1795514400.0, **RECEIPT))
    assert one is not None and two is not None
    assert (one.at, one.level, one.event, one.text) == (two.at, two.level, two.event, two.text)
    assert one.text == "the hub confirms" and one.fields["version"] == two.fields["version"] == "3"
    plain = of_journal(journal_line(1.0, logging.WARNING, event="link.dropped", reason="cut"))
    assert plain is not None and (plain.level, plain.text) == ("warning", "reason=cut")


@pytest.mark.parametrize("bad", ["", "{", "[]", "null", '{"event": "x"}', '{"timestamp": 7, "event": "x"}'])
def test_what_is_no_entry_is_passed_over(bad: str) -> None:
    assert of_line(bad) is None and of_journal(bad) is None


def test_systemds_own_words_have_a_unit_and_no_event() -> None:
    said = {"MESSAGE": "Started", "UNIT": "zk0d-train@trainer-a.service", "_SYSTEMD_UNIT": "init.scope",
            "PRIORITY": "6", "__REALTIME_TIMESTAMP": "5000000"}  # fmt: skip
    entry = of_journal(json.dumps(said))
    assert entry == Entry(5.0, "info", "", "Started", {"unit": "zk0d-train@trainer-a.service"})
    assert Filter(fields={"unit": "zk0d-train@*"}).wants(entry) and not Filter(event="?*").wants(entry)
    assert of_journal(json.dumps({**said, "MESSAGE": [104, 105]})).text == "hi"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (Filter(), 5), (Filter(event="receipt"), 2), (Filter(event="rec*"), 2), (Filter(level="warning"), 1),
        (Filter(fields={"federation": "cubes"}), 3), (Filter(event="receipt", fields={"version": "4"}), 1),
        (Filter(fields={"kind": "trainer"}), 1), (Filter(since=1795514402.0), 3), (Filter(event="none"), 0),
    ],
)  # fmt: skip
def test_filters_over_rotated_files(tmp_path: Path, wanted: Filter, count: int) -> None:
    lines = [
        line("10:00:00", **RECEIPT), line("10:00:01", **{**RECEIPT, "version": 4}),
        line("10:00:02", event="version", federation="cubes"), line("10:00:03", "error", event="merge failed"),
        line("10:00:04", event="worker started", kind="trainer", pid=7),
    ]  # fmt: skip
    path = tmp_path / "zk0d.log"
    path.with_name("zk0d.log.1").write_text("\n".join(lines[:2]) + "\n")
    path.write_text("\n".join(lines[2:]) + "\n{torn")
    found = matching(rotated(path), wanted, 30)
    assert len(found) == count and [e.at for e in found] == sorted(e.at for e in found)
    assert matching(rotated(path), wanted, 1) == found[-1:]
    assert Filter.of(wanted.plain()) == wanted


def test_since(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    now = 1795514400.0  # 2026-11-24 10:00 UTC
    assert since("10min", now) == now - 600 and since("09:30", now) == now - 1800
    assert since("2026-11-24 08:00", now) == now - 7200 and since("2026-11-23", now) == now - 34 * 3600
    with pytest.raises(UsageError, match="soon"):
        since("soon", now)


JOURNALCTL = """#!{python}
import os, sys
open({asked!r}, "w").write("\\n".join(sys.argv[1:]))
if "--follow" in sys.argv or "refuse" in os.environ: sys.exit("Failed to open: denied")
print(open({told!r}).read())
"""


@pytest.fixture
def journalctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A journalctl that prints the file `told` and keeps what it was asked."""
    program = tmp_path / "bin" / "journalctl"
    program.parent.mkdir()
    told = tmp_path / "told"
    program.write_text(JOURNALCTL.format(python=sys.executable, asked=str(tmp_path / "asked"), told=str(told)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setattr(journal_reader.os, "geteuid", lambda: 0)
    told.write_text("\n".join(journal_line(time.time() + n, **{**RECEIPT, "version": n}) for n in (1, 2, 3)) + "\n")
    return tmp_path


def test_the_journal_is_asked_by_field(journalctl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--state", str(journalctl), "logs", "--journal", "--json"]
    assert main([*words, "--event", "receipt", "--federation", "cubes", "--since", "2h", "-n", "7"]) == 0
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert [r["version"] for r in rows] == ["1", "2", "3"] and {r["federation"] for r in rows} == {"cubes"}
    asked = (journalctl / "asked").read_text().splitlines()
    assert asked[-2:] == ["ZK0_EVENT=receipt", "ZK0_FEDERATION=cubes"] and "--lines=7" in asked
    assert {"zk0d.service", "zk0d-train@*", "zk0d-record@*"} <= set(asked) and any(
        a.startswith("--since=@") for a in asked
    )
    assert main([*words, "--event", "rec*", "-n", "2"]) == 0  # a pattern is for us: all of it is read
    assert [json.loads(row)["version"] for row in capsys.readouterr().out.splitlines()] == ["2", "3"]
    assert "--lines=all" in (journalctl / "asked").read_text() and "ZK0_EVENT" not in (journalctl / "asked").read_text()


def test_a_journal_that_refuses_is_said(
    journalctl: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("refuse", "1")
    assert main(["--state", str(journalctl), "logs", "--journal"]) == 1
    said = capsys.readouterr().err
    assert "Failed to open: denied" in said and "usermod -aG systemd-journal" in said


def test_who_may_not_read_the_journal_is_told_how_to(journalctl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_reader.os, "geteuid", lambda: 4242)
    monkeypatch.setattr(journal_reader.os, "getegid", lambda: 4242)
    monkeypatch.setattr(journal_reader.os, "getgroups", list)
    assert "systemd-journal or adm only" in journal_reader.why_not()
    monkeypatch.setenv("PATH", "/nowhere")
    assert "no journalctl" in journal_reader.why_not()


def test_without_a_journal_the_files_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from zk0d.daemon.store import Store

    Store(tmp_path / "zk0d.db").close()
    before = structlog.get_config()
    log.configure("zk0d", tmp_path / "log" / "zk0d.log")
    structlog.get_logger("uplink").warning("update refused", federation="cubes", version=3, reason="late")
    structlog.get_logger("uplink").info("decision", text="idle: nothing to do")
    for handler in list(logging.getLogger().handlers):
        logging.getLogger().removeHandler(handler)
        handler.close()
    structlog.configure(**before)
    assert main(["--state", str(tmp_path), "logs", "--federation", "cubes"]) == 3
    told = capsys.readouterr()
    assert "update refused federation=cubes version=3 reason=late" in told.out and "idle" not in told.out
    assert "not running" in told.err
    assert main(["--state", str(tmp_path), "logs", "--field", "federation"]) == 64


def test_a_failure_of_journalctl_is_an_error(journalctl: Path) -> None:
    with pytest.raises(Zk0Error, match="denied"):
        list(journal_reader.entries(Filter(), 5, follow=True))
