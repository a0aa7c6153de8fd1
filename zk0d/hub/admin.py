"""What the zk0-hub command asks a running hub over DIR/admin.sock: one method per operation.

The socket's mode (0600) is the right to use it. Results are JSON values; how they look is main.py's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

from zk0d import __version__
from zk0d.arguments import Whole
from zk0d.control import ControlConnection
from zk0d.errors import UsageError
from zk0d.hub import founding, privacy, quarantine, stewardship
from zk0d.hub.coherence import PRIVACY, unheld, weakness
from zk0d.hub.federation import FederationRunner
from zk0d.hub.invitations import clean, ident, ident_of
from zk0d.hub.receipts import timestamp
from zk0d.hub.service import Hub
from zk0d.hub.store import Row
from zk0d.link.identity import phrase
from zk0d.link.lifetime import Lifetime

SCHEMA_VERSION = 1


READS = frozenset({"status", "nodes", "federation_list", "federation_show", "versions", "audit", "invitation_list",
                   "quarantine_list", "quarantine_show"})  # fmt: skip
"""Operations that change nothing. Every other one leaves a line of `admin:USER` in the audit; a test calls them all."""


class Admin:
    """Handler of the admin socket."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._operations = {
            "status": self.status,
            "invite": self.invite,
            "invitation_list": self.invitation_list,
            "invitation_cancel": self.invitation_cancel,
            "nodes": self.nodes,
            "approve": self.approve,
            "reenrol": self.reenrol,
            "refuse": self.refuse,
            "revoke": self.revoke,
            "federation_create": self.federation_create,
            "federation_list": self.federation_list,
            "federation_show": self.federation_show,
            "federation_finish": self.federation_finish,
            "federation_remove": self.federation_remove,
            "federation_freeze": self.federation_hold,
            "federation_thaw": self.federation_hold,
            "federation_drain": self.federation_hold,
            "federation_drop": self.federation_drop,
            "federation_rollback": self.federation_rollback,
            "federation_set": self.federation_set,
            "versions": self.versions,
            "evaluate": self.evaluate,
            "push": self.push,
            "audit": self.audit,
            "quarantine_list": self.quarantine_list,
            "quarantine_show": self.quarantine_show,
            "quarantine_drop": self.quarantine_drop,
        }

    async def __call__(self, request: dict[str, Any], connection: ControlConnection) -> Any:
        operation = self._operations.get(str(request["op"]))
        if operation is None:
            raise UsageError(f"unknown operation {str(request['op'])[:60]!r}", "is zk0-hub as new as the hub?")
        try:
            return await operation(request, connection)
        except KeyError as error:
            if str(error).strip("'") in request:
                raise
            raise UsageError(f"{request['op']} needs {error}") from None

    async def audit(self, request: dict[str, Any], connection: ControlConnection) -> list[dict[str, Any]]:
        """The newest `count` acts, oldest first; with `all` also what nodes and the hub itself did."""
        count, everyone = Whole(1).of(request.get("count", 50), "count"), bool(request.get("all"))
        whose = "" if everyone else "WHERE substr(actor, 1, 6) = 'admin:'"  # as its index says it
        rows = self._hub.store.all(f"SELECT * FROM audit {whose} ORDER BY id DESC LIMIT ?", count)
        return [
            {"id": r["id"], "at": timestamp(r["at"]), "actor": r["actor"], "action": r["action"],
             "subject": r["subject"], "detail": json.loads(r["detail"])}
            for r in reversed(rows)
        ]  # fmt: skip

    async def quarantine_list(self, request: dict[str, Any], connection: ControlConnection) -> list[dict[str, Any]]:
        return quarantine.entries(self._hub.directory / "quarantine")

    async def quarantine_show(self, request: dict[str, Any], connection: ControlConnection) -> dict[str, Any]:
        return quarantine.show(self._hub.directory / "quarantine", str(request["update"]))

    async def quarantine_drop(self, request: dict[str, Any], connection: ControlConnection) -> dict[str, Any]:
        dropped = quarantine.drop(self._hub.directory / "quarantine", str(request["update"]))
        with self._hub.store.write() as db:
            self._hub.store.audit(db, _actor(connection), "quarantine.drop", dropped["update"])
        return dropped

    async def status(self, request: dict[str, Any], connection: ControlConnection) -> dict[str, Any]:
        """Everything at a glance; `health` is empty when all is good."""
        hub, links = self._hub, self._hub.link.nodes()
        federations = [self._federation(f) for f in hub.federations.values()]
        pending = len(hub.registry.nodes("pending"))
        return {
            "schema_version": SCHEMA_VERSION,
            "hub": hub.config["hub.name"],
            "software": f"zk0-hub/{__version__}",
            "state": "serving",
            "since": timestamp(hub.started_at),
            "listen": hub.config["hub.listen"],
            "port": hub.link.port,
            "ca_fingerprint": hub.authority.fingerprint,
            "nodes": {
                "linked": len(links),
                "approved": len(hub.registry.nodes("approved")),
                "pending": pending,
            },
            "links": [
                {"node": n, "since": timestamp(i.since), "bytes_up": i.bytes_up, "bytes_down": i.bytes_down}
                for n, i in sorted(links.items())
            ],
            "transfers": [
                {"node": node, **progress.row()}
                for node, moving in sorted(hub.link.transfers().items())
                for progress in moving
            ],
            "evaluating": hub.evaluations.progress,
            "federations": federations,
            "health": self._health(federations),
        }

    def _health(self, federations: list[dict[str, Any]]) -> list[str]:
        hub = self._hub
        health = [f"federation {f['name']}: {f['problem']}" for f in federations if f["problem"]]
        for f in federations:
            if (failed := hub.ledger.assessments.last_failed(f["name"])) is not None:
                health.append(f"federation {f['name']}: version {failed} could not be evaluated: see `versions`;"
                              f" `zk0-hub evaluate {f['name']}` tries again")  # fmt: skip
            if lacking := hub.evaluations.folders.problem(f["name"]):
                health.append(f"federation {f['name']}: {lacking}; `zk0-hub evaluate {f['name']}` tries again")
        for what, path in (("authority", hub.directory / "ca/ca.pem"), ("server", hub.directory / "keys/server.pem")):
            life = Lifetime.of(path.read_bytes())
            if hub.now() > life.end - (life.end - life.start) / 6:  # the server's should have been renewed long ago
                health.append(f"the {what}'s certificate ends {timestamp(life.end)}: see log/hub.log")
        if hub.discard.problem:
            health.append(f"what nothing needs stays on the disk, which fills: {hub.discard.problem}")
        health += [f"federation {name}: {text}" for name, text in sorted(hub.outlets.problems.items())]
        for living in (f for f in hub.federations.values() if f.row["phase"] != "finished"):
            for key, was in living.config.replaced.items():
                holds = "nothing" if key in PRIVACY and unheld(living.config) else repr(living.config[key])
                holds += " holds: `zk0-hub federation set` another"
                health.append(f"federation {living.name}: {key} = {was!r} is not accepted any more, {holds}")
            if weak := weakness(living.config):  # an older hub took it
                health.append(f"federation {living.name}: {weak[0]}: `zk0-hub federation set` {weak[1]}")
        return health

    async def invite(self, request: dict[str, Any], connection: ControlConnection) -> dict[str, Any]:
        hours, label = float(request.get("hours", 72.0)), clean(str(request.get("label", "")))
        made = self._hub.invitation(label, hours, _actor(connection), str(request.get("address", "")))
        return {"token": made.token(), "invitation": ident_of(made.secret), "host": made.host, "port": made.port,
                "ca": made.ca, "label": label, "expires_at": timestamp(self._hub.now() + hours * 3600)}  # fmt: skip

    async def invitation_list(self, request: dict[str, Any], connection: ControlConnection) -> list[dict[str, Any]]:
        """All there were, oldest first, without their secrets (which the hub does not have)."""
        return [self._invitation(r) for r in self._hub.registry.invitations.all()]

    async def invitation_cancel(self, request: dict[str, Any], connection: ControlConnection) -> dict[str, Any]:
        which = str(request["invitation"])
        cancelled = self._hub.registry.invitations.cancel(which, _actor(connection))
        return {**self._invitation(cancelled), "state": "cancelled"}

    def _invitation(self, r: Row) -> dict[str, Any]:
        return {
            "invitation": ident(r),
            "label": r["label"],
            "state": self._hub.registry.invitations.state(r),
            "replaces": r["replaces"],
            "made_at": timestamp(r["created_at"]),
            "expires_at": timestamp(r["expires_at"]),
            "used_at": timestamp(r["used_at"]) if r["used_at"] else "",
            "used_by": r["used_by"] or "",
        }

    async def reenrol(self, request: dict[str, Any], connection: ControlConnection) -> dict[str, Any]:
        """A one-time token by which a node that lost its key gets its id back; its old certificates end then."""
        hours, address = float(request.get("hours", 72.0)), str(request.get("address", ""))
        node = str(self._hub.registry.node(str(request["node"]))["node"])
        made = self._hub.invitation("", hours, _actor(connection), address, replaces=node)
        return {"token": made.token(), "invitation": ident_of(made.secret), "node": node,
                "expires_at": timestamp(self._hub.now() + hours * 3600)}  # fmt: skip

    async def nodes(self, request: dict[str, Any], connection: ControlConnection) -> list[dict[str, Any]]:
        state = request.get("state")
        links = self._hub.link.nodes()
        return [_node(r, r["node"] in links) for r in self._hub.registry.nodes(str(state) if state else None)]

    async def approve(self, request: dict[str, Any], connection: ControlConnection) -> dict[str, Any]:
        instead_of = str(request.get("instead_of") or "")
        return _node(self._hub.registry.approve(str(request["node"]), _actor(connection), instead_of), False)

    async def refuse(self, request: dict[str, Any], connection: ControlConnection) -> dict[str, Any]:
        reason = str(request.get("reason", ""))
        return _node(self._hub.registry.refuse(str(request["node"]), reason, _actor(connection)), False)

    async def revoke(self, request: dict[str, Any], connection: ControlConnection) -> dict[str, Any]:
        node = self._hub.revoke(str(request["node"]), str(request.get("reason", "")), _actor(connection))
        return _node(self._hub.registry.node(node), False)

    async def federation_create(self, request: dict[str, Any], connection: ControlConnection) -> dict[str, Any]:
        name, parts = str(request["name"]), request.get("parts")
        where = str(request.get("where", f"federation {name}"))
        events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        async def forward() -> None:
            while (event := await events.get()) is not None:
                if event["event"] in ("ready", "progress"):
                    await connection.send(event)

        forwarding = asyncio.create_task(forward())
        try:
            return await founding.create(
                self._hub, name, str(request["toml"]), where, _actor(connection), events.put_nowait,
                Path(str(parts)) if parts else None,
            )  # fmt: skip
        finally:
            events.put_nowait(None)
            await forwarding

    async def federation_list(self, request: dict[str, Any], connection: ControlConnection) -> list[dict[str, Any]]:
        return [self._federation(f) for f in self._hub.federations.values()]

    async def federation_show(self, request: dict[str, Any], connection: ControlConnection) -> dict[str, Any]:
        runner = self._runner(request)
        spec, row = runner.spec, runner.row
        return {
            **self._federation(runner),
            "config": row["config"],
            "spec_digest": row["spec"],
            "base_digest": row["base"],
            "policy": spec.policy_type,
            "dtype": spec.dtype,
            "tensors": len(spec.exchange),
            "payload_bytes": spec.payload_bytes,
            "stats": spec.stats,
            "best_version": self._hub.ledger.retention.best(runner.name),
            "settings_waiting": bool(row["next_config"]),
            "privacy": privacy.spent(runner.custody.private_versions(runner.name), runner.config["privacy.delta"]),
            "member_ids": sorted(self._hub.ledger.members.names(runner.name)),
            "buffer": [
                {"update": u["digest"], **{k: u[k] for k in ("node", "base_version", "samples", "norm")}}
                for u in self._hub.ledger.updates(runner.name, "admitted")
            ],
        }

    async def federation_finish(self, request: dict[str, Any], connection: ControlConnection) -> dict[str, Any]:
        runner = self._runner(request)
        stewardship.finish(runner, _actor(connection))
        return self._federation(runner)

    async def federation_remove(self, request: dict[str, Any], connection: ControlConnection) -> dict[str, Any]:
        runner = self._runner(request)
        await founding.remove(self._hub, runner, _actor(connection))
        return {"name": runner.name}

    async def federation_hold(self, request: dict[str, Any], connection: ControlConnection) -> dict[str, Any]:
        runner = self._runner(request)
        state = {"federation_freeze": "frozen", "federation_drain": "draining"}.get(str(request["op"]), "")
        stewardship.hold(runner, state, _actor(connection))
        return self._federation(runner)

    async def federation_drop(self, request: dict[str, Any], connection: ControlConnection) -> dict[str, Any]:
        runner, which, node = self._runner(request), str(request["which"]), ""
        with contextlib.suppress(UsageError):  # it is no node: an update, then
            node = str(self._hub.registry.node(which)["node"])
        reason, fault = str(request.get("reason", "")), bool(request.get("fault"))
        dropped = stewardship.drop(runner, which, node, reason, _actor(connection), fault=fault)
        return {**self._federation(runner), "dropped": [{"update": r["digest"], "node": r["node"]} for r in dropped]}

    async def federation_rollback(self, request: dict[str, Any], connection: ControlConnection) -> dict[str, Any]:
        runner = self._runner(request)
        await stewardship.roll_back(runner, Whole(0).of(request["version"], "version"), _actor(connection))
        return self._federation(runner)

    async def federation_set(self, request: dict[str, Any], connection: ControlConnection) -> dict[str, Any]:
        runner = self._runner(request)
        where = str(request.get("where", f"federation {runner.name}"))
        toml = str(request["toml"])
        warning = await stewardship.check_settings(runner, toml, where)
        changed, soon = stewardship.change_settings(runner, toml, where, _actor(connection))
        waiting = bool(runner.row["next_config"])
        return {**self._federation(runner), "changed": changed, "at_once": soon, "settings_waiting": waiting,
                "warning": warning}  # fmt: skip

    async def evaluate(self, request: dict[str, Any], connection: ControlConnection) -> dict[str, Any]:
        """Evaluate and publish again: `version`, or without it those whose evaluation was given up."""
        name, version = self._runner(request).name, request.get("version")
        number = None if version is None else Whole(0).of(version, "version")
        return {"name": name, "versions": await self._hub.evaluations.again(name, number, _actor(connection))}

    async def push(self, request: dict[str, Any], connection: ControlConnection) -> dict[str, Any]:
        """A version to the Hugging Face Hub; with `dry_run` exactly what that would be, and nothing is sent."""
        name, version = self._runner(request).name, request.get("version")
        number = None if version is None else Whole(0).of(version, "version")
        if request.get("dry_run"):
            return await self._hub.outlets.plan(name, number)
        return await self._hub.outlets.push(name, number, _actor(connection))

    async def versions(self, request: dict[str, Any], connection: ControlConnection) -> list[dict[str, Any]]:
        """All versions, those not evaluated yet as well; `folder` is where the LeRobot folder is, or empty."""
        name = self._runner(request).name
        moved: dict[int, dict[str, Any]] = {}
        async for lines in self._hub.evaluations.metrics.batches(name):
            moved |= {line["version"]: {k: line[k] for k in ("bytes_up", "bytes_down")} for line in lines}
        result, folders = [], self._hub.evaluations.folders
        present = await folders.present(name)
        for v in self._hub.ledger.versions(name):
            there = v["evaluation"] != "waiting" and v["number"] in present
            result.append(
                {
                    "version": v["number"],
                    "digest": v["digest"],
                    "size": v["size"],
                    "created_at": timestamp(v["created_at"]),
                    "updates": v["updates"],
                    "samples": v["samples"],
                    "heldout_loss": v["loss"],
                    "evaluation": v["evaluation"],
                    "problem": json.loads(v["result"]).get("error", ""),
                    "bytes_up": moved.get(v["number"], {}).get("bytes_up"),
                    "bytes_down": moved.get(v["number"], {}).get("bytes_down"),
                    "folder": str(folders.path(name, v["number"])) if there else "",
                }
            )
        return result

    def _runner(self, request: dict[str, Any]) -> FederationRunner:
        name = str(request["name"])
        self._hub.ledger.federation(name)
        return self._hub.federations[name]

    def _federation(self, runner: FederationRunner) -> dict[str, Any]:
        snapshot = self._hub.ledger.snapshot(runner.name)
        newest = self._hub.ledger.version(runner.name)
        return {
            "name": runner.name,
            "phase": snapshot.phase,
            "headline": runner.headline(),
            "version": snapshot.version,
            "heldout_loss": None if newest is None else newest["loss"],
            "members": len(snapshot.members),
            "updates_waiting": len(snapshot.buffer),
            "problem": runner.problem,
        }


def _actor(connection: ControlConnection) -> str:
    return f"admin:{connection.user}"


def _node(row: Row, linked: bool) -> dict[str, Any]:
    return {
        "node": row["node"],
        "label": row["label"],
        "state": row["state"],
        "linked": linked,
        "phrase": phrase(row["key"]),
        "address": row["address"],
        "requested_at": timestamp(row["requested_at"]),
        "last_seen": timestamp(row["last_seen"]) if row["last_seen"] else "",
        "certificate_until": timestamp(Lifetime.of(row["certificate"]).end) if row["certificate"] else "",
        "reason": row["reason"],
    }
