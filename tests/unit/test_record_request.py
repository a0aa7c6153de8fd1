"""A stored request of another release is still one that can be gone on with."""

from __future__ import annotations

from dataclasses import asdict

from zk0d.daemon.record_request import RecordRequest

REQUEST = RecordRequest("cubes", "pick", "alice", {"follower": "virtual:Touch"}, until=7, seed=3)


def test_it_comes_back_as_it_was_kept() -> None:
    assert RecordRequest.kept(asdict(REQUEST)) == REQUEST


def test_fields_of_a_newer_release_are_left_out_and_absent_ones_take_their_default() -> None:
    value = asdict(REQUEST) | {"lighting": "dim", "speed": 2}
    del value["pace"], value["train"]
    assert RecordRequest.kept(value) == REQUEST
