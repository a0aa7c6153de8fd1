"""A real zk0d and a real hub: certificates that renew themselves, a key that is lost, and one that is replaced."""

from __future__ import annotations

import time
from pathlib import Path

from daemon_process import Daemon, wait_until
from hub_cast import HubProcess

from zk0d.daemon.exchange import UPDATE_PREFIX
from zk0d.daemon.store import Store, Update
from zk0d.durable import canonical_json, digest_of
from zk0d.link.identity import NodeIdentity, verify
from zk0d.link.lifetime import Lifetime
from zk0d.model.blobs import BlobStore

SHORT = 10.0 / 86400
"""Days: due after six seconds, so that a machine may halt for three before it has expired."""


def test_a_node_looks_after_its_certificate(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path / "hub", f'python = "/bin/false"\n[certificates]\nnode_days = {SHORT}\n')
    hub.start()
    state = tmp_path / "node"
    pem = state / "keys" / "node.pem"

    def linked(daemon: Daemon) -> bool:
        link = daemon.status()["link"]
        return link is not None and link["phase"] == "connected"

    try:
        with Daemon(state) as daemon:
            assert daemon.ctl("enroll", hub.ask("invite", label="a")["token"]).code == 0
            node = daemon.status()["hub"]["node_id"]
            first = pem.read_bytes()
            wait_until(lambda: pem.read_bytes() != first, "it is renewed")
            wait_until(lambda: time.time() > Lifetime.of(first).end, "the first one has expired")
            second = pem.read_bytes()
            wait_until(lambda: pem.read_bytes() != second, "it is renewed over a link that the second one opened")
            wait_until(lambda: linked(daemon), "linked by the newest")
            assert any("renewed this node's certificate, for the same key" in e for e in daemon.events("enrol"))

            # The key is lost, with work that it signed and the hub has not got.
            daemon.terminate()
            old = NodeIdentity.load(state / "keys")
            store = Store(state / "zk0d.db")
            payload = BlobStore(state / "blobs").add_bytes(b"trained")
            statement = canonical_json({
                "federation": "gone", "task": "t", "node": node, "base_version": 0, "payload": payload, "size": 7,
                "samples": 1, "steps": 1, "loss_first": 1.0, "loss_last": 1.0,
            })  # fmt: skip
            store.add_update(Update(digest_of(statement), "t", "fed", statement, old.sign(UPDATE_PREFIX + statement),
                                    payload, 7, "waiting", "", 1.0))  # fmt: skip
            store.close()
            old.key_path.unlink()
            daemon.start()
            health = daemon.status()["health"]
            assert any("key or certificate cannot be used" in h["message"] and "reenrol" in h["hint"] for h in health)

            # By the maintainer's word it is the same node again; a second time while the old key is still there.
            marks = {old.fingerprint}
            for more in ([], ["--new-key"]):
                token = hub.ask("reenrol", node=node)["token"]
                done = daemon.ctl("enroll", token, *more)
                assert done.code == 0, done.err
                assert daemon.status()["hub"]["node_id"] == node
                wait_until(lambda: linked(daemon), "linked by the new key")
                now = NodeIdentity.load(state / "keys")
                assert now.fingerprint not in marks
                marks.add(now.fingerprint)
            assert not any("cannot be used" in h["message"] for h in daemon.status()["health"])
        store = Store.read(state / "zk0d.db")
        update = store.updates()[0]
        assert update.state == "waiting" and "no federation 'gone'" in update.reason
        verify(NodeIdentity.load(state / "keys").certificate, UPDATE_PREFIX + statement, update.signature)
        store.close()
    finally:
        hub.kill()
