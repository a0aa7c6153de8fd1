"""A very small vision-language model in SmolVLM2's form, made from code, so that SmolVLA runs with no download.

It holds configuration, tokenizer and processor but no weights: those are random and travel in `base.safetensors`.
Not a useful language model: its text is bytes, its features random projections that the action expert learns to read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

IMAGE_SIZE = 96
"""Height and width in pixels that images are fitted into."""
PATCH = 16
SCALE = 2
IMAGE_TOKENS = (IMAGE_SIZE // PATCH // SCALE) ** 2
HIDDEN = 64
LAYERS = 4

_PAD, _BOS, _EOS, _UNK = "<pad>", "<s>", "</s>", "<unk>"
_IMAGE, _FAKE, _GLOBAL, _END = "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"
_SPECIAL = (_PAD, _BOS, _EOS, _UNK, _IMAGE, _FAKE, _GLOBAL, _END)


def directory(cache: Path) -> Path:
    """The model's folder inside `cache`, written on first use; the name carries the digest of its files.

    The same code writes the same bytes on every machine. Safe against other processes doing it at the same time.
    """
    files = _files()
    digest = hashlib.sha256()
    for name, data in sorted(files.items()):
        digest.update(name.encode() + b"\0" + data + b"\0")
    target = cache / f"tiny-vlm-{digest.hexdigest()[:16]}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=cache))
    part.chmod(0o755)
    for name, data in files.items():
        (part / name).write_bytes(data)
    try:
        part.rename(target)
    except OSError:  # another process was first
        shutil.rmtree(part, ignore_errors=True)
        if not target.is_dir():
            raise
    return target


def _bytes_to_unicode() -> list[str]:
    """GPT-2's printable stand-in for each byte value, which byte-level tokenizers use (Radford et al., 2019)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    extra = iter(range(256, 512))
    return [chr(b) if b in shown else chr(next(extra)) for b in range(256)]


def _tokenizer() -> dict[str, Any]:
    vocabulary = {token: i for i, token in enumerate(_SPECIAL)}
    for i, symbol in enumerate(_bytes_to_unicode()):
        vocabulary[symbol] = len(_SPECIAL) + i
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": i, "content": token, **plain} for i, token in enumerate(_SPECIAL)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }


def _model() -> dict[str, Any]:
    # The usual 0.02 is made for models a thousand wide; at 64 it leaves frozen features too faint to learn from.
    spread = HIDDEN**-0.5
    text = {
        "model_type": "llama",
        "vocab_size": len(_SPECIAL) + 256,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": HIDDEN // 4,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "initializer_range": spread,
        "pad_token_id": _SPECIAL.index(_PAD),
        "bos_token_id": _SPECIAL.index(_BOS),
        "eos_token_id": _SPECIAL.index(_EOS),
        "tie_word_embeddings": False,
    }
    vision = {
        "model_type": "smolvlm_vision",
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
        "initializer_range": spread,
    }
    return {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "model_type": "smolvlm",
        "image_token_id": _SPECIAL.index(_IMAGE),
        "pad_token_id": _SPECIAL.index(_PAD),
        "scale_factor": SCALE,
        "tie_word_embeddings": False,
        "text_config": text,
        "vision_config": vision,
    }


def _tokenizer_config() -> dict[str, Any]:
    # In transformers 5 the extra tokens of a processor go in through extra_special_tokens, by name.
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 2048,
        "pad_token": _PAD,
        "bos_token": _BOS,
        "eos_token": _EOS,
        "unk_token": _UNK,
        "extra_special_tokens": {
            "image_token": _IMAGE,
            "fake_image_token": _FAKE,
            "global_image_token": _GLOBAL,
            "end_of_utterance_token": _END,
        },
    }


def _files() -> dict[str, bytes]:
    image_processor = {
        "image_processor_type": "SmolVLMImageProcessor",
        "do_image_splitting": False,
        "size": {"longest_edge": IMAGE_SIZE},
        "max_image_size": {"longest_edge": IMAGE_SIZE},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    video_processor = {
        "video_processor_type": "SmolVLMVideoProcessor",
        "size": {"longest_edge": IMAGE_SIZE},
        "max_image_size": {"longest_edge": IMAGE_SIZE},
        "video_sampling": {"fps": 1, "max_frames": 8, "video_size": {"longest_edge": IMAGE_SIZE}},
    }
    processor = {"processor_class": "SmolVLMProcessor", "image_seq_len": IMAGE_TOKENS}
    values = {
        "config.json": _model(),
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": _tokenizer_config(),
        "preprocessor_config.json": image_processor,
        "video_preprocessor_config.json": video_processor,
        "processor_config.json": processor,
    }
    return {
        name: (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
        for name, value in values.items()
    }
