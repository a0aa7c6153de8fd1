"""Numbers on a command line and in a request: none makes a traceback, whatever its digits."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from zk0d.arguments import MOST, Number, Whole
from zk0d.ctl.parser import COMMANDS, build
from zk0d.daemon.config import Config
from zk0d.daemon.record_request import RecordRequest
from zk0d.errors import UsageError
from zk0d.hub.parser import parser

MANY = "9" * 20


def numbers(top: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple[str, argparse.Action]]:
    """Every argument of a parser, and of those below it, that takes a number."""
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from numbers(below, (*words, name))
        elif action.type in (int, float) or isinstance(action.type, Whole | Number):
            yield " ".join((*words, *action.option_strings[:1], action.dest)), action


@pytest.mark.parametrize("top", [build(COMMANDS), parser()], ids=["zk0ctl", "zk0-hub"])
def test_every_number_has_its_bounds(top: argparse.ArgumentParser) -> None:
    found = dict(numbers(top))
    assert len(found) > 3
    for name, action in found.items():
        if name.endswith("--hours hours"):  # the hub bounds it, with words of its own
            continue
        assert isinstance(action.type, Whole | Number), name
        for text in (MANY, "9" * 5000, "-" + MANY, "nan", "inf", "x", ""):
            with pytest.raises(argparse.ArgumentTypeError, match=r"is not a (whole )?number"):
                action.type(text)
        assert action.default is None or action.type(str(action.default)) == action.default, name


def test_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(["audit", "--count", MANY])
    told = capsys.readouterr().err
    assert ended.value.code == 64 and told.endswith(
        f"zk0-hub audit: argument --count: '{MANY}' is not a whole number of at least 1, below 2**53\n"
    )
    assert Whole(1).of(MOST, "it") == MOST and Whole(0)("0") == 0 and Number(0.2, 5)("5") == 5.0
    for value in (MOST + 1, 10**5000, 0, True, "3", 3.0, None):
        with pytest.raises(UsageError, match=r"^the count: .*is not a whole number of at least 1, below 2\*\*53$"):
            Whole(1).of(value, "the count")


def test_a_request_to_the_daemon() -> None:
    for much in ({"episodes": int(MANY)}, {"until": int(MANY)}, {"episodes": 0}, {"until": -1}, {"episodes": "3"}):
        with pytest.raises(UsageError, match=r"the number of episodes: .* is not a whole number of at least 1 and at"):
            RecordRequest.checked({"dataset": "c", "task": "t", **much}, "alice", Config.load([]), [], {})
    made = RecordRequest.checked({"dataset": "c", "task": "t", "until": 7}, "alice", Config.load([]), [], {})
    assert (made.until, made.episodes) == (7, 0)
