"""The server's part: FedAvg over the nodes' models; notes when it began and when each round was merged."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

TENSOR = 4 << 20
"""Elements of a tensor at most, as in bench/_round_world.py."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config: dict[str, Any] = dict(context.run_config)
    elements = int(config["mb"] * 1e6) // 4
    count = max(1, -(-elements // TENSOR))
    side = max(1, int((elements / count) ** 0.5))
    rng = np.random.default_rng(7)
    model = ArrayRecord([rng.standard_normal((side, side), dtype=np.float32) for _ in range(count)])
    at: list[float] = []

    def note() -> None:
        at.append(time.time())
        Path(config["out"]).write_text(json.dumps(at))

    class Timed(FedAvg):
        def configure_train(self, *args: Any, **kwargs: Any) -> Any:
            if not at:
                note()
            return super().configure_train(*args, **kwargs)

        def aggregate_train(self, *args: Any, **kwargs: Any) -> Any:
            made = super().aggregate_train(*args, **kwargs)
            note()
            return made

    nodes = config["nodes"]
    strategy = Timed(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=nodes, min_evaluate_nodes=0,
                     min_available_nodes=nodes)  # fmt: skip
    while len(list(grid.get_node_ids())) < nodes:  # a round begins when all are there, not before
        time.sleep(0.1)
    strategy.start(grid=grid, initial_arrays=model, num_rounds=config["rounds"])
