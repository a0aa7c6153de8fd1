"""A node's part: it trains nothing and gives back what it got plus a constant."""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    index = int(context.node_config["index"])
    arrays = [a + np.float32(1e-3 * (index + 1)) for a in message.content["arrays"].to_numpy_ndarrays()]
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 100 + index})})
    return Message(content=content, reply_to=message)
