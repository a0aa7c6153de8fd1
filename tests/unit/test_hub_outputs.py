"""Best version, retention, and where a held-out dataset lies."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0d.errors import WorkerError
from zk0d.hub.outputs import best, dataset_root, last_line, metrics_lines, superfluous


def test_best() -> None:
    losses = {0: 3.0, 1: 1.0, 2: None, 3: 1.0, 4: 2.0}
    assert best(losses) == 1 and best({0: None}) is None and best({}) is None


@given(st.sets(st.integers(0, 50), min_size=1), st.integers(0, 5), st.integers(0, 4), st.integers(0, 50))
def test_retention(numbers: set[int], last: int, every: int, top: int) -> None:
    gone = set(superfluous(sorted(numbers), last, every, top))
    assert max(numbers) not in gone and top not in gone and gone <= numbers
    assert not gone or last
    assert not any(every and n % every == 0 for n in gone)
    assert len(numbers - gone) >= min(last, len(numbers))


def test_datasets_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_LEROBOT_HOME", raising=False)
    with pytest.raises(WorkerError, match="hf:a/b is not in the cache") as caught:
        dataset_root("hf:a/b")
    assert "hf download a/b" in caught.value.hint
    made = tmp_path / "hub/datasets--a--b/snapshots/123"
    (made / "meta").mkdir(parents=True)
    (made / "meta/info.json").write_text("{}")
    assert dataset_root("hf:a/b") == str(made) and dataset_root("local:/x") == "/x"


def test_a_torn_last_line_of_the_metrics_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"version": 0}\n{"version": 1}\n{"vers')
    assert [line["version"] for line in metrics_lines(path)] == [0, 1]
    path.write_text("")
    assert metrics_lines(path) == []


@given(st.lists(st.integers(0, 70_000), max_size=5), st.integers(0, 80_000))
def test_the_last_whole_line_is_found_from_the_end(sizes: list[int], torn: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        lines = [chr(97 + i) * size + "\n" for i, size in enumerate(sizes)]
        path.write_text("".join(lines) + "x" * torn)
        assert last_line(path) == (lines[-1] if lines else "", sum(map(len, lines)))
