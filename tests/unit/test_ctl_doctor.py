"""The doctor: every finding that is not good names what mends it; a check that fails itself stops no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zk0d.ctl.checkup import CHECKS, Case, Finding, examine
from zk0d.ctl.command import Context
from zk0d.ctl.main import main


def context(folder: Path) -> Context:
    return Context.make(None, str(folder))


def test_without_a_daemon_it_says_so_and_checks_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--state", str(tmp_path), "doctor", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["schema_version"] == 1 and told["exit_code"] == 1
    checks = {f["check"] for f in told["findings"]}
    assert {"daemon", "group", "settings", "runtime", "gpu", "disk", "clock"} <= checks
    for finding in told["findings"]:
        assert finding["level"] in ("ok", "note", "warning", "error")
        assert finding["mend"] or finding["level"] in ("ok", "note"), finding


def test_wrong_settings_are_found(tmp_path: Path) -> None:
    (tmp_path / "zk0d.toml").write_text("[train]\nniceness = 99\n")
    found = [f for f in examine(context(tmp_path), CHECKS) if f.check == "settings"]
    assert [f.level for f in found] == ["error"] and "niceness" in found[0].message and "0 … 19" in found[0].mend


def test_a_check_that_fails_itself_is_a_note(tmp_path: Path) -> None:
    def broken(case: Case) -> list[Finding]:
        raise OSError("no such thing")

    def fine(case: Case) -> list[Finding]:
        return [Finding("fine", "ok", "good")]

    found = examine(context(tmp_path), (broken, fine))
    assert [(f.check, f.level) for f in found] == [("broken", "note"), ("fine", "ok")]
