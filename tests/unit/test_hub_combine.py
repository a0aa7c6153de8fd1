"""The merge's arithmetic against plain numpy written anew, over random updates; the same bytes on any number of cores."""

from __future__ import annotations

import statistics
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hub_cast import make_parts
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from zk0d.errors import ConfigError
from zk0d.hub import aggregate, blocks, combine, recipe
from zk0d.hub.coherence import weakness
from zk0d.hub.config import parse_federation
from zk0d.hub.master import Master
from zk0d.hub.recipe import Recipe
from zk0d.hub.rounds import Share
from zk0d.model.payload import Payload, write_exchange
from zk0d.model.spec import ModelSpec

Rows = NDArray[np.float64]
SIZES = st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**32 - 1))


def rows_of(sizes: tuple[int, int, int]) -> tuple[Rows, Rows]:
    rng = np.random.default_rng(sizes[2])
    rows, weights = rng.standard_normal(sizes[:2]), rng.random(sizes[0]) + 0.01
    return rows, weights / weights.sum()


@given(SIZES, st.floats(0, 0.49))
def test_mean_median_trimmed(sizes: tuple[int, int, int], trim: float) -> None:
    rows, weights = rows_of(sizes)
    np.testing.assert_allclose(combine.combine(Recipe(), rows, weights), weights @ rows, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(combine.combine(Recipe("median"), rows, weights), np.median(rows, axis=0))
    cut = min(max(int(trim * len(rows)), int(trim > 0)), (len(rows) - 1) // 2)
    expected = [sorted(column)[cut : len(rows) - cut] for column in rows.T]
    found = combine.combine(Recipe("trimmed_mean", trim), rows, weights)
    np.testing.assert_allclose(found, [statistics.fmean(c) for c in expected], rtol=1e-9, atol=1e-12)


@given(SIZES, st.integers(0, 3))
def test_krum(sizes: tuple[int, int, int], byzantine: int) -> None:
    rows, weights = rows_of(sizes)
    n = len(rows)
    distances = np.array([[np.sum((a - b) ** 2) for b in rows] for a in rows])
    near = max(1, n - byzantine - 2)
    scores = [sum(sorted(distances[i, j] for j in range(n) if j != i)[:near]) for i in range(n)]
    order = sorted(range(n), key=lambda i: (scores[i], i))
    one = combine.krum_weights(Recipe("krum", byzantine=byzantine), distances, weights)
    assert [i for i in range(n) if one[i]] == order[:1] and one.sum() == pytest.approx(1)
    many = combine.krum_weights(Recipe("multi_krum", byzantine=byzantine), distances, weights)
    assert {i for i in range(n) if many[i]} == set(order[:near]) and many.sum() == pytest.approx(1)


@given(st.integers(0, 1000), st.sampled_from(["fedavgm", "fedadam", "fedyogi"]))
def test_optimisers_over_rounds(seed: int, name: str) -> None:
    rng = np.random.default_rng(seed)
    how = Recipe(optimizer=name, lr=0.1)
    moments = [combine.begin(how, i, 5) for i in range(how.moments)]
    m, v = np.zeros(5), np.full(5, how.tau**2)
    for _ in range(4):
        delta = rng.standard_normal(5)
        added, moments = combine.step(how, delta, moments)
        if name == "fedavgm":
            m = 0.9 * m + delta
            expected = 0.1 * m
        else:
            m = 0.9 * m + 0.1 * delta
            v = 0.99 * v + 0.01 * delta**2 if name == "fedadam" else v - 0.01 * delta**2 * np.sign(v - delta**2)
            expected = 0.1 * m / (np.sqrt(v) + 1e-3)
        np.testing.assert_allclose(added, expected, rtol=1e-9)


def test_clipping_against_the_running_median_and_under_privacy() -> None:
    shares = tuple(Share(f"u{i}", f"n{i}", 0, w) for i, w in enumerate((0.5, 0.25, 0.25)))
    made = recipe.scaled(Recipe(), shares, [1.0, 8.0, 0.0], [2.0, 2.0, 2.0], 1.5)
    assert [s.scale for s in made] == [1.0, 3.0 / 8.0, 1.0] and [s.weight for s in made] == [0.5, 0.25, 0.25]
    private = recipe.scaled(Recipe(clip=0.5, noise=1.0, seed="00" * 32), shares, [1.0, 8.0, 0.1], [], 0)
    assert [s.scale for s in private] == [0.5, 0.0625, 1.0] and {s.weight for s in private} == {1 / 3}


def files(folder: Path, count: int) -> tuple[ModelSpec, list[tuple[Path, float]]]:
    spec = make_parts(folder / "p", elements=700_000)
    aggregate.first_master(spec, folder / "p/exchange.safetensors", folder / "p/base.safetensors", folder / "m")
    rng, paths = np.random.default_rng(1), []
    for i in range(count):
        write_exchange(folder / f"u{i}", spec, lambda n: rng.standard_normal(shape[n], dtype=np.float32) * 0.01
                       if (shape := {t.name: t.shape for t in spec.exchange}) else None)  # type: ignore[arg-type,return-value]  # fmt: skip
        paths.append((folder / f"u{i}", 1 / count))
    return spec, paths


@pytest.mark.parametrize("how", [
    Recipe("median"), Recipe("trimmed_mean", 0.25), Recipe("krum"), Recipe("multi_krum"), Recipe(optimizer="fedyogi"),
    Recipe(optimizer="fedavgm"), Recipe(clip=1.0, noise=0.5, seed="ab" * 32),
], ids=lambda h: f"{h.strategy}-{h.optimizer}-{h.noise}")  # fmt: skip
def test_files_give_what_numpy_gives_and_the_same_on_one_core(
    tmp_path: Path, how: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, paths = files(tmp_path, 5)
    scales = [1.0, 0.5, 1.0, 1.0, 0.25]

    def run(tag: str) -> aggregate.Merged:
        out = [tmp_path / f"{tag}{i}" for i in range(how.moments)]
        return aggregate.merge(spec, (tmp_path / "m", tmp_path / "p/exchange.safetensors"), paths, tmp_path / f"{tag}m", tmp_path / f"{tag}p",
                               recipe=how, scales=scales, out_moments=out)  # fmt: skip

    many = run("a")
    monkeypatch.setattr(aggregate, "CORES", 1)
    assert run("b") == many and len(many.moments) == how.moments
    name = "head.weight"
    with Payload.open(tmp_path / "m") as old, Master(tmp_path / "am", tmp_path / "ap") as new:
        moved = new.tensor(name).astype(np.float64) - old.float32(name)
    deltas = []
    for (path, _), scale in zip(paths, scales, strict=True):
        with Payload.open(path) as payload:
            deltas.append(payload.float32(name).astype(np.float64) * scale)
    stack = np.stack(deltas)
    if how.seed:
        assert abs(float((moved - stack.mean(axis=0)).std()) / (0.5 / 5) - 1) < 0.01
        assert run("c") == many and replace(how, seed="cd" * 32) != how
    elif how.strategy == "median":
        np.testing.assert_allclose(moved, np.median(stack, axis=0), atol=1e-6)
    elif how.strategy == "krum":
        assert min(float(np.abs(moved - d).max()) for d in deltas) < 1e-6


def test_privacy_that_would_not_hold_is_refused() -> None:
    good = '[model]\npolicy = "act"\n[privacy]\nnoise_multiplier = 1.0\n'
    with pytest.raises(ConfigError, match=r"f.toml: privacy.clip_norm = 0"):
        parse_federation(good, "f.toml")
    with pytest.raises(ConfigError, match=r"merge.strategy = 'median'"):
        parse_federation(good + 'clip_norm = 1.0\n[merge]\nstrategy = "median"\n', "f.toml")
    config = parse_federation(good + "clip_norm = 1.0\n", "f.toml")
    how = recipe.from_config(config, "11" * 32)
    assert how.noise == 1.0 and how.told()["seed"] != how.seed and len(how.told()["seed"]) == 64


def test_memory_of_a_median_does_not_grow_with_the_nodes() -> None:
    for count in (1, 8, 64, 1000, 10_000):
        size = blocks.width(count)
        assert size >= 256 and (size == 256 or size * count * 8 <= 8 << 20)
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal(70_000, dtype=np.float32) for _ in range(40)]
    work = blocks.Work(Recipe("median"), np.full(40, 1 / 40), np.ones(40), "float32")
    slot, base = blocks.Slot("float32", 0), np.zeros(70_000, np.float32)
    tracemalloc.start()
    slot.fill(work, 0, 0, base, rows, [])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(slot.outputs[0][:70_000], np.median(rows, axis=0), rtol=1e-6)
    assert peak < 40 * 70_000 * 8, peak  # less than all rows side by side


def test_a_trimmed_mean_of_three_is_moved_by_no_one() -> None:
    rows = np.array([[1.0], [2.0], [1e9]])
    for trim in (Recipe().trim, 1e-9):
        assert combine.combine(Recipe("trimmed_mean", trim), rows, np.full(3, 1 / 3)).tolist() == [2.0]


@pytest.mark.parametrize(
    ("quorum", "merge", "accepted"),
    [
        (2, 'strategy = "median"', "rounds.quorum of at least 3"),
        (2, 'strategy = "trimmed_mean"', "rounds.quorum of at least 3"),
        (3, 'strategy = "trimmed_mean"\ntrim = 0', "above 0, below 0.5"),
        (5, 'strategy = "krum"\nbyzantine = 2', "rounds.quorum of at least 7, and rounds.target no smaller; or"
         " merge.byzantine of at most 1"),
        (3, 'strategy = "multi_krum"\nbyzantine = 5', "rounds.quorum of at least 13, and rounds.target no smaller"),
        (4, 'strategy = "krum"', "rounds.quorum of at least 5"),
        (3, 'strategy = "median"', ""), (3, 'strategy = "trimmed_mean"', ""), (5, 'strategy = "krum"', ""),
        (7, 'strategy = "multi_krum"\nbyzantine = 2', ""), (1, 'strategy = "mean"', ""),
        (1, 'strategy = "flower:FedMedian"', ""),
    ],
)  # fmt: skip
def test_a_merge_that_withstands_nobody_is_refused(quorum: int, merge: str, accepted: str) -> None:
    """With as few updates as a merge can have; but a hub that took it once starts with it, and says so."""
    toml = f'[model]\npolicy = "act"\n[rounds]\ntarget = 20\nquorum = {quorum}\n[merge]\n{merge}\n'
    if accepted:
        with pytest.raises(ConfigError, match=r"f.toml: merge\.") as found:
            parse_federation(toml, "f.toml")
        assert found.value.hint.startswith(f"accepted: {accepted}")
    weak = weakness(parse_federation(toml, "f.toml", stored=True))
    assert (weak is not None) == bool(accepted)
