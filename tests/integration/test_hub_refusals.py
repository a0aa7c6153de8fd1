"""What the hub refuses, at whatever moment: its node is told with a signature, may ask again, and nothing stays on disk."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from daemon_process import STOP_S
from hub_cast import TOML, HubProcess, TestNode, cast, make_parts, until

from zk0d.durable import digest_of
from zk0d.errors import RefusedError
from zk0d.model.spec import ModelSpec


async def give(node: TestNode, spec: ModelSpec, times: float) -> dict[str, Any]:
    task = await node.task("fed", 0)
    offer = node.prepare(spec, task, {n: v * np.float32(times) for n, v in node.delta(spec, task).items()})
    await node.give(offer)
    return offer


async def again(node: TestNode, like: dict[str, Any]) -> str:
    """Why the payload of an update is not taken for another task."""
    task = await node.task("fed", 0)
    statement = {**json.loads(like["statement"]), "task": task["id"], "node": node.identity.node_id}
    return await node.refused(node.sign(statement))


async def told(node: TestNode, offer: dict[str, Any], why: str) -> None:
    """The node hears of a refusal by itself, and gets the same when it asks."""
    update = digest_of(offer["statement"])
    await until(lambda: update in node.refusals, f"{node.name} is told")
    assert why in node.refusals[update]["reason"]
    reply = await node.request("receipt.get", {"update": update})
    assert reply["state"] == "refused"
    assert node.refusals[update] == node.refusal(reply["refusal"], reply["refusal_signature"])
    with pytest.raises(RefusedError, match=why) as error:
        await node.request("update.offer", offer)
    assert error.value.signed == (reply["refusal"], reply["refusal_signature"])


def test_a_refusal_is_never_silent_and_leaves_nothing(hub: HubProcess, tmp_path: Path) -> None:
    spec = make_parts(tmp_path / "parts", 2_000_000)
    toml = TOML.format(nodes=4, versions=0, dtype="bfloat16", deadline_s=600).replace("target = 4", "target = 2")
    toml += "[merge]\nlr = 16.0\n"
    hub.ask("federation_create", name="fed", toml=toml, parts=str(tmp_path / "parts"))
    blobs = hub.folder / "blobs"

    def parts(count: int) -> bool:
        return len(list((blobs / "partial").glob("*.part"))) == count

    def gone(offer: dict[str, Any]) -> bool:
        name = json.loads(offer["statement"])["payload"].removeprefix("blob:")
        return not list(blobs.rglob(f"{name}*"))

    async def play() -> None:
        nodes = await cast(hub, tmp_path, 4, join="fed")
        huge, good, slow, slower = nodes
        try:
            # Two admitted updates that cannot be merged together: the larger one goes, to quarantine.
            kept = await give(good, spec, 1.0)
            spoilt = await give(huge, spec, 3e38)
            await told(huge, spoilt, "it could not be merged")
            assert [json.loads(p.read_text())["node"] for p in (hub.folder / "quarantine").glob("*.json")] == [
                huge.identity.node_id]  # fmt: skip
            await until(lambda: gone(spoilt), "its payload is deleted")
            # What another node has given is not credited to one that knows its name.
            assert "given before" in await again(huge, kept)
            # Revoked, or finished, in the middle of a transfer.
            offers = []
            for node in (slow, slower):
                assert node.link is not None
                node.link.set_max_upload(0.3e6)
                task = await node.task("fed", 0)
                offers.append(node.prepare(spec, task, node.delta(spec, task)))
                assert (await node.request("update.offer", offers[-1]))["state"] == "receiving"
            await until(lambda: parts(2), "both arrive")
            await asyncio.to_thread(lambda: hub.ask("revoke", node=slow.identity.node_id))
            await until(lambda: parts(1) and gone(offers[0]), "the revoked node's parts are deleted")
            await asyncio.to_thread(lambda: hub.ask("federation_finish", name="fed"))
            await told(good, kept, "the federation has finished")
            await told(slower, offers[1], "the federation has finished")
            await until(lambda: parts(0) and gone(kept), "nothing is left")
        finally:
            for node in nodes:
                await node.close()

    asyncio.run(play())
    assert hub.stop() < STOP_S
    (blobs / "partial" / f"{'ab' * 32}.part").write_bytes(b"of an offer that nobody remembers")
    hub.start()
    assert parts(0)
    assert hub.stop() < STOP_S
