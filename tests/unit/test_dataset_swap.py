"""An edited dataset takes the place of the former one: words on episodes go with it, and nobody records meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from zk0d import durable
from zk0d.daemon import dataset_swap
from zk0d.daemon.dataset_swap import held, settle, swap
from zk0d.daemon.quality import Rules, Selection
from zk0d.daemon.store import Store
from zk0d.errors import DatasetError


class Killed(BaseException):
    """Where the daemon is killed."""


@pytest.mark.parametrize("when", ["before", "after", "never"])
def test_words_are_renumbered_with_the_swap_and_never_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    root, fresh = tmp_path / "cups", tmp_path / "cups.new-1"
    root.mkdir()
    fresh.mkdir()
    (root / "old").touch()
    (fresh / "new").touch()
    store = Store(tmp_path / "zk0d.db")
    choose = Selection(store, Rules())
    choose.set("cups", {1, 4}, {3})

    real = durable.exchange

    def exchange(one: Path, other: Path) -> None:
        if when == "before":
            raise Killed
        real(one, other)
        if when == "after":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(dataset_swap.durable, "exchange", exchange)
        try:
            before = swap(store, choose, "cups", root, fresh, [0, 1])
            assert (before / "old").exists()
        except Killed:
            pass
    store.close()
    store = Store(tmp_path / "zk0d.db")  # the next daemon
    choose = Selection(store, Rules())
    settle(store, choose)
    swapped = (root / "new").exists()
    assert swapped == (when != "before")
    assert (choose.kept_out("cups"), choose.taken_in("cups")) == (({2}, {1}) if swapped else ({1, 4}, {3}))
    settle(store, choose)  # once is enough
    assert choose.kept_out("cups") == ({2} if swapped else {1, 4})
    store.close()


def test_one_works_on_a_dataset_or_records_into_it(tmp_path: Path) -> None:
    pytest.importorskip("lerobot")
    from robot.dataset import RecordedDataset
    from robot.episodes import RecordingSpec

    root = tmp_path / "cups"
    spec = RecordingSpec(30, ("a.pos",), {}, "so_follower", "degrees")
    with RecordedDataset(root, spec):
        for alone in (True, False):
            with pytest.raises(DatasetError, match="is in use"), held([root], alone=alone):
                pass
    with held([root]), held([root]):  # two copies at a time are no trouble
        with pytest.raises(DatasetError, match="is in use"), held([root], alone=True):
            pass
        with pytest.raises(DatasetError, match="worked on"):
            RecordedDataset(root, spec)
    with held([tmp_path / "nowhere/that/is"], alone=True), RecordedDataset(root, spec):
        pass
