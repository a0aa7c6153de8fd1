"""A federation's settings on a live hub: what an older hub took, Flower's strategies, and the file that shows them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hub_cast import TOML, HubProcess, make_parts

from zk0d.errors import ConfigError, UsageError


def test_a_hub_starts_with_settings_that_are_not_accepted_any_more(hub: HubProcess, tmp_path: Path) -> None:
    make_parts(tmp_path / "parts", 1000)
    hub.create("fed", tmp_path / "parts", nodes=2)
    hub.stop()
    old = (
        TOML.format(nodes=2, versions=0, dtype="bfloat16", deadline_s="inf") + '[merge]\nlr = inf\nstrategy = "krum"\n'
    )
    with sqlite3.connect(hub.folder / "hub.db") as db:
        db.execute("UPDATE federations SET config = ?", (old,))
    db.close()
    hub.start()
    told = hub.ask("status")["health"]
    assert (
        "federation fed: merge.lr = inf is not accepted any more, 1.0 holds: `zk0-hub federation set` another" in told
    )
    assert any("rounds.deadline_s = inf" in line and "31536000.0 holds" in line for line in told)
    assert any("merge.strategy = 'krum' with merge.byzantine = 1 withstands nobody" in line for line in told)
    hub.ask("federation_set", name="fed", toml=TOML.format(nodes=2, versions=0, dtype="bfloat16", deadline_s=60))
    assert hub.ask("status")["health"] == []


def test_a_held_out_dataset_that_is_not_there_is_no_setting(hub: HubProcess, tmp_path: Path) -> None:
    make_parts(tmp_path / "parts", 1000)
    hub.create("fed", tmp_path / "parts", nodes=2)
    gone = tmp_path / "gone"
    (gone / "meta").mkdir(parents=True)
    (gone / "meta/info.json").write_text("{}")
    good = TOML.format(nodes=2, versions=0, dtype="bfloat16", deadline_s=60)
    toml = f'{good}[evaluation]\ndatasets = ["local:{gone}"]\n'
    with pytest.raises(ConfigError, match=r"new\.toml: held-out dataset typo: /nowhere/typo is no LeRobot dataset"):
        hub.ask("federation_set", name="fed", toml=toml.replace(str(gone), "/nowhere/typo"), where="new.toml")
    hub.ask("federation_set", name="fed", toml=toml)
    (gone / "meta/info.json").unlink()
    hub.ask("federation_set", name="fed", toml=toml.replace("= 60", "= 70"))  # others can be set nonetheless


def test_the_file_says_what_holds(hub: HubProcess, tmp_path: Path) -> None:
    make_parts(tmp_path / "parts", 1000)
    hub.create("fed", tmp_path / "parts", nodes=2)
    shown = hub.folder / "federations/fed/federation.toml"
    assert "deadline_s = 600" in shown.read_text()
    hub.ask("federation_set", name="fed", toml=TOML.format(nodes=2, versions=0, dtype="bfloat16", deadline_s=60))
    assert "deadline_s = 60\n" in shown.read_text()
    shown.unlink()
    hub.stop()
    hub.start()
    assert "deadline_s = 60\n" in shown.read_text()


def test_where_a_finished_federations_versions_go_can_still_be_set(hub: HubProcess, tmp_path: Path) -> None:
    make_parts(tmp_path / "parts", 1000)
    hub.create("fed", tmp_path / "parts", nodes=2)
    hub.stop()
    with sqlite3.connect(hub.folder / "hub.db") as db:
        db.execute("UPDATE federations SET phase = 'finished'")
    db.close()
    hub.start()
    toml = TOML.format(nodes=2, versions=0, dtype="bfloat16", deadline_s=600)
    told = hub.ask("federation_set", name="fed", toml=toml + '[publish]\nrepo = "us/cubes"\n')
    assert told["at_once"] == ["publish.repo"] and not told["settings_waiting"]
    with pytest.raises(UsageError, match="fed is finished") as refused:
        hub.ask("federation_set", name="fed", toml=toml.replace("600", "700"))
    assert refused.value.hint == "only its [evaluation] and [publish] can still be changed"
