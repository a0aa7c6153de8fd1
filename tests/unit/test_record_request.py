"""A stored request of another release is still one that can be gone on with."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from zk0d import viewer
from zk0d.daemon.config import Config
from zk0d.daemon.record_request import RecordRequest
from zk0d.errors import ConfigError, UsageError

REQUEST = RecordRequest("cubes", "pick", "alice", {"follower": "virtual:Touch"}, until=7, seed=3)


def test_it_comes_back_as_it_was_kept() -> None:
    assert RecordRequest.kept(asdict(REQUEST)) == REQUEST


def test_fields_of_a_newer_release_are_left_out_and_absent_ones_take_their_default() -> None:
    value = asdict(REQUEST) | {"lighting": "dim", "speed": 2}
    del value["pace"], value["train"]
    assert RecordRequest.kept(value) == REQUEST


def test_a_name_is_by_the_rule_of_all_datasets() -> None:
    for name in ("", "a/b", ".hidden", "a\nb", "x" * 65, "two words", "\x1b[31mred"):
        with pytest.raises(UsageError, match="cannot be a dataset's name"):
            RecordRequest.checked({"dataset": name, "task": "t", "episodes": 1}, "alice", Config.load([]), [], {})


def test_a_viewer_is_on_this_machine() -> None:
    """Frames and joints leave it in no way, whoever asks."""
    assert viewer.place("spawn") == (None, None)
    assert viewer.place("127.0.0.1:9876") == ("127.0.0.1", 9876) and viewer.place("[::1]:1") == ("[::1]", 1)
    for where in ("192.168.1.7:9876", "example.org:9876", "0.0.0.0:9876", "127.0.0.1.example.org:1"):
        with pytest.raises(ConfigError, match="is not this machine"):
            RecordRequest.checked({"dataset": "c", "rerun": where}, "alice", Config.load([]), [], {})
    with pytest.raises(ConfigError, match="no place of a viewer"):
        viewer.place("here")
