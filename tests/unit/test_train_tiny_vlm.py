"""The tiny backbone's folder: the same everywhere, readable by transformers, safe to make twice at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from zk0d.train import tiny_vlm


def _content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_it_is_the_same_everywhere(tmp_path: Path) -> None:
    one, two = tiny_vlm.directory(tmp_path / "a"), tiny_vlm.directory(tmp_path / "b")
    assert one.name == two.name and _content(one) == _content(two)
    assert tiny_vlm.directory(tmp_path / "a") == one
    assert [p.name for p in (tmp_path / "a").iterdir()] == [one.name]


def test_it_can_be_made_at_the_same_time(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: tiny_vlm.directory(tmp_path), range(16)))
    assert len(folders) == 1 and len(list(tmp_path.iterdir())) == 1


def test_any_text_is_tokenized_and_comes_back(tmp_path: Path) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(tiny_vlm.directory(tmp_path))
    tokenizer = processor.tokenizer
    for text in ("pick up the red block\n", "Würfel — 立方体 🤖"):
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.encode()) and tokenizer.decode(ids) == text
    assert tokenizer.fake_image_token_id == tokenizer.convert_tokens_to_ids("<fake_token_around_image>")
    assert tokenizer.global_image_token_id == tokenizer.convert_tokens_to_ids("<global-img>")
