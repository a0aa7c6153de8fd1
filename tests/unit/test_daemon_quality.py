"""Which episodes are trained on: the rules on the reports of the recorder, and a person's word, which wins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zk0d.daemon.config import Config
from zk0d.daemon.quality import RECORDS, Rules, Selection, reports
from zk0d.daemon.store import Dataset, Store

GOOD: dict[str, Any] = {
    "rows": 100, "seconds": 3.3, "late": 1, "gaps": {"count": 0, "longest_s": 0.0}, "stale": {"front": 2}, "clipped": 0,
    "bus_errors": {"follower": 1, "leader": 0}, "care": "ok", "frames": {"front": 100},
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "zk0d.db")
    yield opened
    opened.close()


def dataset(tmp_path: Path, *changes: dict[str, Any]) -> Dataset:
    folder = tmp_path / "set" / RECORDS
    folder.mkdir(parents=True, exist_ok=True)
    for number, change in enumerate(changes):
        (folder / f"{number:06d}.json").write_text(json.dumps({"quality": {**GOOD, **change}, "task": "t"}))
    return Dataset("set", tmp_path / "set", len(changes), 100, 30, {}, ("t",), "degrees", {}, True, 0.0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"late": 30}, "30% late rows (rule: 25%)"),
        ({"gaps": {"longest_s": 1.5}}, "a gap of 1.5 s"),
        ({"stale": {"front": 0, "wrist": 40}}, "40% stale images of wrist"),
        ({"clipped": 51}, "51% clipped goals"),
        ({"bus_errors": {"follower": 8, "leader": 8}}, "16% bus errors"),
        ({"seconds": 0.1}, "only 0.1 s long"),
        ({"care": "slow"}, ""),
        ({"care": "release"}, "the arm was let go"),
    ],
)
def test_the_rules(change: dict[str, Any], why: str) -> None:
    found = Rules.of(Config.load([])).against({**GOOD, **change})
    assert (why in "; ".join(found)) and bool(found) == bool(why)


def test_rules_can_be_set_and_switched_off(tmp_path: Path) -> None:
    path = tmp_path / "zk0d.toml"
    path.write_text('[quality]\nlate = 0\nstale = 1\ncare = "slow"\n')
    rules = Rules.of(Config.load([path]))
    assert rules.against({**GOOD, "late": 99}) == ["2% stale images of front (rule: 1%)"]
    assert rules.against({**GOOD, "stale": {}, "care": "slow"}) == ["the arm was slowed"]


def test_a_report_of_an_older_recorder_or_none_is_good(tmp_path: Path, store: Store) -> None:
    assert Rules().against({"frames": {"front": 10}, "seconds": 3.0}) == [] and Rules().against({}) == []
    assert reports(tmp_path / "foreign") == {}
    broken = dataset(tmp_path, {}, {"late": 90})
    (tmp_path / "set" / RECORDS / "000000.json").write_text("{")
    assert list(reports(broken.root)) == [1]


def test_a_persons_word_wins(tmp_path: Path, store: Store) -> None:
    ours, choose = dataset(tmp_path, {}, {"late": 90}, {"care": "release"}, {}), Selection(store, Rules())
    assert choose.trained(ours, 4) == [0, 3]
    choose.set("set", out={0}, taken_in={1})
    assert choose.trained(ours, 4) == [1, 3] and choose.out(ours) == {2: "the arm was let go", 0: "excluded by you"}
    choose.set("set", out=(), taken_in={1, 2})
    assert choose.trained(ours, 4) is None
    assert choose.kept_out("other") == set() == choose.taken_in("other")
    assert Selection(store, replace(Rules(), late=0.0)).trained(ours, 4) is None
