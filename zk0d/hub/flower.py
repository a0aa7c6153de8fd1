"""Worker: one merge by a strategy of the installed Flower package, by its class's name in flwr.serverapp.strategy.

For what combine.py does not have. Flower holds all models in memory, here as everywhere, and a strategy begins anew
with each version: server optimisers that keep state are [merge] optimizer. Job and result: `merge` and `main` below.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import numpy as np

from zk0d.errors import WorkerError
from zk0d.hub.master import Master
from zk0d.model.codec import Float32, encode_bfloat16, is_finite
from zk0d.model.payload import Payload, write_exchange
from zk0d.model.spec import ModelSpec
from zk0d.worker import Message, WorkerChannel, run_worker


def _flower() -> Any:
    """Flower's strategies. Raises WorkerError where it is not installed."""
    try:
        from flwr.serverapp import strategy as flower
    except ImportError as error:
        raise WorkerError(
            "flwr is not installed, so its strategies cannot run", "install zk0d's `flower` packages"
        ) from error
    return flower


def look(name: str) -> dict[str, str]:
    """Whether this Python can run the strategy: {} when it can, else `missing` (Flower itself) or `problem`, `hint`."""
    what = "missing"
    try:
        _flower()
        what = "problem"
        strategy(name, 1)
    except WorkerError as error:
        return {what: error.message, "hint": error.hint}
    return {}


def strategy(name: str, nodes: int) -> Any:
    """An instance of the strategy for `nodes` replies. WorkerError: Flower is missing, or has no such strategy."""
    flower = _flower()
    found: Any = getattr(flower, name, None)
    if not isinstance(found, type) or not issubclass(found, flower.Strategy):
        known = sorted(
            n for n in dir(flower) if isinstance(getattr(flower, n), type) and n not in ("Result", "Strategy")
        )
        raise WorkerError(f"Flower has no strategy {name!r}", f"known: {', '.join(known)}")
    try:
        made: Any = found
        return made(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    except TypeError as error:
        raise WorkerError(
            f"Flower's {name} cannot be made without arguments: {error}", "choose another strategy"
        ) from error


def merge(
    name: str, base: dict[str, Float32], models: list[dict[str, Float32]], weights: list[float], version: int
) -> dict[str, Any]:
    """Run the strategy on the nodes' whole models, in the given order → the new model. Raises WorkerError."""
    made = strategy(name, len(models))
    from flwr.app import ArrayRecord, Message, Metadata, MetricRecord, RecordDict

    if hasattr(made, "current_arrays"):  # as configure_train would have left it
        made.current_arrays = ArrayRecord({k: _array(v) for k, v in base.items()})
    replies, made_of = [], cast(Any, Message)  # Flower declares no overload with metadata
    for number, (model, weight) in enumerate(zip(models, weights, strict=True), 1):
        arrays = ArrayRecord({k: _array(v) for k, v in model.items()})
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": weight})})
        sent = Metadata(run_id=1, message_id=str(number), src_node_id=number,
                        dst_node_id=1, reply_to_message_id="", group_id="",
                        created_at=0.0, ttl=3600.0, message_type="train")  # fmt: skip
        replies.append(made_of(content=content, metadata=sent))
    try:
        result, _ = made.aggregate_train(version, replies)
    except Exception as error:
        raise WorkerError(
            f"Flower's {name} failed: {type(error).__name__}: {error}", "choose another strategy"
        ) from error
    if result is None or set(result) != set(base):
        raise WorkerError(f"Flower's {name} gave no model", "it may not take part in federations of this kind")
    return {k: np.asarray(a.numpy()) for k, a in result.items()}


def _array(values: Float32) -> Any:
    from flwr.app import Array

    return Array(values)


def main(job: Message, channel: WorkerChannel) -> Message:
    """Job {"strategy", "version", "spec", "master", "published", "updates": [[path, weight, scale]], "out_master",
    "out_published"} → {"master", "published", "size"}: digests, and the published file's bytes.

    Job {"strategy", "only_look": true} → what `look` says.
    """
    if job.get("only_look"):
        channel.emit("ready")
        return dict(look(str(job["strategy"])))
    spec = ModelSpec.load(Path(job["spec"]))
    channel.emit("ready")
    with Master(Path(job["master"]), Path(job["published"])) as master_file:
        base = {t.name: master_file.tensor(t.name).copy() for t in spec.exchange}
    models = []
    for path, _, scale in job["updates"]:
        with Payload.open(Path(path)) as payload:
            payload.check_against(spec)
            models.append({n: base[n] + payload.float32(n) * np.float32(scale) for n in base})
    new = merge(str(job["strategy"]), base, models, [float(w) for _, w, _ in job["updates"]], int(job["version"]))
    for name, values in new.items():
        if values.shape != base[name].shape or not is_finite(encode_bfloat16(values.astype(np.float32))):
            return {"spoilt": name}
    kept = {n: v.astype(np.float32) for n, v in new.items()}
    master = write_exchange(Path(job["out_master"]), spec, kept.__getitem__, "float32")
    published = write_exchange(Path(job["out_published"]), spec, kept.__getitem__)
    return {"master": master.digest, "published": published.digest, "size": published.size}


if __name__ == "__main__":
    sys.exit(run_worker(main))
