"""Settings: each mistake names file, key, value and what is accepted. And the pooling of statistics."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hub_cast import TOML, make_parts, stats
from hypothesis import given
from hypothesis import strategies as st

from zk0d.errors import ConfigError, RefusedError
from zk0d.hub import statistics
from zk0d.hub.chart import draw
from zk0d.hub.coherence import unheld
from zk0d.hub.config import (
    FEDERATION,
    HUB,
    Setting,
    check_name,
    load_hub,
    parse,
    parse_address,
    parse_federation,
    reference,
)

GOOD = TOML.format(nodes=3, versions=3, dtype="bfloat16", deadline_s=600)


def test_good_settings_and_defaults() -> None:
    config = parse_federation(
        GOOD + '[model.config]\nchunk_size = 4\n[evaluation]\ndatasets = ["local:/x"]\n', "f.toml"
    )
    assert config["rounds.target"] == 3 and config["training.lr"] == 1e-4 and config["evaluation.max_samples"] == 512
    model = config.table("model")
    assert model["cameras"] == {"front": [96, 96]} and model["config"] == {"chunk_size": 4} and model["policy"] == "act"
    assert config.table("training") == {"local_steps": 5, "batch_size": 8, "lr": 1e-4, "mu": 0.01}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[model", "not TOML"),
        ("[model]", "model.policy is missing"),
        ('[model]\npolicy = "gpt"', "model.policy = 'gpt'"),
        ('[model]\npolicy = 3', "model.policy = 3"),
        ('[model]\npolicy = "act"\ncolour = 1', "model.colour is not a setting"),
        ("[modle]\n", "[modle] is not a table"),
        ("model = 3", "[model] is not a table"),
        (GOOD + "[training2]\n", "[training2]"),
        (GOOD.replace("target = 3", "target = 0"), "rounds.target = 0"),
        (GOOD.replace("target = 3", "target = true"), "rounds.target = True"),
        (GOOD.replace("quorum = 1", "quorum = 4"), "rounds.quorum = 4 is above rounds.target = 3"),
        (GOOD.replace("deadline_s = 600", "deadline_s = 0"), "rounds.deadline_s = 0.0"),
        (GOOD.replace("deadline_s = 600", "deadline_s = nan"), "rounds.deadline_s = nan"),
        (GOOD + '[evaluation]\ndatasets = ["hf:a"]', "evaluation.datasets = ['hf:a']"),
        (GOOD.replace("deadline_s = 600", "deadline_s = inf"), "rounds.deadline_s = inf"),
        (GOOD.replace("deadline_s = 600", f"deadline_s = {10**400}"), "rounds.deadline_s = inf"),
        (GOOD.replace("target = 3", f"target = {10**23}"), f"rounds.target = {10**23}"),
        (GOOD.replace("versions = 3", f"versions = {2**53}"), f"rounds.versions = {2**53}"),
        (GOOD + "[merge]\nlr = inf\n", "merge.lr = inf"), (GOOD + "[merge]\ntau = inf\n", "merge.tau = inf"),
        (GOOD + "[merge]\nclip = inf\n", "merge.clip = inf"), (GOOD + "[privacy]\ndelta = 0\n", "privacy.delta = 0.0"),
        (GOOD + "[privacy]\ndelta = 1\n", "privacy.delta = 1.0"), (GOOD + f"[merge]\nlr = {'9' * 5000}\n", "not TOML"),
        (GOOD + f"[merge]\nlr = {'[' * 5000}\n", "not TOML"),
    ],
)  # fmt: skip
def test_mistakes_are_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_federation(text, "the/file.toml")
    assert said in caught.value.message and caught.value.message.startswith("the/file.toml: ")
    assert caught.value.hint or "not TOML" in said


@pytest.mark.parametrize("settings", [HUB, FEDERATION])
def test_no_number_is_without_bounds(settings: tuple[Setting, ...]) -> None:
    for setting in settings:
        if setting.kind in (int, float):
            for value in (math.inf, -math.inf, math.nan, 10**400):
                with pytest.raises(ConfigError):
                    parse(f"[{setting.key.replace('.', ']' + chr(10))} = {value}\n", [setting], "x")


def test_what_an_older_hub_took_still_loads() -> None:
    """A hub that is brought up to date starts with the settings it has: what stands for them is told."""
    bad = GOOD.replace("target = 3", f"target = {10**23}").replace("deadline_s = 600", "deadline_s = inf")
    config = parse_federation(bad + "[merge]\nlr = inf\n[privacy]\ndelta = 0\n", "f.toml", stored=True)
    assert config["rounds.target"] == 10**6 and config["rounds.deadline_s"] == 365 * 86400
    assert config["merge.lr"] == 1.0 and config["privacy.delta"] == 1e-5
    was = {"rounds.target": 10**23, "rounds.deadline_s": math.inf, "merge.lr": math.inf, "privacy.delta": 0}
    assert config.replaced == was and parse_federation(GOOD, "f.toml", stored=True).replaced == {}
    with pytest.raises(ConfigError, match=r"model.policy = 'gpt'"):  # nothing can stand for this
        parse_federation(GOOD.replace('"act"', '"gpt"'), "f.toml", stored=True)


@pytest.mark.parametrize(
    ("privacy", "told"),
    [
        ("clip_norm = inf\nnoise_multiplier = 1", "privacy.clip_norm = inf"),
        ("clip_norm = 1\nnoise_multiplier = inf", "privacy.noise_multiplier = inf"),
        (f"clip_norm = 1\nnoise_multiplier = {10**400}", f"privacy.noise_multiplier = {10**400}"),
        ("clip_norm = inf", ""), ("clip_norm = 1\nnoise_multiplier = 1", ""),
    ],
)  # fmt: skip
def test_privacy_that_an_older_hub_took_is_never_less(privacy: str, told: str) -> None:
    """It loads, or the whole hub would not start; by what no merge can hold none is made."""
    config = parse_federation(GOOD + f"[privacy]\n{privacy}\n", "f.toml", stored=True)
    assert unheld(config) == told
    assert config["privacy.noise_multiplier"] >= ("noise" in privacy) and math.isfinite(config["privacy.clip_norm"])
    if not told:
        return
    with pytest.raises(ConfigError, match=r"privacy\."):
        parse_federation(GOOD + f"[privacy]\n{privacy}\n", "f.toml")


def test_hub_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"hub\.toml is missing"):
        load_hub(tmp_path)
    (tmp_path / "hub.toml").write_text('[hub]\nlisten = "nowhere"\n')
    with pytest.raises(ConfigError, match=r"hub.listen = 'nowhere' is not accepted"):
        load_hub(tmp_path)
    (tmp_path / "hub.toml").write_text('[hub]\nlisten = "[::1]:7"\n')
    assert load_hub(tmp_path)["runtime.python"] == sys.executable


def test_addresses_and_names() -> None:
    assert parse_address("a.b:80") == ("a.b", 80) and parse_address("[::1]:80") == ("::1", 80)
    assert [parse_address(t) for t in ("", "a", "a:", ":1", "a:x", "::1:80", "a:70000")] == [None] * 7
    assert check_name("so101-pick_1") == "so101-pick_1"
    for bad in ("", "A", "-a", "a/b", "..", "a" * 64, "a\n"):
        with pytest.raises(ConfigError):
            check_name(bad)


def test_every_setting_is_documented_and_its_default_accepted() -> None:
    for settings in (HUB, FEDERATION):
        page = reference(settings)
        for setting in settings:
            assert f"`{setting.key}`" in page and setting.help
            if setting.default is not None:
                assert type(setting.default) is setting.kind and setting.allowed.test(setting.default), setting.key
    assert parse("", HUB, "x")["hub.listen"] == "0.0.0.0:7730"


# -- statistics ----------------------------------------------------------------------------------------------------

samples = st.lists(st.lists(st.floats(-180, 180), min_size=1, max_size=30), min_size=1, max_size=5)


@given(samples)
def test_pooling_is_exact(groups: list[list[float]]) -> None:
    parts = [
        {"action": {"mean": [float(np.mean(g))], "std": [float(np.std(g))], "min": [min(g)], "max": [max(g)],
                    "count": [float(len(g))]}}
        for g in groups
    ]  # fmt: skip
    whole = np.concatenate([np.array(g) for g in groups])
    merged = statistics.merge(parts)["action"]
    assert merged["count"] == [len(whole)] and merged["min"] == [whole.min()] and merged["max"] == [whole.max()]
    assert merged["mean"][0] == pytest.approx(whole.mean(), abs=2e-6)
    assert merged["std"][0] == pytest.approx(max(0.5, whole.std()), abs=2e-6)
    assert merged == statistics.merge(parts[::-1])["action"]


def spoil(key: str, value: Any) -> dict[str, Any]:
    made: dict[str, Any] = stats(0.0)
    made["action"] = {**made["action"], key: value}
    return made


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "statistics of nothing"), ({"action": stats(0)["action"]}, "needs action, observation.state"),
        ({**stats(0), "observation.images.front": {}}, "needs"), (spoil("mean", [0.0] * 5), "mean of action is not 6"),
        (spoil("std", [-1.0] * 6), "contradict"), (spoil("min", [99.0] * 6), "contradict"),
        (spoil("mean", [float("nan")] * 6), "finite"), (spoil("count", [0.0]), "contradict"),
        (spoil("count", 5), "not 1 finite"), (spoil("mean", ["x"] * 6), "finite"),
        (spoil("more", [1.0]), "are not mean"),
        (spoil("mean", [10**400] * 6), "finite"), ([], "nothing"),
    ],
)  # fmt: skip
def test_bad_statistics(tmp_path: Path, value: Any, said: str) -> None:
    with pytest.raises(RefusedError, match=said):
        statistics.check(value, make_parts(tmp_path), 10**8)


def test_good_statistics(tmp_path: Path) -> None:
    assert statistics.check(stats(3.0), make_parts(tmp_path), 100) == stats(3.0)


def test_statistics_are_of_the_declared_frames(tmp_path: Path) -> None:
    spec = make_parts(tmp_path)
    rounded = 1050, 950  # frames told as 1.1e3 together, where one dataset's 1049 is told as 1000
    assert statistics.check(stats(3.0, rounded[0]), spec, rounded[1]) == stats(3.0, rounded[0])
    with pytest.raises(RefusedError, match="are of 1000000000000 frames, the datasets have 100"):
        statistics.check(stats(3.0, 1e12), spec, 100)


# -- chart and command ---------------------------------------------------------------------------------------------


@pytest.mark.needs("matplotlib")
@pytest.mark.parametrize("count", [0, 1, 4])
def test_chart_of_any_length(tmp_path: Path, count: int) -> None:
    import matplotlib

    matplotlib.use("Agg")
    lines = [
        {"version": i, "heldout_loss": None if i == 1 else 1 / (1 + i), "bytes_up": i * 1000, "bytes_down": 0,
         "train_loss": {"node-1": {"first": 2.0, "last": 1.0}} if i else {}}
        for i in range(count)
    ]  # fmt: skip
    draw(lines, "fed", tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in draw_svg(lines, tmp_path).encode()


def draw_svg(lines: list[dict[str, Any]], folder: Path) -> str:
    draw(lines, "fed", folder / "c.svg")
    return (folder / "c.svg").read_text()


@pytest.mark.needs("matplotlib")
def test_the_chart_has_each_series_point_by_point(tmp_path: Path) -> None:
    """Held-out loss, each node's loss, staleness and bytes: as many marks or bars as there are values, at heights that
    are theirs."""
    import matplotlib

    matplotlib.use("Agg")
    held = [4.0, None, 2.0, 1.0, 1.5]
    lines = [
        {"version": i, "heldout_loss": held[i], "bytes_up": 1000 * i, "bytes_down": 3000,
         "train_loss": {n: {"first": 2.0, "last": 1.0 + i} for n in ("node-1", "node-2")[: (i + 1) // 2]},
         "staleness": dict.fromkeys(("node-1", "node-2")[:(i + 1) // 2], i - 1)}
        for i in range(5)
    ]  # fmt: skip
    root = ElementTree.fromstring(draw_svg(lines, tmp_path))
    space = "{http://www.w3.org/2000/svg}"

    def marks(name: str) -> list[tuple[float, float]]:
        found = root.findall(f".//{space}g[@id='{name}']")
        return [(float(u.get("x", "")), float(u.get("y", ""))) for g in found for u in g.iter(f"{space}use")]

    def heights(name: str) -> list[float]:
        tall = []
        for group in root.findall(f".//{space}g[@id='{name}']"):
            for path in group.iter(f"{space}path"):
                ys = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", path.get("d", ""))]
                tall.append(max(ys) - min(ys))
        return tall

    points = marks("heldout_loss")
    assert len(points) == 4 and points == sorted(points)
    ys = [y for _, y in points]  # downwards: the lowest loss is lowest on the page
    assert (ys[0] - ys[2]) / (ys[0] - ys[1]) == pytest.approx((4 - 1) / (4 - 2), rel=1e-3)
    assert len(marks("train_loss_node-1")) == 4 and len(marks("train_loss_node-2")) == 2
    assert len(marks("staleness_mean")) == 4 and len(heights("staleness_most")) == 4
    up, down = heights("bytes_up"), heights("bytes_down")
    assert len(up) == len(down) == 5 and up == pytest.approx([down[0] * i / 3 for i in range(5)], abs=1e-3)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zk0d.hub.main", *arguments], capture_output=True, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip


def test_exit_statuses_of_the_command(tmp_path: Path) -> None:
    away = run("--dir", str(tmp_path), "status")
    assert away.returncode == 3 and "there is no hub in" in away.stderr and away.stdout == ""
    assert run("--dir", str(tmp_path), "nonsense").returncode == 64
    assert run("nodes").returncode == 64
    unmade = run("--dir", str(tmp_path), "serve")
    assert unmade.returncode == 78 and "init" in unmade.stderr


def test_the_hub_imports_no_torch() -> None:
    code = (
        "import sys, zk0d.hub.serve, zk0d.hub.main;"
        " bad = {'torch', 'lerobot', 'transformers', 'safetensors', 'matplotlib'} & set(sys.modules);"
        " sys.exit(repr(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
