"""What has to be set before torch, transformers or lerobot are imported in a training worker.

Not for settings of the training itself. Call `prepare` first; import the heavy libraries after it, inside functions.
"""

from __future__ import annotations

import os
from pathlib import Path


def prepare(cache: Path, threads: int = 1) -> None:
    """Keep the libraries off the network, inside `cache` and on `threads` CPU threads.

    One thread is the default: a node trains beside its owner, and on CPU the order of sums (so the result's last bits)
    depends on the number of threads.
    """
    cache.mkdir(parents=True, exist_ok=True)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_DATASETS_CACHE"] = str(cache / "hf-datasets")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["MKL_NUM_THREADS"] = str(threads)
    # cuBLAS needs this before its first call to give the same bits twice.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
