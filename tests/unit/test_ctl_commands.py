"""zk0ctl's commands as declared: every one parses, loads by itself, and asks for what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zk0d.control_server import describe
from zk0d.ctl import render
from zk0d.ctl.context import DEFAULT_SOCKET, DEFAULT_STATE, Context
from zk0d.ctl.dataset_cmd import renames
from zk0d.ctl.enroll_cmd import parse
from zk0d.ctl.main import main
from zk0d.ctl.parser import COMMANDS, build, load
from zk0d.ctl.record_cmd import interruptible, robot
from zk0d.ctl.train_cmd import seconds, until
from zk0d.errors import RobotError, UsageError
from zk0d.invitation import Invitation

CA = "sha256:" + "ab" * 32


def test_every_command_file_is_listed() -> None:
    folder = Path(sys.modules["zk0d.ctl.main"].__file__ or "").parent
    assert {p.stem.removesuffix("_cmd") for p in folder.glob("*_cmd.py")} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_declarations(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = load(name)
    assert command.name == name and command.help
    assert (command.run is None) == bool(command.subs)
    assert not command.default or command.default in {s.name for s in command.subs}
    for sub in (command, *command.subs):
        assert sub.help and all(a.help for a in sub.args)
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0 and command.help in capsys.readouterr().out


def test_usage_errors_end_with_64(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (
        [],
        ["nonsense"],
        ["status", "--nonsense"],
        ["train"],
        ["dataset", "add"],
        ["dataset", "add", "hf:user/name"],
        ["status", "--wait", "rain"],
        ["logs", "-n", "-1"],
        ["record", "stpo"],
    ):
        try:
            code = main(["--socket", "/nonexistent/socket", *argv])
        except SystemExit as ended:
            code = ended.code  # type: ignore[assignment]
        assert code == 64, argv
    said = capsys.readouterr().err
    assert "Traceback" not in said and "zk0ctl record knows no action 'stpo'\n  one of start, watch, next" in said


def test_default_actions() -> None:
    args = build(("record",)).parse_args(["record", "start", "--dataset", "x", "--until", "3"])
    assert args.until == 3 and args.dataset == "x"


def test_where_the_daemon_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ZK0_SOCKET", raising=False)
    monkeypatch.delenv("ZK0_STATE", raising=False)
    assert Context.make(None, None) == Context(DEFAULT_SOCKET, DEFAULT_STATE)
    assert Context.make(None, "/s") == Context(Path("/s/control.sock"), Path("/s"))
    monkeypatch.setenv("ZK0_SOCKET", "/run/x.sock")
    assert Context.make(None, None) == Context(Path("/run/x.sock"), DEFAULT_STATE)
    assert Context.make(None, "/s") == Context(Path("/s/control.sock"), Path("/s"))
    (tmp_path / "zk0d.db").touch()
    assert Context.make(str(tmp_path / "c.sock"), None).state == tmp_path


def test_enroll_takes_an_invitation_or_an_address() -> None:
    wanted = {"host": "hub.example", "port": 7433, "ca_fingerprint": CA, "secret": "s"}
    assert parse(Invitation("hub.example", 7433, CA, "s").token(), None) == wanted
    del wanted["secret"]
    assert parse("hub.example:7433", "AB:" * 31 + "AB") == wanted
    assert parse("[::1]:7433", CA)["host"] == "::1"
    for where, fingerprint in (
        ("hub.example", CA),
        ("hub.example:99999", CA),
        ("hub.example:1", None),
        ("hub.example:1", "ab"),
    ):
        with pytest.raises(UsageError):
            parse(where, fingerprint)
    with pytest.raises(UsageError, match="damaged"):
        parse(Invitation("hub.example", 7433, CA, "s").token()[:-4], None)


def test_times_and_renames() -> None:
    assert [seconds(t) for t in ("90s", "30min", "2h", "1.5d")] == [90, 1800, 7200, 129600]
    with pytest.raises(UsageError):
        seconds("2 weeks")
    for text in ("8", "24:00", "12:60", "noon"):
        with pytest.raises(UsageError):
            until(text, 0.0)
    assert renames(["mycam=front"]) == {"mycam": "front"}
    with pytest.raises(UsageError):
        renames(["mycam"])


@pytest.mark.parametrize(
    ("now", "then", "hours"),
    [("2026-05-02 23:00", "08:00", 9), ("2026-05-02 07:59", "08:00", 1 / 60), ("2026-05-02 08:00", "08:00", 24),
     ("2026-03-28 23:00", "08:00", 8), ("2026-10-24 23:00", "08:00", 10)],
)  # fmt: skip
def test_until_the_clock_shows_it(now: str, then: str, hours: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the nights when the clocks change too."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        at = time.mktime(time.strptime(now, "%Y-%m-%d %H:%M"))
        assert until(then, at) == pytest.approx(3600 * hours)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_replayed_file_is_found_from_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    args = build(("record",)).parse_args(["record", "start", "--dataset", "x", "--leader", "replay:a.parquet#3"])
    assert robot(args) == {"leader": f"replay:{tmp_path}/a.parquet#3"}


def test_words() -> None:
    assert [render.size(n) for n in (0, 999, 1500, 123_456_789, 5e9)] == ["0 B", "999 B", "1.5 kB", "123 MB", "5.0 GB"]
    assert [render.duration(s) for s in (5, 65, 3700, 200_000)] == ["5 s", "1 min 05 s", "1 h 01 min", "2 days"]
    assert render.plural(1, "episode") == "1 episode"
    assert describe(UsageError("a", "b"))["exit_code"] == 64


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m zk0d.ctl.main --help | true"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, env=os.environ, check=True)
    assert "Traceback" not in done.stderr


def test_what_fails_by_ctrl_c_is_told_and_is_an_interruption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = Context.make(None, str(tmp_path))
    with pytest.raises(RobotError), interruptible(context, render.Progress()):
        raise RobotError("the arm is in use")
    with pytest.raises(KeyboardInterrupt), interruptible(context, render.Progress()):
        os.kill(os.getpid(), signal.SIGINT)
        raise RobotError("the rollout was told to stop before it began", "nothing was moved")
    assert "told to stop before it began (nothing was moved)" in capsys.readouterr().out
